"""Verifiable rewards, judged in worker processes that are killed at a wall-clock limit and
replaced.

Importing this starts nothing and imports neither torch nor trl nor math-verify.

Example::

    from depo_rl.rewards import math_reward, in_workers

    trainer = GRPOTrainer(reward_funcs=[math_reward("math_verify", timeout_s=5.0)], ...)
    own = in_workers(my_function, answer_column="solution", n_workers=4)
"""

from .math import boxed_reward, gsm8k_reward, math_verify_reward
from .pool import RewardFunction, VerifierPool
from .reward import MathKind, WorkerReward, completion_text, in_workers, math_reward

__all__ = [
    "MathKind",
    "RewardFunction",
    "VerifierPool",
    "WorkerReward",
    "boxed_reward",
    "completion_text",
    "gsm8k_reward",
    "in_workers",
    "math_reward",
    "math_verify_reward",
]
