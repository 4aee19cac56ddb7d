"""Limits that only catch a hang: many times what the slowest needs, for a machine busy with other
work is slow too.

The suite's own is ``timeout`` in pytest.ini; these end what a test waits for, before it.
"""

HANG_S = 600.0
"""Seconds that a run may take, or what is waited for in one: five times what the slowest takes, 120
on a machine whose cores are busy with other work."""
