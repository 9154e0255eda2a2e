"""Where two runs that should compute the same begin to differ: record both, then compare."""

from .comparison import Divergence, Report, compare
from .recorder import record

__all__ = ["Divergence", "Report", "compare", "record"]
