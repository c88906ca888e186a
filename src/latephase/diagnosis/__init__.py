"""What stands between a problem and second-order steps: `latephase.check` and its report."""

from .checking import check
from .krylov import projection as projection
from .report import CheckReport, Finding

__all__ = ["CheckReport", "Finding", "check"]
