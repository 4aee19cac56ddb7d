"""TRL's own reward functions that a configuration of ``depo train`` may name."""

from trl.rewards import get_soft_overlong_punishment

__all__ = ["get_soft_overlong_punishment"]
