"""The settings of a Newton step in its param groups: shorthands, checks, plain form, presets."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...parameters import ParameterSpace
from ..parts import (
    DAMPINGS,
    Fixed,
    LevenbergMarquardt,
    NonMonotone,
    Part,
    TargetRatio,
    check_number,
    check_same,
    damping_of,
    either,
    part_of,
    trainable_size,
)
from .cg import CG
from .curvatures import GGN, Armijo, Blocks, Hessian
from .direct import Direct

CURVATURES: dict[str, type[Part]] = {each.kind: each for each in (GGN, Hessian)}
SOLVERS: dict[str, type[Part]] = {each.kind: each for each in (CG, Direct)}
RULES: dict[str, type[Part]] = {**DAMPINGS, TargetRatio.kind: TargetRatio, NonMonotone.kind: NonMonotone}
SEARCHES: dict[str, type[Part]] = {each.kind: each for each in (Armijo,)}
BLOCKS: dict[str, type[Part]] = {each.kind: each for each in (Blocks,)}

LATE_PHASE: dict[str, Any] = {"damping": LevenbergMarquardt(0.3, thresholds=(0.0, 0.5)), "solver": CG(max_iter=3)}
"""What lowered the held-out loss most per second from late checkpoints; benchmarks/late_phase.py measures it."""
PUBLISHED: dict[str, Any] = {"damping": LevenbergMarquardt(1.0), "solver": CG(), "line_search": Armijo()}
"""The settings of Tatzel et al. (2022) and of their program."""
FIXED_RATE: dict[str, Any] = {
    "damping": Fixed(1.0),
    "solver": CG(candidates="last"),
    "line_search": False,
    "blocks": Blocks(),
}
"""Block-diagonal Hessian-free as Zhang et al. (2017) have it."""

PARTS = ("curvature", "solver", "damping", "line_search", "blocks")
"""Options that are parts."""
GLOBAL = (*PARTS, "debias")
"""Options that all param groups have in common."""
OPTIONS = ("lr", *GLOBAL)
"""Options of the constructor."""
PER_GROUP: dict[str, Any] = {"damping_scale": 1.0, "tolerance": None}
"""What a param group may have for itself beside `lr`; the tolerance, with blocks, is the solver's where it is None."""


def _curvature(given: Any, like: Part | None) -> Part | None:
    return CURVATURES[given]() if isinstance(given, str) and given in CURVATURES else None


def _switch(part: type[Part], off: Any) -> Callable[[Any, Part | None], Any]:
    def switched(given: Any, like: Part | None) -> Any:
        return off if given is False else part() if given is True else None

    return switched


_SLOTS: dict[str, tuple[Mapping[str, type[Part]], Callable[[Any, Part | None], Any], str]] = {
    "curvature": (CURVATURES, _curvature, "one of ggn, hessian, or a part: GGN(...) or Hessian(...)"),
    "solver": (SOLVERS, lambda given, like: None, f"a part: {either(SOLVERS)}"),
    "line_search": (SEARCHES, _switch(Armijo, False), "True or False, or a part: Armijo(...)"),
    "blocks": (BLOCKS, _switch(Blocks, None), "None, True or False, or a part: Blocks(...)"),
}
"""For each option its parts by kind, what its shorthands mean, and what it may be in words."""


def part(name: str, given: Any, like: Any = None) -> Any:
    """The part that is meant: itself, or what a shorthand or a table of settings says.

    Args:
        name: of the option.
        given: part, shorthand or table.
        like: a part that gives what shorthand and table leave open, as those of a preset do. Default none.

    Raises:
        ValueError: none of these, or a field with a value that will not do.
        TypeError: a preconditioner that is none.
    """
    like = like if isinstance(like, Part) else None
    if name == "damping":
        return damping_of(given, RULES, like)
    kinds, shorthand, choices = _SLOTS[name]
    if isinstance(given, tuple(kinds.values())) or (name == "blocks" and given is None):
        return given
    if isinstance(given, Mapping):
        return part_of(given, kinds, like, name)
    found = shorthand(given, like)
    if found is None and not (name == "blocks" and given is False):
        raise ValueError(f"{name} must be {choices}; got {given!r}")
    return found


def over(preset: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a preset with others in place of them; a shorthand or a table changes what it says of a part."""
    return {**preset, **{name: part(name, x, preset.get(name)) if name in PARTS else x for name, x in given.items()}}


def check_groups(groups: Sequence[dict[str, Any]]) -> None:
    """Put parts in place of shorthands, and check that param groups are right and differ only where they may.

    Raises:
        ValueError: naming the option, its value and what would do; or an option that differs between groups.
    """
    for group in groups:
        for name in PARTS:
            group[name] = part(name, group[name])
        for name in ("lr", "damping_scale"):
            check_number(name, group[name])
        if not isinstance(group.get("debias", False), bool):
            raise ValueError(f"debias must be True or False, got {group['debias']!r}")
        if group["tolerance"] is not None:
            check_number("tolerance", group["tolerance"])
            if group["blocks"] is None or not group["solver"].multiplies:
                raise ValueError("tolerance of a param group goes with blocks=True; write solver=CG(tolerance=...)")
    first = groups[0]
    if first["blocks"] is not None and first["blocks"].samples is not None and first["curvature"].kind != "ggn":
        raise ValueError("Blocks.samples goes with curvature='ggn' only")
    if not first["solver"].multiplies:
        _check_direct(first)
    elif first.get("debias", False) and not first["solver"].reweighs:
        raise ValueError(f"debias=True goes with CG, and not with {type(first['solver']).__name__}")
    elif first["blocks"] is not None and first["blocks"].group is not None and not first["solver"].shares:
        raise ValueError(f"Blocks.group goes with CG, and not with {type(first['solver']).__name__}")
    elif isinstance(first["damping"], TargetRatio | NonMonotone):
        rule = type(first["damping"]).__name__
        raise ValueError(f"{rule} goes with Direct, whose candidates are those of a damping each; take a number")
    check_same(groups, (*GLOBAL, "momentum"))


def _check_direct(group: Mapping[str, Any]) -> None:
    """Check what goes with a solver that takes rows instead of products."""
    if group["curvature"].kind != "ggn":
        raise ValueError("Direct goes with curvature='ggn': the Hessian has no rows; take CG()")
    if group["curvature"].compile or group["curvature"].dtype is not None:
        raise ValueError("GGN.compile and GGN.dtype are those of products, which Direct does not ask for")
    if group.get("debias", False):
        raise ValueError("debias=True goes with CG, whose directions it takes")
    if group["blocks"] is not None and (group["blocks"].samples is not None or group["blocks"].group is not None):
        raise ValueError("Blocks.samples and Blocks.group go with CG; Direct solves every block exactly on every rank")


def blocks_of(groups: Sequence[Mapping[str, Any]], space: ParameterSpace) -> tuple[list[int], list[float]]:
    """Size and tolerance of each block: the param groups that can move, or all of them as one."""
    shared = groups[0]["solver"].tolerance
    if groups[0]["blocks"] is None:
        return [space.size], [float(shared)]
    tolerances = [shared if group["tolerance"] is None else float(group["tolerance"]) for group in groups]
    sizes = [trainable_size(group) for group in groups]
    found = [(size, tolerance) for size, tolerance in zip(sizes, tolerances, strict=True) if size]
    return [size for size, _ in found], [float(tolerance) for _, tolerance in found]
