"""Every error this package raises on purpose.

    DepoError
    |-- ConfigError          (ValueError)    a setting is unknown, mistyped, out of range or contradicts another
    |-- DataError            (ValueError)    a data set, log or pool holds something that cannot be used
    |-- PoolExhausted        (RuntimeError)  the pool cannot give the number of distinct prompts asked for
    |-- UnknownPrompt        (KeyError)      an outcome names a prompt that is not in the pool
    |-- StateMismatch        (ValueError)    a saved state belongs to another data set, method or version
    |-- CheckpointError      (OSError)       a checkpoint cannot be read or written
    |-- RewardError          (RuntimeError)  the verifier as a whole cannot work (one unscorable answer is data, not this)
    `-- EngineError          (RuntimeError)  an engine (TRL, verl) is missing, of an unsupported version, or misused

Each also is the standard error it replaces, so that ordinary ``except ValueError`` code keeps working, and each pickles
(workers send them home). A message is one line that says what, where, the rule and the mend.
"""

from __future__ import annotations


class DepoError(Exception):
    """Base of all errors raised on purpose by depo_rl."""


class ConfigError(DepoError, ValueError):
    """A setting is unknown, mistyped, out of range or contradicts another."""


class DataError(DepoError, ValueError):
    """A data set, log or pool holds something that cannot be used."""


class PoolExhausted(DepoError, RuntimeError):
    """The pool cannot give the number of distinct prompts asked for."""


class UnknownPrompt(DepoError, KeyError):
    """An outcome names a prompt that is not in the pool."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0]) if self.args else ""


class StateMismatch(DepoError, ValueError):
    """A saved state belongs to another data set, method or version."""


class CheckpointError(DepoError, OSError):
    """A checkpoint cannot be read or written."""


class RewardError(DepoError, RuntimeError):
    """The verifier as a whole cannot work; a single unscorable answer is data, not this error."""


class EngineError(DepoError, RuntimeError):
    """An engine is missing, of an unsupported version, or misused."""
