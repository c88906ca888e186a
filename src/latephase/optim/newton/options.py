"""Arguments of the Hessian-free optimizer: their checks, and what a param group may set for itself."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...parameters import ParameterSpace
from ..parts import Damping, Fixed, LevenbergMarquardt, check_number, trainable_size

CHOICES = {
    "curvature": ("ggn", "hessian"),
    "cg_stopping": ("martens", "residual"),
    "nonpositive_curvature": ("truncate", "ignore", "absolute"),
    "reduction_ratio": ("undamped", "damped"),
    "ratio_data": ("evaluation", "objective"),
}
FLAGS = ("adapt_damping", "line_search", "cg_backtracking", "block_diagonal", "compile", "iterates_on_host", "debias")
NONNEGATIVE = ("lr", "damping", "damping_scale", "cg_decay_x0", "cg_tolerance", "structural_damping")
PAIRS = ("damping_thresholds", "damping_factors", "damping_range")
OTHERS = ("cg_max_iter", "curvature_dtype", "max_step_norm", "block_samples")
LATE_PHASE = {"damping": 0.3, "cg_max_iter": 3, "damping_thresholds": (0.0, 0.5)}
"""What lowered the held-out loss most per second from late checkpoints; benchmarks/late_phase.py measures it."""
FIXED_RATE: dict[str, Any] = {
    "block_diagonal": True,
    "adapt_damping": False,
    "line_search": False,
    "cg_backtracking": False,
}
"""Block-diagonal Hessian-free as Zhang et al. (2017) have it."""
PER_GROUP = ("lr", "damping_scale", "cg_tolerance")


def check_options(group: Mapping[str, Any]) -> None:
    """Check the options of one param group.

    Raises:
        ValueError: naming the option, its value and what would do.
    """
    for name, choices in CHOICES.items():
        if group[name] not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}; got {group[name]!r}")
    for name in FLAGS:
        if not isinstance(group[name], bool):
            raise ValueError(f"{name} must be True or False, got {group[name]!r}")
    for name in NONNEGATIVE:
        check_number(name, group[name])
    cap = group["cg_max_iter"]
    if not isinstance(cap, int) or isinstance(cap, bool) or cap < 1:
        raise ValueError(f"cg_max_iter must be an integer >= 1, got {cap!r}")
    dtype = group["curvature_dtype"]
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"curvature_dtype must be None or a floating-point torch.dtype, got {dtype!r}")
    if group["max_step_norm"] is not None:
        check_number("max_step_norm", group["max_step_norm"])
        if group["max_step_norm"] == 0:
            raise ValueError("max_step_norm must be None or above 0: with 0 no step could be taken")
    samples = group["block_samples"]
    if samples is not None and (not isinstance(samples, int) or isinstance(samples, bool) or samples < 1):
        raise ValueError(f"block_samples must be None or an integer >= 1, got {samples!r}")
    if samples is not None and not (group["block_diagonal"] and group["curvature"] == "ggn"):
        raise ValueError("block_samples is of block_diagonal=True with curvature='ggn' only")
    _check_damping_options(group)


def _check_damping_options(group: Mapping[str, Any]) -> None:
    for name in PAIRS:
        pair = group[name]
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(_is_number(x) for x in pair):
            raise ValueError(f"{name} must be a pair of numbers, got {pair!r}")
    low, high = group["damping_thresholds"]
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"damping_thresholds must be finite and in rising order, got {group['damping_thresholds']!r}")
    fall, rise = group["damping_factors"]
    if not (0 < fall <= 1 <= rise < math.inf):
        raise ValueError(f"damping_factors must be (fall, rise) with 0 < fall <= 1 <= rise, got ({fall!r}, {rise!r})")
    low, high = group["damping_range"]
    if not (0 <= low < high) or not (low <= group["damping"] <= high or group["damping"] == 0):
        raise ValueError(
            f"damping_range must be (low, high) with 0 <= low < high and damping inside (or 0, where none is wanted), "
            f"got ({low!r}, {high!r}) and damping {group['damping']!r}"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def check_groups(groups: Sequence[Mapping[str, Any]]) -> None:
    """Check that param groups differ only where they may.

    Raises:
        ValueError: a global option differs between groups.
    """
    for index, group in enumerate(groups):
        check_options(group)
        if "preconditioner" in group:
            raise ValueError(
                f"preconditioner must be the same for all param groups: take it out of group {index}, and give it to "
                "HessianFree(..., preconditioner=...)"
            )
    first = groups[0]
    for name in (*CHOICES, *FLAGS, *NONNEGATIVE, *PAIRS, *OTHERS):
        may_differ = name in PER_GROUP and (name != "cg_tolerance" or first["block_diagonal"])
        for index, group in enumerate(groups):
            if not may_differ and not _same(group[name], first[name]):
                hint = " (unless block_diagonal=True)" if name == "cg_tolerance" else ""
                raise ValueError(
                    f"{name} must be the same in all param groups{hint}: group 0 has {first[name]!r}, "
                    f"group {index} has {group[name]!r}"
                )


def _same(value: Any, other: Any) -> bool:
    """Whether two options agree; a pair that went through a file is a list."""
    return tuple(value) == tuple(other) if isinstance(value, (tuple, list)) else value == other


def blocks_of(groups: Sequence[Mapping[str, Any]], space: ParameterSpace) -> tuple[list[int], list[float]]:
    """Size and tolerance of each block: the param groups that can move, or all of them as one."""
    if not groups[0]["block_diagonal"]:
        return [space.size], [float(groups[0]["cg_tolerance"])]
    found = [(trainable_size(group), float(group["cg_tolerance"])) for group in groups]
    sizes, tolerances = zip(*[block for block in found if block[0]], strict=True)
    return list(sizes), list(tolerances)


def rule_of(options: Mapping[str, Any]) -> Damping:
    """How the damping goes on."""
    if not options["adapt_damping"]:
        return Fixed(options["damping"])
    return LevenbergMarquardt(
        options["damping"],
        options["damping_thresholds"],
        options["damping_factors"],
        options["damping_range"],
        options["reduction_ratio"],
        options["ratio_data"],
    )
