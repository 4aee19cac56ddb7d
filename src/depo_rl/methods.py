"""A method is a name for a choice of (estimator, selector, gate), and the defaults its paper gives.

To add one: an entry of the table here, which names everything that it is (CONTRIBUTING.md has an
example).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .config import (
    CurriculumConfig,
    merged,
    parse_config,
)
from .curriculum import Curriculum
from .errors import ConfigError
from .labels import keep_the_middle, need_labels
from .parts import MakeEstimator, make_estimator, make_gate, make_screening
from .pool import PromptPool
from .protocols import Drawing, Gate, Selector
from .rivals.adarft import TargetDifficulty
from .rivals.greso import GRESOSkip
from .rivals.pools import DifficultyPools
from .selectors import MostLikelyMixed, NearestRate, PassRateWindow, Uniform
from .types import Prompt
from .validation import nearest

# ---- estimators


# ---- what several methods have


def _uniform(config: CurriculumConfig, n_prompts: int) -> Selector:
    return Uniform()


def _most_mixed(config: CurriculumConfig, n_prompts: int) -> Selector:
    return MostLikelyMixed(config.group_size, config.temperature)


def _window_or_most_mixed(config: CurriculumConfig, n_prompts: int) -> Selector:
    return (
        _most_mixed(config, n_prompts) if config.band == "auto" else PassRateWindow(*config.window)
    )


def _thompson(config: CurriculumConfig, n_prompts: int) -> Selector:
    return NearestRate(config.target, thompson=True)


def _as_they_are(prompts: Sequence[Prompt], config: CurriculumConfig) -> Sequence[Prompt]:
    return prompts


_BY_ALL = ("group_size", "seed", "estimator", "reward_range")
_BY_CHOICE = (
    "explore",
    "warmup_steps",
    "candidate_factor",
    "guard",
)  # where prompts are chosen at all
_BY_DRAW = ("temperature", "importance", "importance_cap")
_BY_GATE = ("gate", "max_rounds", "min_variance")

_WHEN: dict[str, tuple[str, str, Callable[[CurriculumConfig], bool]]] = {
    "window": ("band", "band: window", lambda config: config.band == "window"),
    "temperature": ("band", "band: auto", lambda config: config.band == "auto"),
    "min_variance": ("gate", "gate: high_variance", lambda config: config.gate == "high_variance"),
}
"""Setting -> the one that switches it on, and when that does, in words and as a rule."""


@dataclass(frozen=True, slots=True)
class Method:
    """All that a method is: values, and functions of its settings.

    summary: one line for tables. defaults: over those of ``CurriculumConfig``; they name its
    estimator too. reads: the settings that its own functions read. selector, gate: make them;
    selector is told the number of prompts too. prepare: the prompts that become the pool; raises
    DataError where columns do not hold what is read from them. own_order: prompts come in the
    engine's own order, where it has one.
    """

    name: str
    summary: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    reads: tuple[str, ...] = ()
    selector: Callable[[CurriculumConfig, int], Selector] = _uniform
    gate: Callable[[CurriculumConfig], Gate] = make_gate
    prepare: Callable[[Sequence[Prompt], CurriculumConfig], Sequence[Prompt]] = _as_they_are
    own_order: bool = False

    @property
    def settings(self) -> frozenset[str]:
        """Names of all settings that are read, of some only where another one says so."""
        chosen = _BY_CHOICE if self.selector is not _uniform else ()
        gated = _BY_GATE if self.gate is make_gate else ()
        return frozenset((*_BY_ALL, *chosen, *gated, *self.reads))

    def settings_under(self, config: CurriculumConfig) -> frozenset[str]:
        """Names of those that are read with the others as they are."""
        names = self.settings
        off = {
            name for name, (switch, _, on) in _WHEN.items() if switch in names and not on(config)
        }
        if not self.draws(config):
            off.add("importance")
        return names - off

    def draws(self, config: CurriculumConfig) -> bool:
        """Whether prompts are drawn, each with a probability that is known and can be weighed
        by."""
        return config.temperature > 0.0 and isinstance(self.selector(config, 1), Drawing)

    def config(
        self, given: Mapping[str, Any] | CurriculumConfig | None = None, where: str | None = None
    ) -> CurriculumConfig:
        """The defaults with the given settings over them; of a ready config those that differ from
        the method's own.

        Raises ConfigError for what ``parse_config`` refuses, and for a setting that would not be
        read.
        """
        where = where or f"method {self.name!r}"
        if isinstance(given, CurriculumConfig):
            own = parse_config(self.defaults, None)
            named = {name: getattr(given, name) for name in given.model_fields_set}
            given = {name: value for name, value in named.items() if value != getattr(own, name)}
        config = parse_config(self.defaults, given, where)
        self._check_gate(config)
        self._check_importance(config)
        unread = (given or {}).keys() - self.settings_under(config) - {"gate", "importance"}
        if unread:
            said = "; ".join(self._read_by(name) for name in sorted(unread))
            raise ConfigError(f"{where}: {said}: leave it out")
        return config

    def share(self, shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
        """Of settings given to several methods those that this one reads, and its ``own`` over
        them. Settings of an estimator without its type are for the methods whose estimator has
        them."""
        if not self._has(shared.get("estimator")):
            shared = {name: value for name, value in shared.items() if name != "estimator"}
        whole = merged(shared, own)
        read = self.settings_under(parse_config(self.defaults, whole, f"method {self.name!r}"))
        return {name: value for name, value in whole.items() if name in read or name in own}

    def _has(self, estimator: Any) -> bool:
        if not isinstance(estimator, Mapping) or "type" in estimator:
            return True
        own = parse_config(self.defaults, {}, f"method {self.name!r}").estimator
        return set(estimator) <= set(type(own).model_fields)

    def _read_by(self, name: str) -> str:
        if name in self.settings:
            return f"setting {name!r} is read with {_WHEN[name][1]} only"
        readers = [method.name for method in METHODS.values() if name in method.settings]
        return f"setting {name!r} is read by {', '.join(readers)} only"

    def _check_gate(self, config: CurriculumConfig) -> None:
        gate = self.gate(config)
        if "gate" in config.model_fields_set and type(gate) is not type(make_gate(config)):
            raise ConfigError(
                f"method {self.name!r}, gate = {config.gate!r}: the method has a gate of its own "
                f"({type(gate).__name__}): leave gate out, or choose another method"
            )

    def _check_importance(self, config: CurriculumConfig) -> None:
        if config.importance and not self.draws(config):
            raise ConfigError(
                f"method {self.name!r}, importance = {config.importance}: weights need prompts that are drawn, and "
                f"with temperature = {config.temperature} and band = {config.band!r} this method draws none: set "
                "temperature above 0 in depo+ (or depo with band 'auto', oracle, dps), or importance to 0"
            )


# ---- the methods

METHODS: dict[str, Method] = {}

# Methods that do not choose by prediction roll every prompt out anyway: nothing to explore, no
# estimator to warm up.
_UNIFORM = {"estimator": {"type": "constant"}, "explore": 0.0, "warmup_steps": 0}

# The others' papers have neither a share of exploration nor a warm-up: what they explore is in
# their own rules.
_AS_PUBLISHED = {"explore": 0.0, "warmup_steps": 0}

for _method in (
    Method("grpo", "every prompt, in the order of the epoch", _UNIFORM, own_order=True),
    Method(
        "dapo",
        "roll out, drop all-right and all-wrong groups, sample more",
        {**_UNIFORM, "gate": "dynamic"},
    ),
    Method(
        "polaris",
        "offline filter by a pass-rate column",
        _UNIFORM,
        reads=("pass_rate_field", "keep"),
        prepare=keep_the_middle,
    ),
    Method(
        "depo",
        "predict the pass rate before the rollout, roll out what can teach",
        reads=("band", "window", *_BY_DRAW),
        selector=_window_or_most_mixed,
    ),
    # Each default by benchmarks/bench_learning.py, on the whole of what is trained for
    # (docs/learning.md).
    Method(
        "depo+",
        "everything known of a prompt in one calibrated belief, largest P(mixed)",
        {
            # a common drift lifts the hopeless with the rest
            "estimator": {"type": "fused", "drift": False},
            "band": "auto",
            "candidate_factor": "auto",
            "warmup_steps": 2,
            "guard": True,
        },
        reads=("band", "window", *_BY_DRAW),
        selector=_window_or_most_mixed,
    ),
    Method(
        "oracle",
        "upper bound: largest P(mixed) by a pass-rate column",
        {**_AS_PUBLISHED, "estimator": {"type": "oracle"}},
        reads=_BY_DRAW,
        selector=_most_mixed,
        prepare=need_labels("oracle"),
    ),
    Method(
        "mopps",
        "Thompson sampling of a Beta per prompt, nearest to 0.5",
        {
            **_AS_PUBLISHED,
            "estimator": {"type": "history", "fade_by": "visits", "discount": 1.0},
            "candidate_factor": 16,
        },
        reads=("target",),
        selector=_thompson,
    ),
    Method(
        "greso",
        "skip at random what has taught nothing, and as dapo",
        {**_AS_PUBLISHED, "estimator": {"type": "history"}, "gate": "dynamic"},
        reads=("greso",),
        selector=lambda config, n_prompts: GRESOSkip(config.greso, n_prompts),
    ),
    Method(
        "dps",
        "three-state chain per prompt, largest P(mixed)",
        {**_AS_PUBLISHED, "estimator": {"type": "dps"}, "candidate_factor": 32},
        reads=_BY_DRAW,
        selector=_most_mixed,
    ),
    Method(
        "bots",
        "fading Beta per prompt and two reference models, nearest to 0.5",
        {**_AS_PUBLISHED, "estimator": {"type": "bots"}, "candidate_factor": 16},
        reads=("target",),
        selector=_thompson,
        prepare=need_labels("bots"),
    ),
    Method(
        "pools",
        "prime-rl: weights by the pool that the last group fell into",
        {**_AS_PUBLISHED, "estimator": {"type": "history"}},
        reads=("pools",),
        selector=lambda config, n_prompts: DifficultyPools(config.pools),
    ),
    Method(
        "pcl",
        "predicted pass rate nearest to 0.5",
        {**_AS_PUBLISHED, "candidate_factor": 4},
        reads=("target",),
        selector=lambda config, n_prompts: NearestRate(config.target, thompson=False),
    ),
    Method(
        "adarft",
        "offline difficulty nearest to a target that follows the reward",
        {**_AS_PUBLISHED, "estimator": {"type": "oracle"}, "candidate_factor": 16},
        reads=("adarft",),
        selector=lambda config, n_prompts: TargetDifficulty(config.adarft),
        prepare=need_labels("adarft"),
    ),
    Method(
        "vcrl",
        "roll out, keep groups of high variance, sample more",
        {**_UNIFORM, "gate": "high_variance"},
    ),
    Method(
        "speed",
        "screen with a few completions, complete the mixed groups",
        _UNIFORM,
        reads=("speed", "max_rounds"),
        gate=make_screening,
    ),
):
    METHODS[_method.name] = _method


def get_method(name: str) -> Method:
    """Raises ConfigError with the nearest right name."""
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}.{nearest(str(name), METHODS)}")
    return METHODS[name]


def shares(
    shared: Mapping[str, Any], methods: Sequence[str], own: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Settings given to several methods: each one's share (``Method.share``), with what is its
    ``own`` by name.

    Raises ConfigError for a setting that none of them reads.
    """
    result = {name: get_method(name).share(shared, own.get(name, {})) for name in methods}
    for setting, value in shared.items():
        if not any(setting in share for share in result.values()):
            first = methods[0]
            # refuses it, and says who reads it
            get_method(first).config({**result[first], setting: value})
    return result


def make_curriculum(
    method: str,
    prompts: Sequence[Prompt],
    config: Mapping[str, Any] | CurriculumConfig | None = None,
    estimator: MakeEstimator = make_estimator,
) -> Curriculum:
    """A curriculum over ``prompts``; ``config`` holds settings of ``CurriculumConfig`` over the
    method's defaults.

    estimator: makes it, of the pool and the whole config, in the place of what ``config.estimator``
    describes. Raises ConfigError for an unknown method or setting and for one that the method does
    not read, DataError for an empty pool or duplicate keys.
    """
    return curriculum_of(method, prompts, get_method(method).config(config), estimator)


def curriculum_of(
    method: str,
    prompts: Sequence[Prompt],
    config: CurriculumConfig,
    estimator: MakeEstimator = make_estimator,
) -> Curriculum:
    """As ``make_curriculum``, with settings that were checked before: what ``Method.config``
    gave."""
    chosen = get_method(method)
    pool = PromptPool(chosen.prepare(prompts, config), config.seed)
    selector = chosen.selector(config, len(pool))
    gate = chosen.gate(config)
    return Curriculum(method, pool, estimator(pool, config), selector, gate, config)
