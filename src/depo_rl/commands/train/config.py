"""The settings of ``depo train``, torch-free and closed: unknown names are refused with the nearest
right one.

``file`` reads them from YAML. Those of the section ``trl`` are fields of ``DEPOConfig``, checked
against it in ``trl_args``, because that needs TRL.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ...config import CurriculumConfig
from ...engines.session import engine_config
from ...errors import ConfigError
from ...validation import Settings, nearest, validated

OWNED = {
    "output_dir": "output", "resume_from_checkpoint": "resume", "method": "method", "curriculum": "curriculum",
    "correct_reward": "correct.reward", "correct_threshold": "correct.threshold", "outcome_log": "outcome_log",
    "source_column": "data.columns.source", "reward_weights": "weight of each reward",
    "model_init_kwargs": "model", "trust_remote_code": "model.trust_remote_code",
}  # fmt: skip
"""Fields of DEPOConfig that a section of ours sets -> that section."""


class ModelSettings(Settings):
    """The policy: a hub name or a local folder."""

    name: str | None = Field(None, min_length=1, description="hub name")
    path: str | None = Field(None, min_length=1, description="local folder")
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "float32",
        description="of the weights that are trained; trl.bf16 makes the arithmetic bfloat16",
    )
    attn_implementation: str | None = None
    trust_remote_code: bool = False

    @property
    def location(self) -> str:
        return str(self.path or self.name)

    @model_validator(mode="after")
    def _one_place(self) -> ModelSettings:
        _needs_one_place(self, "model")
        return self


class Columns(Settings):
    """Column of the data set for each thing; ``a.b`` is field b of the mapping in column a."""

    prompt: str = Field("prompt", min_length=1, description="a text, or a list of {role, content}")
    answer: str | None = Field("answer", description="gold answer; null if no reward needs one")
    source: str | None = Field(
        None, description="data set or domain of a row; null: the data set's own name"
    )
    pass_rate: str | None = Field(
        None,
        description="published pass rate, for polaris and oracle: in [0, 1], or a text such as 37.5% or 3/8",
    )


class DataSource(Settings):
    """Rows from the hub or from local .parquet, .jsonl, .json or .csv files, the last three also
    packed (.gz)."""

    name: str | None = Field(None, min_length=1, description="hub name")
    path: str | tuple[str, ...] | None = Field(
        None, description="local: a file, a glob, a folder, or a list of them"
    )
    subset: str | None = Field(
        None, description="hub: configuration name; of a local folder: the folder in it"
    )
    split: str = Field("train", min_length=1, description="split, of the hub or of a local folder")
    limit: int | None = Field(None, ge=1, description="keep the first so many good rows")

    @field_validator("path", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        paths = [value] if isinstance(value, str) else value
        is_list = isinstance(paths, (list, tuple)) and len(paths) > 0
        if value is None or (is_list and all(isinstance(path, str) and path for path in paths)):
            return value
        raise ValueError("must be a file, a glob or a folder, or a list of them")

    @property
    def paths(self) -> tuple[str, ...]:
        """The entries of ``path``, one or several; none without it."""
        return (self.path,) if isinstance(self.path, str) else self.path or ()


class EvalSettings(DataSource):
    """Held-out rows; everything not named here is as for training."""

    split: str = Field("test", min_length=1, description="split, of the hub or of a local folder")
    columns: Columns | None = None

    @model_validator(mode="after")
    def _one_place(self) -> EvalSettings:
        _needs_one_place(self, "data.eval")
        return self


class DataSettings(DataSource):
    """Training rows, how a row becomes a prompt, and which rows may be left out."""

    columns: Columns = Columns.model_validate({})
    eval: EvalSettings | None = None
    chat: bool = Field(
        True, description="render prompts with the tokenizer's chat template; false: plain text"
    )
    system_prompt: str | None = Field(None, min_length=1)
    prompt_template: str | None = Field(
        None, description="text around the question, which stands for {prompt}"
    )
    max_prompt_tokens: int | None = Field(None, ge=1, description="leave longer prompts out")
    drop_bad_rows: bool = Field(
        False, description="leave out rows without prompt or answer instead of refusing"
    )
    drop_duplicates: bool = Field(
        False, description="keep the first of equal prompts instead of refusing"
    )

    @model_validator(mode="after")
    def _consistent(self) -> DataSettings:
        if self.prompt_template is not None and "{prompt}" not in self.prompt_template:
            raise ValueError(
                "data.prompt_template must contain {prompt}, the place of the question"
            )
        if self.system_prompt is not None and not self.chat:
            raise ValueError(
                "data.system_prompt needs data.chat = true; plain text belongs in data.prompt_template"
            )
        _needs_one_place(self, "data")
        return self


class MathReward(Settings):
    """A verifier of final answers, judged in worker processes with a wall-clock limit."""

    kind: Literal["boxed", "gsm8k", "math_verify"]
    weight: float = 1.0
    timeout_s: float = Field(5.0, gt=0.0, description="seconds for one completion")
    n_workers: int = Field(2, ge=1, description="processes per rank")


class PythonReward(Settings):
    """A function of yours: ``module:function`` or ``file.py:function``.

    By default a TRL reward function ``f(prompts, completions, **columns) -> list``. With
    ``in_workers`` a function ``f(completion, answer, **extras) -> number`` that is judged in worker
    processes. With ``settings`` a factory that returns the function.
    """

    kind: Literal["python"] = "python"
    function: str = Field(pattern=r"^.+:[A-Za-z_][\w.]*$")
    weight: float = 1.0
    settings: dict[str, Any] | None = Field(
        None, description="the function is a factory: call it with these first"
    )
    in_workers: bool = False
    timeout_s: float = Field(5.0, gt=0.0, description="in_workers: seconds for one completion")
    n_workers: int = Field(2, ge=1, description="in_workers: processes per rank")
    extra_columns: tuple[str, ...] = Field(
        (), description="in_workers: columns passed on as keyword arguments"
    )


class SoftOverlongReward(Settings):
    """DAPO's soft overlong punishment (TRL's): 0 up to max - cache tokens, then linearly down to -1
    at max."""

    kind: Literal["soft_overlong"] = "soft_overlong"
    weight: float = 1.0
    cache: int = Field(ge=1, description="tokens before the maximum where the punishment begins")
    max_completion_length: int | None = Field(
        None, ge=1, description="default: trl.max_completion_length"
    )


RewardSettings = MathReward | PythonReward | SoftOverlongReward
_REWARDS: dict[str, type[RewardSettings]] = {
    "boxed": MathReward, "gsm8k": MathReward, "math_verify": MathReward,
    "python": PythonReward, "soft_overlong": SoftOverlongReward,
}  # fmt: skip


class CorrectSettings(Settings):
    """What counts as a correct completion, for the estimator and the gates; never the shaped
    sum."""

    reward: str | None = Field(
        None, description="name of the reward function that says so; default: the first"
    )
    threshold: float | None = Field(
        None, description="its reward from here on is correct; not given: 0.5"
    )


class TrainConfig(Settings):
    """One training run."""

    model: ModelSettings
    data: DataSettings
    reward: tuple[RewardSettings, ...] = Field(min_length=1)
    method: str = "depo"
    curriculum: dict[str, Any] = Field(
        default_factory=dict, description="settings of CurriculumConfig"
    )
    correct: CorrectSettings = CorrectSettings.model_validate({})
    prompts_per_step: int | None = Field(
        None,
        ge=1,
        description="sets trl.gradient_accumulation_steps to fit, whatever the number of processes",
    )
    trl: dict[str, Any] = Field(
        default_factory=dict, description="settings of DEPOConfig, thus of GRPOConfig"
    )
    peft: dict[str, Any] | None = Field(
        None, description="settings of peft.LoraConfig; null: train all weights"
    )
    output: str = Field(
        min_length=1, description="folder of checkpoints, logs, results.json and the final model"
    )
    resume: str = Field("never", min_length=1, description="auto, never, or a checkpoint folder")
    save_model: bool = Field(True, description="write the final model to output/model")
    outcome_log: bool = Field(True, description="write output/outcomes.jsonl")

    @field_validator("curriculum", "trl", mode="before")
    @classmethod
    def _empty_section(cls, value: Any) -> Any:
        """A section whose every line is commented out reads as null."""
        return {} if value is None else value

    @property
    def group_size(self) -> int:
        return whole_number(self.trl, "num_generations", 8, least=2)

    def curriculum_config(self) -> CurriculumConfig:
        """The method's defaults with this file's settings over them; raises ConfigError."""
        seed = whole_number(self.trl, "seed", 42, least=0)
        owned = {"group_size": ("trl.num_generations", self.group_size), "seed": ("trl.seed", seed)}
        return engine_config(self.method, self.curriculum, owned, "curriculum")


def _needs_one_place(settings: Any, where: str) -> None:
    if (settings.name is None) == (settings.path is None):
        both = "both are set" if settings.name is not None else "neither is set"
        raise ValueError(f"{where} needs either name (on the hub) or path (local); {both}")


def whole_number(settings: Mapping[str, Any], name: str, default: int, least: int) -> int:
    """An integer of the ``trl`` section that is needed before TRL is imported."""
    value = settings.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        why = ": with 1 no group can teach anything" if name == "num_generations" else ""
        raise ConfigError(
            f"trl.{name} = {value!r}: must be a whole number of at least {least}{why}"
        )
    return value


def parse_rewards(given: Any) -> tuple[RewardSettings, ...]:
    """``reward: boxed``, one mapping, or a list of either."""
    if given is None:
        raise ConfigError(f"reward: missing; one of {', '.join(_REWARDS)}, or a list of them")
    entries = given if isinstance(given, list) else [given]
    return tuple(
        _reward(entry, f"reward.{i}" if isinstance(given, list) else "reward")
        for i, entry in enumerate(entries)
    )


def _reward(entry: Any, where: str) -> RewardSettings:
    settings = {"kind": entry} if isinstance(entry, str) else entry
    if not isinstance(settings, dict) or "kind" not in settings:
        raise ConfigError(
            f"{where} = {entry!r}: must be a kind ({', '.join(_REWARDS)}) or a mapping with a kind"
        )
    if not isinstance(settings["kind"], str) or settings["kind"] not in _REWARDS:
        raise ConfigError(
            f"{where}.kind = {settings['kind']!r}: unknown.{nearest(str(settings['kind']), _REWARDS)}"
        )
    return validated(_REWARDS[settings["kind"]], settings, where)


def check_sections(config: TrainConfig) -> None:
    """What needs more than one section to judge."""
    for name in config.trl:
        if name in OWNED:
            raise ConfigError(
                f"trl.{name}: is set by {OWNED[name]!r} of this file; set that and leave this out"
            )
    config.curriculum_config()
    needs_answer = [
        r
        for r in config.reward
        if isinstance(r, MathReward) or (isinstance(r, PythonReward) and r.in_workers)
    ]
    if needs_answer and config.data.columns.answer is None:
        raise ConfigError(
            f"data.columns.answer = null: the reward {needs_answer[0].kind!r} needs the gold answer's column"
        )
    if all(isinstance(reward, SoftOverlongReward) for reward in config.reward):
        raise ConfigError(
            "reward: soft_overlong alone says nothing about correctness; list the verifier before it"
        )
