"""Limits that only catch a hang: many times what the slowest needs, for a machine busy with other
work is slow too.

The suite's own is ``timeout`` in pyproject.toml; these end the processes that tests start, before
it.
"""

HANG_S = 600.0
"""Seconds that a process of a test may take; the slowest, a run that is killed again and again,
needs 40."""

AT_ONCE_S = 20.0
"""Seconds that what must not wait may take: it needs milliseconds, and what it must not wait for
lasts minutes."""
