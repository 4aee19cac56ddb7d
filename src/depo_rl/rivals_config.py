"""Settings of the rivals' own rules, with the values of their papers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from .validation import Settings, Share


class DPSSettings(Settings):
    """Three-state chain per prompt (arXiv 2603.10887); values of the authors' scripts for
    mathematics."""

    type: Literal["dps"] = "dps"
    decay: Share = Field(0.7, description="of transition counts, per policy step")
    prior: float = Field(1.0, gt=0.0, description="Dirichlet count of each transition")


class BOTSSettings(Settings):
    """Counts per prompt and two reference models (arXiv 2510.26374); values of the authors'
    example."""

    type: Literal["bots"] = "bots"
    weak: str | None = Field(
        None, description="column with the weak reference's pass rate; null: no references"
    )
    strong: str | None = Field(None, description="column with the strong reference's pass rate")
    fade: Share = Field(0.1, description="lambda: share of the counts forgotten per step")
    rho: Share = Field(0.1, description="weight of the references' evidence, in groups per step")
    capability_inertia: Share = Field(
        0.9, description="weight of the past in the policy's capability"
    )

    @model_validator(mode="after")
    def _both_or_none(self) -> BOTSSettings:
        if (self.weak is None) != (self.strong is None):
            raise ValueError(
                f"weak and strong must be named together, got weak={self.weak!r}, strong={self.strong!r}"
            )
        return self


class GRESOSettings(Settings):
    """GRESO (arXiv 2506.02177); values of the authors' code."""

    q_easy: Share = Field(0.5, description="exploration rate of all-right prompts at first")
    q_hard: Share = Field(0.5, description="exploration rate of all-wrong prompts at first")
    floor: Share = Field(0.01, description="least probability of keeping a prompt")
    step: Share = Field(0.01, description="change of an exploration rate per batch")
    limits: tuple[Share, Share] = Field((0.05, 0.95), description="of the exploration rates")
    easy_target: Share = Field(0.25 / 3, description="share of all-right groups aimed at")
    hard_target: Share = Field(0.5 / 3, description="share of all-wrong groups aimed at")

    @model_validator(mode="after")
    def _ordered(self) -> GRESOSettings:
        if self.limits[0] > self.limits[1]:
            raise ValueError(f"limits must be two rates with low <= high, got {self.limits}")
        return self


class PoolSettings(Settings):
    """prime-rl's difficulty pools; its values."""

    hard: float = Field(0.2, gt=0.0, description="sampling weight")
    normal: float = Field(1.0, gt=0.0, description="sampling weight")
    easy: float = Field(0.2, gt=0.0, description="sampling weight")
    unseen: float = Field(1.0, gt=0.0, description="sampling weight")
    hard_below: Share = Field(0.25, description="last pass rate at or below which a prompt is hard")
    easy_above: Share = Field(0.75, description="last pass rate above which a prompt is easy")

    @model_validator(mode="after")
    def _ordered(self) -> PoolSettings:
        if self.hard_below > self.easy_above:
            raise ValueError(
                f"hard_below must be <= easy_above, got {self.hard_below} and {self.easy_above}"
            )
        return self


class AdaRFTSettings(Settings):
    """AdaRFT (arXiv 2504.05520); the authors' values."""

    start: float = Field(0.0, ge=0.0, le=100.0, description="target difficulty at first")
    rate: float = Field(50.0, ge=0.0, description="eta: largest step of the target")
    sensitivity: float = Field(2.0, ge=0.0, description="alpha")
    goal: Share = Field(0.5, description="beta: mean pass rate aimed at")


class SPEEDSettings(Settings):
    """SPEED (arXiv 2506.09016); values of the authors' scripts."""

    n_init: int = Field(
        4, ge=2, description="completions of a prompt before it is judged; at most group_size"
    )
    batches: int = Field(4, ge=1, description="prompts screened per generation round, in batches")
