"""What stands between a problem and second-order steps: `latephase.check` and its report."""

from .report import CheckReport, Finding
from .run import check

__all__ = ["CheckReport", "Finding", "check"]
