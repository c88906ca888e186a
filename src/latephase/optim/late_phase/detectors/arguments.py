"""Checks of detectors' settings."""

import math
from typing import Any


def check_between(where: str, value: Any, low: float, high: float) -> float:
    """Check a number strictly between two others.

    Raises:
        ValueError: it is none, or outside.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low < value < high:
        between = f"above {low:g}" if high == math.inf else f"between {low:g} and {high:g}, both excluded"
        raise ValueError(f"{where} must be a finite number {between}, got {value!r}")
    return float(value)


def check_whole(where: str, value: Any, least: int = 1) -> int:
    """Check a whole number that is at least so large.

    Raises:
        ValueError: it is none, or smaller.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{where} must be a whole number >= {least}, got {value!r}")
    return value
