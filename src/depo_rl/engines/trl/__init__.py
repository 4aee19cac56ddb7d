"""TRL: ``DEPOTrainer`` and ``DEPOConfig``, drop-in subclasses of ``GRPOTrainer`` and
``GRPOConfig``.

from depo_rl.trl import DEPOConfig, DEPOTrainer  # short for depo_rl.engines.trl
trainer = DEPOTrainer(model=..., reward_funcs=..., args=DEPOConfig(method="depo+", ...), train_dataset=...)
trainer.train()
"""

from .compat import require_trl

require_trl()

from .callbacks import TokenBudget  # noqa: E402 (after the check that explains a missing or unsupported TRL)
from .config import DEPOConfig  # noqa: E402
from .trainer import DEPOTrainer  # noqa: E402

__all__ = ["DEPOConfig", "DEPOTrainer", "TokenBudget"]
