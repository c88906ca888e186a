"""Versioned test problems, found by name: those of the papers, installed ones, and the user's own."""

from .metrics import Metric
from .problem import Problem, Splits, TrainingSetting
from .registry import ProblemError, get, names

__all__ = ["Metric", "Problem", "ProblemError", "Splits", "TrainingSetting", "get", "names"]
