"""Limits that only catch a hang: many times what the slowest needs, for a machine busy with other
work is slow too.

The suite's own is ``timeout`` in pytest.ini; these end what a test waits for, before it.
"""

HANG_S = 1500.0
"""Seconds that a run may take, or what is waited for in one; three of verl took 400 on a busy
machine."""
