"""Every error this package raises on purpose.

    DepoError
    |-- ConfigError          (ValueError)    a setting is unknown, mistyped, out of range or contradicts another
    |-- DataError            (ValueError)    a data set, log or pool holds something that cannot be used
    |-- PoolExhausted        (RuntimeError)  the pool cannot give the number of distinct prompts asked for
    |-- UnknownPrompt        (KeyError)      an outcome names a prompt that is not in the pool
    |-- StateMismatch        (ValueError)    a saved state belongs to another data set, method or version
    |-- CheckpointError      (OSError)       a checkpoint cannot be read or written
    |-- RewardError          (RuntimeError)  the verifier as a whole cannot work (one unscorable answer is only data)
    `-- EngineError          (RuntimeError)  an engine (TRL, verl) is missing, of an unsupported version, or misused

Each also is the standard error it replaces, so that ordinary ``except ValueError`` code keeps
working, and each pickles (workers send them home). A message is one line that says what, where, the
rule and the mend.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


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


def expect_fields(what: str, state: Any, expected: Iterable[str]) -> None:
    """Strictness of every ``load_state_dict``: a dict with exactly the ``expected`` names, or
    StateMismatch.

    what: the owner of the state, for the message ("curriculum", "pool", ...). expected: names, or
    the owner's present state, whose ``type``, if it has one, must be the same.
    """
    if not isinstance(state, dict):
        raise StateMismatch(
            f"{what} state must be a dict, got {type(state).__name__}: it is not of this package"
        )
    if isinstance(expected, Mapping) and "type" in expected and "type" in state:
        expect_same(what, "type", state["type"], expected["type"])
    given = set(state)
    wanted = set(expected)
    if given != wanted:
        extra = sorted(map(str, given - wanted))
        missing = sorted(wanted - given)
        raise StateMismatch(
            f"{what} state was saved with fields {sorted(map(str, given))}, this version has {sorted(wanted)} "
            f"(unknown: {', '.join(extra) or 'none'}; missing: {', '.join(missing) or 'none'}): resume with the "
            "version and settings that saved it"
        )


def expect_same(what: str, name: str, saved: object, own: object) -> None:
    """``saved == own``, or a StateMismatch that names both and the mend."""
    if saved != own:
        raise StateMismatch(
            f"{what} state was saved with {name} {saved!r}, this run has {own!r}: resume with the {name} the run was "
            "started with, or start anew in another folder"
        )
