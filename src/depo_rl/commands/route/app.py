"""The commands ``depo route ...``, as those in ``cli``: options parsed, one function called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..showing import AsJson, show

route = typer.Typer(
    name="route",
    help="Send each query to the smallest model that will solve it, with a guarantee.",
    no_args_is_help=True,
)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The router's folder.")]
Models = Annotated[
    list[str],
    typer.Option(
        "--model",
        metavar="NAME=LOG",
        help="Outcome log, labelled pool (prompt, pass_rate), or table with a column NAME; cheapest first.",
    ),
]
Where = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME:COLUMN=VALUE", help="Only rows of NAME's log with this value."),
]


@route.command()
def fit(
    model: Models,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the router.")],
    cost: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PRICE", help="Of a call; for all or none.")
    ] = None,
    where: Where = None,
    as_json: AsJson = False,
) -> None:
    """Learn to predict each model's success from a query's text."""
    from .fit import fit_router
    from .options import parse_costs, parse_models, parse_where

    sources = parse_models(model)
    show(
        fit_router(sources, out, parse_costs(cost or (), sources), parse_where(where or ())),
        as_json,
    )


@route.command()
def evaluate(
    folder: Folder,
    model: Models,
    by: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="A table over this column's values.")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Also draw the curves into this PNG or SVG.")
    ] = None,
    where: Where = None,
    as_json: AsJson = False,
) -> None:
    """What the router is worth on other rows, beside always-small, always-large, chance, the
    paper's rule and an oracle."""
    from .evaluate import evaluate_router, readable
    from .options import parse_models, parse_where

    result = evaluate_router(folder, parse_models(model), parse_where(where or ()), by, figure)
    show(result if as_json else readable(result), as_json)


@route.command()
def calibrate(
    folder: Folder,
    on: Annotated[
        list[str],
        typer.Option(
            metavar="LOG", help="Rows not fitted on: a table with all models, or NAME=LOG for each."
        ),
    ],
    quality: Annotated[
        float | None, typer.Option(help="At least this share of the large model's mean score.")
    ] = None,
    points: Annotated[
        float | None, typer.Option(help="At most so many percentage points below the large model.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="At most this share of queries to the large model.")
    ] = None,
    confidence: Annotated[
        float, typer.Option(help="Probability that the promise holds, over the draw of the rows.")
    ] = 0.95,
    where: Where = None,
    as_json: AsJson = False,
) -> None:
    """Set the threshold by a promise that holds for any distribution of queries."""
    from .calibrate import calibrate_router
    from .options import parse_promise, parse_where

    promise = parse_promise(quality=quality, points=points, budget=budget, confidence=confidence)
    show(calibrate_router(folder, on, promise, parse_where(where or ())), as_json)


@route.command()
def check(
    folder: Folder,
    on: Annotated[
        list[str],
        typer.Option(metavar="LOG", help="Later rows, oldest first; as for calibrate."),
    ],
    where: Where = None,
    as_json: AsJson = False,
) -> None:
    """Do later outcomes speak against the threshold in force? Exit code 1 with an alarm.

    May be asked again and again as rows come in: a kept promise is alarmed at most as often as its
    confidence allows.
    """
    from .calibrate import check_router
    from .options import parse_where

    result = check_router(folder, on, parse_where(where or ()))
    show(result, as_json)
    if result["alarm"]:
        raise typer.Exit(1)


@route.command()
def decide(
    folder: Folder,
) -> None:
    """Decide for JSON lines on stdin, {"prompt": ...} or {"messages": [...]}: a line on stdout
    each."""
    import sys

    from .decide import decide_lines

    for line in decide_lines(folder, sys.stdin.buffer):
        sys.stdout.write(line + "\n")


@route.command()
def litellm(
    folder: Folder,
    config: Annotated[Path, typer.Argument(help="LiteLLM's YAML, with the router's models.")],
    auto: Annotated[str, typer.Option(help="Model name whose requests are routed.")] = "depo",
    observe: Annotated[
        bool, typer.Option("--observe", help="Decide and tell; the default model answers.")
    ] = False,
    limit_ms: Annotated[float, typer.Option(min=1, help="Milliseconds a decision may take.")] = 50,
    default: Annotated[
        str | None, typer.Option(help="Model where none can be decided; the large one.")
    ] = None,
) -> None:
    """Print the complete configuration of an unmodified LiteLLM proxy that routes.

    depo route litellm DIR config.yaml > routed.yaml && litellm --config routed.yaml
    """
    from .gateway import litellm_config

    printed = litellm_config(
        folder, config, auto=auto, observe=observe, limit_ms=limit_ms, default=default
    )
    typer.echo(printed, nl=False)
