"""Writes docs/settings.md and docs/metrics.md from the code: descriptions of fields, and names in
docstrings.

    python scripts/make_reference.py [--check]

Needs the extra ``trl``, for what its trainer takes and logs. ``--check`` writes nothing and exits 1
if a page is stale.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from depo_rl import METHODS
from depo_rl.breadth import BREADTH, Breadth
from depo_rl.config import (
    ConstantSettings,
    CurriculumConfig,
    EncoderFeatureSettings,
    EncoderSettings,
    FusedSettings,
    HistorySettings,
    OracleSettings,
)
from depo_rl.engines.session import COUNTS, SO_FAR, Session
from depo_rl.engines.trl import DEPOTrainer
from depo_rl.engines.trl import driver as trl
from depo_rl.engines.trl.config import DEPOSettings
from depo_rl.engines.trl.sampling import DynamicSampler
from depo_rl.engines.verl import driver as verl
from depo_rl.engines.verl.settings import HostSettings, VerlSettings
from depo_rl.estimators.encoder import EncoderEstimator
from depo_rl.estimators.fused import FusedEstimator
from depo_rl.estimators.history import HistoryEstimator
from depo_rl.ledger import LAST_BATCH, Ledger
from depo_rl.metrics import judged
from depo_rl.rivals.adarft import TargetDifficulty
from depo_rl.rivals.bots import BOTSEstimator
from depo_rl.rivals.dps import DPSEstimator
from depo_rl.rivals.greso import GRESOSkip
from depo_rl.rivals.pools import DifficultyPools
from depo_rl.rivals_config import (
    AdaRFTSettings,
    BOTSSettings,
    DPSSettings,
    GRESOSettings,
    PoolSettings,
    SPEEDSettings,
)
from depo_rl.survival import SurvivingEstimator

DOCS = Path(__file__).resolve().parents[1] / "docs"
MADE = "<!-- Made by scripts/make_reference.py from the code: change it there. -->"

ESTIMATORS: tuple[type[BaseModel], ...] = (
    *(
        FusedSettings,
        EncoderSettings,
        HistorySettings,
        OracleSettings,
        ConstantSettings,
        DPSSettings,
        BOTSSettings,
    ),
)
OF_A_METHOD: dict[str, type[BaseModel]] = {
    **{
        "greso": GRESOSettings,
        "pools": PoolSettings,
        "adarft": AdaRFTSettings,
        "speed": SPEEDSettings,
    },
}


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [_row(head), _row(["---"] * len(head)), *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _code(text: str) -> str:
    """Docstrings mark code as reStructuredText does."""
    return text.replace("``", "`")


# ---- settings


SETTINGS_HEAD = f"""\
# Settings

{MADE}

What the methods are is in [methods.md](methods.md), where a default comes from in [paper_index.md](paper_index.md).
A setting that the method does not read is refused; those that "choose" are all but `grpo`, `dapo`, `polaris`, `vcrl`
and `speed`.
Names are closed: a misspelt one is refused with the nearest right one. A mapping given in part is laid over the
method's own, so `estimator: {{n_random: 0}}` changes that one setting.

## The curriculum

`DEPOConfig(curriculum={{...}})`, the section `curriculum` of a YAML file, `+data.depo.curriculum.NAME=...` on verl,
`make_curriculum("depo+", prompts, {{...}})`, `depo replay --set NAME=VALUE`.

"""
ESTIMATORS_HEAD = """
## Estimators

`estimator: TYPE`, or `estimator: {type: TYPE, NAME: VALUE}`.
"""


def settings_page() -> str:
    """Every setting, with type, default and meaning."""
    config = _settings_table(CurriculumConfig, "", lambda method: METHODS_CONFIG[method], _read_by)
    lines = [*SETTINGS_HEAD.splitlines(), *config, *ESTIMATORS_HEAD.splitlines()]
    for model in ESTIMATORS:
        kind = model.model_fields["type"].default
        lines += [
            "",
            f"### `{kind}`",
            "",
            _summary(model),
            "",
            *_settings_table(model, "estimator.", _estimator_of(kind)),
        ]
    lines += ["", "### `estimator.encoder` of `fused`", "", _summary(EncoderFeatureSettings), ""]
    lines += _settings_table(EncoderFeatureSettings, "estimator.encoder.")
    lines += ["", "## Settings of single methods"]
    for name, model in OF_A_METHOD.items():
        lines += ["", f"### `{name}`", "", _summary(model), "", *_settings_table(model, f"{name}.")]
    lines += ["", "## `DEPOConfig`, on TRL", ""]
    lines += [
        "Besides these it has every field of TRL's `GRPOConfig`, with the meaning it has there.",
        "",
    ]
    lines += _table(["setting", "type", "default", "what it is"], _dataclass_rows(DEPOSettings))
    lines += ["", "## `data.depo`, on verl", "", "See [verl.md](verl.md).", ""]
    lines += [*_settings_table(VerlSettings, "data.depo."), "", _summary(HostSettings), ""]
    lines += _settings_table(HostSettings, "data.depo.host.")
    return "\n".join(lines) + "\n"


METHODS_CONFIG = {name: method.config() for name, method in METHODS.items()}


def _estimator_of(kind: str) -> Callable[[str], BaseModel | None]:
    def chosen(method: str) -> BaseModel | None:
        estimator = METHODS_CONFIG[method].estimator
        return estimator if estimator.type == kind else None

    return chosen


def _summary(model: type[BaseModel]) -> str:
    return _code(" ".join((model.__doc__ or "").split()))


def _read_by(setting: str) -> str:
    """The methods that read a setting of the curriculum, in few words."""
    readers = [name for name, method in METHODS.items() if setting in method.settings]
    others = [name for name in METHODS if name not in readers]
    if not others:
        return "all"
    if readers == [name for name, method in METHODS.items() if "explore" in method.settings]:
        return "all that choose"
    return (
        f"all but `{others[0]}`" if len(others) == 1 else ", ".join(f"`{name}`" for name in readers)
    )


def _settings_table(
    model: type[BaseModel],
    prefix: str,
    of_method: Callable[[str], BaseModel | None] | None = None,
    read_by: Callable[[str], str] | None = None,
) -> list[str]:
    """of_method: the settings that a method begins with, to tell where they are not the model's own
    defaults."""
    own_defaults = [
        (name, field, _others(name, field, of_method)) for name, field in _fields(model)
    ]
    some_differ = any(others for _, _, others in own_defaults)
    head = ["setting", "type", "default", *(["methods with another"] if some_differ else [])]
    head += [*(["read by"] if read_by else []), "what it is"]
    lines = [_row(head), _row(["---"] * len(head))]
    for name, field, others in own_defaults:
        cells = [f"`{prefix}{name}`", _type_of(model, name), _shown(_default(field))]
        cells += [others] if some_differ else []
        cells += [read_by(name)] if read_by else []
        lines.append(_row([*cells, field.description or ""]))
    return lines


def _fields(model: type[BaseModel]) -> list[tuple[str, FieldInfo]]:
    return [(name, field) for name, field in model.model_fields.items() if name != "type"]


def _default(field: FieldInfo) -> Any:
    return (
        "(must be given)" if field.is_required() else field.get_default(call_default_factory=True)
    )


def _others(
    name: str, field: FieldInfo, of_method: Callable[[str], BaseModel | None] | None
) -> str:
    """``value: methods`` for each value other than the default that some method begins with."""
    methods_by_value: dict[str, list[str]] = {}
    for method in METHODS if of_method else ():
        settings = of_method(method) if of_method else None
        if settings is not None and (value := _shown(getattr(settings, name))) != _shown(
            _default(field)
        ):
            methods_by_value.setdefault(value, []).append(f"`{method}`")
    return "; ".join(
        f"{value}: {', '.join(methods)}" for value, methods in methods_by_value.items()
    )


def _shown(value: Any) -> str:
    """A default as one would write it in YAML; of settings within settings their type, or that they
    have their own."""
    if isinstance(value, BaseModel):
        kind = getattr(value, "type", None)
        return f"`{kind}`" if kind else "its own"
    if isinstance(value, str):
        return value if value.startswith("(") else f"`{value}`"
    if value == {}:
        return "none"
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value)}`"


def _type_of(model: type[BaseModel], name: str) -> str:
    if name == "candidate_factor":  # its validator is a function, which has no schema
        return "whole number >= 1, or `auto`"
    return _type(model.model_json_schema()["properties"][name])


def _type(schema: Mapping[str, Any]) -> str:
    """A JSON schema in words."""
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "anyOf" in schema:
        return " or ".join(_type(part) for part in schema["anyOf"])
    if "$ref" in schema or "discriminator" in schema or "oneOf" in schema:
        return "settings"
    if "prefixItems" in schema:
        return f"{len(schema['prefixItems'])} numbers{_range(schema['prefixItems'][0])}"
    if schema.get("type") == "array":
        items = schema["items"]
        return "list of texts" if items["type"] == "string" else f"list of numbers{_range(items)}"
    words = {
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "boolean": "true or false",
    }
    words |= {"null": "`null`", "object": "mapping"}
    return words[schema["type"]] + _range(schema)


def _range(schema: Mapping[str, Any]) -> str:
    low = [f">= {schema['minimum']:g}"] if "minimum" in schema else []
    low += [f"> {schema['exclusiveMinimum']:g}"] if "exclusiveMinimum" in schema else []
    high = [f"<= {schema['maximum']:g}"] if "maximum" in schema else []
    high += [f"< {schema['exclusiveMaximum']:g}"] if "exclusiveMaximum" in schema else []
    bounds = " and ".join(low + high)
    return f" {bounds}" if bounds else ""


def _dataclass_rows(config: type[Any]) -> Iterator[list[str]]:
    words = {
        "str": "text",
        "bool": "true or false",
        "int": "whole number",
        "float": "number",
        "None": "`null`",
    }
    words |= {"dict[str, Any]": "mapping"}
    for field in dataclasses.fields(config):
        # as written: transformers' argument parser puts classes into field.type
        written = config.__annotations__[field.name]
        kind = " or ".join(words[part.strip()] for part in written.split("|"))
        yield [
            f"`{field.name}`",
            kind,
            _shown(field.default),
            field.metadata["help"].removesuffix("."),
        ]


# ---- metrics

_ENTRY = re.compile(r"(?:^|(?<=[.;] ))([a-z][a-z0-9_]*(?:, [a-z][a-z0-9_]*)*): ")


def described(docstring: str | None) -> dict[str, str]:
    """Name -> meaning, of a docstring's ``name, other_name: what they are.`` wherever a sentence
    begins so."""
    found: dict[str, str] = {}
    for paragraph in inspect.cleandoc(docstring or "").split("\n\n"):
        parts = _ENTRY.split(" ".join(paragraph.split()))
        for names, meaning in zip(parts[1::2], parts[2::2], strict=True):
            found |= dict.fromkeys(names.split(", "), _code(meaning.strip().removesuffix(".")))
    return found


def docstring_in(file: Path, function: str) -> str | None:
    """As ``function.__doc__``, of a file whose imports are of another environment."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return ast.get_docstring(node)
    raise LookupError(f"{file} has no function {function}")


CORE = described(Ledger.metrics.__doc__) | described(Breadth.metrics.__doc__)
ESTIMATOR_FIGURES = {
    "fused": described(FusedEstimator.metrics.__doc__),
    "encoder": described(EncoderEstimator.metrics.__doc__),
    "history": described(HistoryEstimator.metrics.__doc__),
    "dps": described(DPSEstimator.metrics.__doc__),
    "bots": described(BOTSEstimator.metrics.__doc__),
}
SELECTOR_FIGURES = {
    "greso": described(GRESOSkip.metrics.__doc__),
    "adarft": described(TargetDifficulty.metrics.__doc__),
    "pools": described(DifficultyPools.metrics.__doc__),
}
_WEIGHTS = ("importance_max", "effective_share")
_SURVIVED = {
    f"estimator/{name}": told
    for name, told in described(SurvivingEstimator.metrics.__doc__).items()
}
LIVE = {**described(Session.figures.__doc__), **_SURVIVED}
TRL_ONLY = {
    **described(trl.TrlDriver.figures.__doc__),
    **described(DEPOTrainer._publish.__doc__),
    **described(DynamicSampler.fill.__doc__),
    **{name: described(DEPOTrainer.weigh.__doc__)[name] for name in _WEIGHTS},
}
_HOST = docstring_in(Path(str(verl.__file__)).with_name("host.py"), "metrics")
VERL_ONLY = {
    **described(verl.VerlDriver._figures.__doc__),
    **{f"estimator/{name}": told for name, told in described(_HOST).items()},
}


METRICS_HEAD = f"""\
# Metrics

{MADE}

`Curriculum.metrics()` gives the first table. Engines log much of it under `depo/`: counts as what the generation (TRL)
or the step (verl) added, so that TRL's mean over `logging_steps` is that of a generation. What is not known yet is NaN
in `metrics()`, and not logged.

## What every curriculum tells

"""
REWARDS = """
Reward functions of `depo_rl.rewards` log `NAME/unscorable_share`: of the completions of a generation, those that could
not be judged.
"""
ESTIMATORS_TELL = """
## What the estimator tells of itself

`estimator/NAME` in `metrics()`, `depo/estimator/NAME` on TRL and verl. `constant` and `oracle` have nothing to tell.
"""


def metrics_page() -> str:
    """Every figure, with where it is told and what it means."""
    estimators = [
        line
        for kind, figures in ESTIMATOR_FIGURES.items()
        for line in ("", f"### `{kind}`", "", *_named(figures, "estimator/"))
    ]
    selectors = [
        [f"`selector/{name}`", f"`{method}`", meaning]
        for method, figures in SELECTOR_FIGURES.items()
        for name, meaning in figures.items()
    ]
    lines = [
        *METRICS_HEAD.splitlines(),
        *_table(
            ["figure", "`metrics()`", "logged", "what it is"],
            [_core_row(*item) for item in CORE.items()],
        ),
        *("", "## What engines log besides, under `depo/`", "", *_named(LIVE)),
        *("", "## On TRL besides, under `depo/`", "", *_named(TRL_ONLY)),
        *REWARDS.splitlines(),
        *("", "## On verl besides, under `depo/`", "", *_named(VERL_ONLY)),
        *ESTIMATORS_TELL.splitlines(),
        *estimators,
        *("", "## What the selector tells of itself", "", "In `metrics()`, not logged.", ""),
        *_table(["figure", "method", "what it is"], selectors),
    ]
    return "\n".join(lines) + "\n"


def _core_row(name: str, meaning: str) -> list[str]:
    if name in LAST_BATCH or name.startswith("seconds_"):
        own = "last batch"
    elif name in BREADTH:
        own = "so far"
    elif name == "in_flight":
        own = "now"
    elif name in judged([], []):
        own = "last 1,024 groups"
    else:
        own = "since the start"
    return [f"`{name}`", own, _logged(name), meaning]


def _logged(name: str) -> str:
    """How engines log a figure of the curriculum."""
    if name in COUNTS:
        return "added"
    return "yes" if name in (*LAST_BATCH, "seconds_selecting", "seconds_learning", *SO_FAR) else "-"


def _named(figures: Mapping[str, str], prefix: str = "") -> list[str]:
    return _table(
        ["figure", "what it is"],
        [[f"`{prefix}{name}`", meaning] for name, meaning in figures.items()],
    )


# ---- both

PAGES: dict[str, Callable[[], str]] = {"settings.md": settings_page, "metrics.md": metrics_page}


def main(arguments: Sequence[str]) -> int:
    stale = [
        name
        for name, page in PAGES.items()
        if not (DOCS / name).exists() or (DOCS / name).read_text() != page()
    ]
    for name in stale:
        if "--check" in arguments:
            print(
                f"docs/{name} is not what the code says: python scripts/make_reference.py",
                file=sys.stderr,
            )
        else:
            (DOCS / name).write_text(PAGES[name]())
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
