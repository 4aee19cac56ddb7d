"""Reports: results of runs, tables over seeds, figures and one self-contained HTML page.

Reading and writing results needs the core only; figures and the page need the extra
``depo-rl[report]`` and import it when they are called.
"""

from .figures import save_figures
from .page import write_page
from .results import (
    AccuracyPoint,
    ReliabilityBin,
    RunResult,
    SkipAudit,
    SourceAccuracy,
    read_results,
    write_results,
)
from .table import Summary, summarise

__all__ = [
    "AccuracyPoint", "ReliabilityBin", "RunResult", "SkipAudit", "SourceAccuracy", "Summary", "read_results",
    "save_figures", "summarise", "write_page", "write_results",
]  # fmt: skip
