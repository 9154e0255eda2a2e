"""Where two runs that should compute the same begin to differ: record both, then compare."""

from .compare import Divergence, Report, compare
from .record import record

__all__ = ["Divergence", "Report", "compare", "record"]
