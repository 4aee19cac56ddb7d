"""depo_rl: train reasoning models with reinforcement learning without paying for rollouts that
teach nothing.

Names are imported on first use, so that ``import depo_rl`` costs nothing and pulls in neither torch
nor numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import CurriculumConfig as CurriculumConfig
    from .curriculum import Curriculum as Curriculum
    from .errors import DepoError as DepoError
    from .methods import METHODS as METHODS
    from .methods import make_curriculum as make_curriculum
    from .pool import PromptPool as PromptPool
    from .types import GroupOutcome as GroupOutcome
    from .types import Prediction as Prediction
    from .types import Prompt as Prompt
    from .types import Settlement as Settlement
    from .types import prompt_key as prompt_key

__version__ = "0.1.0"

_HOME = {
    "Curriculum": "curriculum",
    "CurriculumConfig": "config",
    "DepoError": "errors",
    "GroupOutcome": "types",
    "METHODS": "methods",
    "Prediction": "types",
    "Prompt": "types",
    "PromptPool": "pool",
    "Settlement": "types",
    "make_curriculum": "methods",
    "prompt_key": "types",
}

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'depo_rl' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
