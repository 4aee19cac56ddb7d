"""The command ``depo``.

A command is one function here: it parses its options, calls one function of the package, imported
when it runs, and hands the result to ``show``. ``main`` turns what goes wrong into an exit code
and one line.

Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from . import __version__
from .commands.route.app import route
from .commands.showing import AsJson, show
from .errors import ConfigError, DataError, DepoError, StateMismatch

app = typer.Typer(
    name="depo",
    help="Train reasoning models with reinforcement learning without paying for rollouts that teach nothing.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

# Typer carries its own copy of click in newer releases: take the base class from what it exports.
_UsageError: Any = next(
    base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException"
)

# The names of METHODS, whose import would make every `depo --help` wait; a test compares the two.
_METHODS = "grpo, dapo, polaris, depo, depo+, oracle, mopps, greso, dps, bots, pools, pcl, adarft, vcrl, speed"

Column = Annotated[str, typer.Option(help="Of a labelled pool.")]
Where = Annotated[
    list[str] | None,
    typer.Option(metavar="COLUMN=VALUE", help="Only rows with this value; may be repeated."),
]
CorrectReward = Annotated[
    str | None,
    typer.Option(
        "--correct-reward",
        "--correct-column",
        help="Of a dump of completions: the reward that says whether an answer is right.",
    ),
]
CorrectThreshold = Annotated[
    float | None,
    typer.Option(
        "--correct-threshold",
        "--correct-at",
        help="The value from which on it means right; without it the column holds 0 and 1.",
    ),
]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"depo-rl {__version__}")
        raise typer.Exit


app.add_typer(route, name="route")


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Options that stand before the command."""


@app.command(epilog=f"Methods: {_METHODS}.")
def train(
    config: Annotated[
        str,
        typer.Argument(help="A YAML file, or the name of a ready configuration: `depo configs`."),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Settings over the file's, dotted: trl.max_steps=10 resume=auto",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check settings, data, rewards and model, print the plan, write nothing.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train one policy, by the method that a YAML file names."""
    from .commands.train.run import run_train

    with redirect_stdout(sys.stderr):  # libraries print; stdout is for the result
        result = run_train(config, overrides or (), dry_run=dry_run)
    if result:  # ranks other than the main one have none
        show(result, as_json)


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for results.json, figures and report.html.")
    ] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first run of each method.")] = 0,
    seeds: Annotated[
        int, typer.Option(min=1, help="Runs of each method, with seeds SEED, SEED + 1, ...")
    ] = 1,
    methods: Annotated[
        str, typer.Option(help="Comma-separated names; all train from the same weights.")
    ] = "grpo,dapo,depo,depo+",
    budget_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Completion tokens that each run may generate; 140,000 unless given."
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, one core each.")] = min(
        2, os.cpu_count() or 1
    ),
    as_json: AsJson = False,
) -> None:
    """The whole story on a CPU in minutes: grpo, dapo, depo and depo+ from one tiny policy at one
    budget of tokens.

    No download. Prints a table and writes results.json, figures and one self-contained page,
    report.html.
    """
    from .commands.demo.run import DemoPlan, plan_budget, show_demo

    names = tuple(name.strip() for name in methods.split(",") if name.strip())
    plan = DemoPlan(
        out, names, tuple(range(seed, seed + seeds)), budget_tokens or plan_budget(), jobs
    )
    summary = show_demo(plan, quiet=as_json)
    if as_json:
        show(summary, as_json)


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(help="Parquet or JSONL, or a folder of them.")],
    methods: Annotated[
        str, typer.Option(help=f"Comma-separated, of {_METHODS}.")
    ] = "grpo,dapo,depo",
    group_size: Annotated[int, typer.Option(min=2, help="Completions per prompt.")] = 8,
    prompts_per_step: Annotated[int, typer.Option(min=1, help="Groups of a batch.")] = 128,
    steps: Annotated[int, typer.Option(min=1, help="Batches of each run.")] = 100,
    seeds: Annotated[
        str, typer.Option(help="Comma-separated; one run of each method per seed.")
    ] = "0,1,2",
    out: Annotated[
        Path, typer.Option(help="Folder for results.json, figures and report.html.")
    ] = Path("replay"),
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Curriculum setting; METHOD.KEY=VALUE for one method.",
        ),
    ] = None,
    where: Where = None,
    prompt_column: Column = "prompt",
    pass_rate_column: Column = "pass_rate",
    correct_reward: CorrectReward = None,
    correct_threshold: CorrectThreshold = None,
    max_gap: Annotated[
        int | None,
        typer.Option(min=0, help="Of a history: steps that a visit may be off; any unless given."),
    ] = None,
    outcomes: Annotated[
        bool,
        typer.Option("--outcomes", help="Also write outcomes-METHOD-SEED.jsonl, one row a group."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run methods against what real models really did, with no model.

    FILE is a labelled pool (prompt, pass_rate), an outcome log of ours, another
    history (prompt, n_correct, group_size, step), or the completions that a
    trainer logged: TRL, verl and others (docs/replay.md). Prints a table of what each method chose and
    paid, and writes results.json, figures and one page, report.html.
    """
    from .commands.replay.plan import ReplayPlan
    from .commands.replay.run import parse_seeds, parse_settings, show_replay
    from .outcomes.tables import SourceOptions, Verdict, parse_where

    common, by_method = parse_settings(settings or ())
    plan = ReplayPlan(
        file=file,
        out=out,
        methods=tuple(name.strip() for name in methods.split(",") if name.strip()),
        seeds=parse_seeds(seeds),
        group_size=group_size,
        prompts_per_step=prompts_per_step,
        steps=steps,
        settings=common,
        method_settings=by_method,
        options=SourceOptions(
            where=parse_where(where or ()),
            pass_rate_column=pass_rate_column,
            verdict=Verdict(correct_reward, correct_threshold),
            prompt_column=prompt_column,
        ),
        max_gap=max_gap,
        outcomes=outcomes,
    )
    summary = show_replay(plan, quiet=as_json)
    if as_json:
        show(summary, as_json)


@app.command("verl-config")
def verl_config(
    config: Annotated[
        str | None,
        typer.Argument(
            help="A YAML file, or the name of a ready one; without it those are listed."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Settings over the file's, dotted: verl.trainer.nnodes=4"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the complete verl command for a method, to run on a Ray cluster.

    depo verl-config qwen2.5-7b-dapo17k-depo > run.sh && bash run.sh
    """
    from .commands.verl_config import ready_verl_configs, verl_command

    if config is None:
        show({name: str(path) for name, path in ready_verl_configs().items()}, as_json)
        return
    command = verl_command(config, overrides or ())
    if as_json:
        show(
            {"environment": dict(command.environment), "arguments": list(command.arguments)},
            as_json,
        )
    else:
        typer.echo(command.script(" ".join([config, *(overrides or ())])), nl=False)


@app.command()
def configs(as_json: AsJson = False) -> None:
    """List the ready configurations and where they are, to run or to copy."""
    from .commands.train.file import ready_configs

    show({name: str(path) for name, path in ready_configs().items()}, as_json)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``depo`` with ``argv`` (default: the process's) and returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    return _guarded(lambda: app(args=args or ["--help"], prog_name="depo", standalone_mode=False))


def _guarded(run: Callable[[], Any]) -> int:
    try:
        # without standalone mode typer returns the code of an Exit, 130 for Ctrl-C among them
        code = run()
        return (
            _complain("interrupted", 130) if code == 130 else code if isinstance(code, int) else 0
        )
    except (ConfigError, DataError, StateMismatch) as error:
        return _complain(error, 2)
    except DepoError as error:
        return _complain(error, 1)
    except (KeyboardInterrupt, typer.Abort):
        return _complain("interrupted", 130)
    except typer.Exit as stop:
        return int(stop.exit_code)
    except _UsageError as error:
        return _complain(error.format_message(), 2)


def _complain(what: object, code: int) -> int:
    """One line on stderr, whatever line breaks a value in the message has."""
    print(f"depo: {' '.join(str(what).split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
