"""Finishing a trained model: the race of what could go on, the winner's steps, the page that tells of it."""

from .finish import finish
from .report import FinishReport

__all__ = ["FinishReport", "finish"]
