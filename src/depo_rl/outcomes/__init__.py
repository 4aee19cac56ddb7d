"""The outcome log: one row a group, written so that it cannot hurt training, read so that nothing
bad slips in."""

from .reader import OutcomeLog, read_log
from .schema import COLUMNS, FIELD_PREFIX, LogRow
from .writer import OutcomeLogWriter

__all__ = ["COLUMNS", "FIELD_PREFIX", "LogRow", "OutcomeLog", "OutcomeLogWriter", "read_log"]
