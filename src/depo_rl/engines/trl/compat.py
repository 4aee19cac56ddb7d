"""What we rely on inside TRL, checked once at import, so that an unsupported release fails early
and clearly."""

from __future__ import annotations

import inspect

from ...errors import EngineError

_HOOKS = {
    "_generate_and_score_completions": ["inputs"],
    "_calculate_rewards": ["inputs", "prompts", "completions", "completion_ids_list"],
    "_generate": ["prompts"],
    "_tokenize_prompts": ["prompts"],
    "_compute_loss": ["model", "inputs"],
}


def require_trl() -> None:
    """Raises EngineError if TRL is missing or its ``GRPOTrainer`` lacks a hook that ``DEPOTrainer``
    wraps."""
    try:
        import trl
        from trl import GRPOTrainer
    except ImportError as error:
        raise EngineError(
            f"the TRL engine needs trl and torch ({error}): pip install './depo-rl[trl]'"
        ) from error
    for name, expected in _HOOKS.items():
        method = getattr(GRPOTrainer, name, None)
        found = list(inspect.signature(method).parameters)[1:] if method else None
        if found != expected:
            raise EngineError(
                f"trl {trl.__version__} is not supported: GRPOTrainer.{name} takes {found}, expected {expected}. "
                "Install trl>=1.16,<2"
            )
