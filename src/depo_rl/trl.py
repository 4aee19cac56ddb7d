"""The short way in for TRL.

    from depo_rl.trl import DEPOConfig, DEPOTrainer

The same names as in ``depo_rl.engines.trl``. Importing this imports TRL and torch; ``import
depo_rl`` does not.
"""

from .engines.trl import DEPOConfig, DEPOTrainer, TokenBudget

__all__ = ["DEPOConfig", "DEPOTrainer", "TokenBudget"]
