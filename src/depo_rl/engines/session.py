"""What an engine does besides its trainer's own affairs: what the adapters of TRL and verl share."""

from __future__ import annotations

from collections.abc import Sequence

from ..config import CurriculumConfig
from ..curriculum import Curriculum
from ..methods import MakeEstimator, make_curriculum, make_estimator
from ..pool import PromptPool
from ..survival import SurvivingEstimator
from ..types import Prompt


def live_curriculum(
    method: str, prompts: Sequence[Prompt], config: CurriculumConfig, make: MakeEstimator = make_estimator
) -> Curriculum:
    """As ``make_curriculum``, for a run that a failing estimator must not end (``SurvivingEstimator``)."""

    def surviving(pool: PromptPool, config: CurriculumConfig) -> SurvivingEstimator:
        return SurvivingEstimator(make(pool, config))

    return make_curriculum(method, prompts, config, surviving)
