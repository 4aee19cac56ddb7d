"""Published pass rates of other models, as columns of the data set: how one is read, and pools that
need them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .config import CurriculumConfig, OracleSettings
from .errors import DataError
from .rivals_config import BOTSSettings
from .types import Prompt, as_rate


def _rates(method: str, setting: str, column: str, prompts: Sequence[Prompt]) -> list[float | None]:
    """Each prompt's label, None where it has none. Raises DataError if no prompt has one: a wrong
    column."""
    rates = [as_rate(p.fields.get(column)) for p in prompts]
    if prompts and all(rate is None for rate in rates):
        raise DataError(
            f"method {method!r} chooses by column {column!r}, which holds a pass rate in [0, 1] for none of the "
            f"{len(prompts)} prompts; columns there: {', '.join(sorted(prompts[0].fields)) or 'none'}: name the right "
            f"one with {setting}"
        )
    return rates


def keep_the_middle(prompts: Sequence[Prompt], config: CurriculumConfig) -> Sequence[Prompt]:
    """Prompts whose offline pass rate lies in ``keep``; one without a label is kept: unknown is not
    hard."""
    low, high = config.keep
    rates = _rates("polaris", "pass_rate_field", config.pass_rate_field, prompts)
    kept = [
        p for p, rate in zip(prompts, rates, strict=True) if rate is None or low <= rate <= high
    ]
    if not kept:
        raise DataError(
            f"method 'polaris': no prompt's {config.pass_rate_field} lies in keep = [{low}, {high}]"
        )
    return kept


def need_labels(method: str) -> Callable[[Sequence[Prompt], CurriculumConfig], Sequence[Prompt]]:
    """All prompts, once it is sure that the columns that the method's estimator reads hold
    something."""

    def check(prompts: Sequence[Prompt], config: CurriculumConfig) -> Sequence[Prompt]:
        settings = config.estimator
        if isinstance(settings, OracleSettings):
            _rates(method, "estimator.field", settings.field, prompts)
        if (
            isinstance(settings, BOTSSettings)
            and settings.weak is not None
            and settings.strong is not None
        ):
            _rates(method, "estimator.weak", settings.weak, prompts)
            _rates(method, "estimator.strong", settings.strong, prompts)
        return prompts

    return check
