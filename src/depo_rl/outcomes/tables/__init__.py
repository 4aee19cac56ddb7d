"""Foreign tables: what other trainers leave behind and labelled pools, read as groups with
answers."""

from .dumps import Verdict
from .lesson import read_lesson
from .sources import (
    GroupHistory,
    LabelledPool,
    Source,
    SourceOptions,
    hidden_columns,
    parse_where,
    read_source,
)

__all__ = [
    "GroupHistory",
    "LabelledPool",
    "Source",
    "SourceOptions",
    "Verdict",
    "hidden_columns",
    "parse_where",
    "read_lesson",
    "read_source",
]
