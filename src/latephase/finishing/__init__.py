"""Finishing a trained model: the race of what could go on, the winner's steps, the page that tells of it."""

from .command import FinishProgress as FinishProgress
from .command import arguments_of as arguments_of
from .finish import finish
from .report import FinishReport

__all__ = ["FinishReport", "finish"]
