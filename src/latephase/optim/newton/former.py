"""The flat options that parts took the place of: what each is now, for errors and for states that were saved before."""

from collections.abc import Mapping
from typing import Any

from ..parts import Fixed, LevenbergMarquardt
from .cg import CG
from .curvatures import GGN, Armijo, Blocks, Hessian

_FIELDS: dict[str, tuple[str, str, str]] = {
    "cg_max_iter": ("solver", "CG", "max_iter"),
    "cg_stopping": ("solver", "CG", "stopping"),
    "cg_tolerance": ("solver", "CG", "tolerance"),
    "cg_decay_x0": ("solver", "CG", "warm_start"),
    "preconditioner": ("solver", "CG", "preconditioner"),
    "nonpositive_curvature": ("solver", "CG", "nonpositive_curvature"),
    "cg_backtracking": ("solver", "CG", "candidates"),
    "max_step_norm": ("solver", "CG", "max_step_norm"),
    "iterates_on_host": ("solver", "CG", "on_host"),
    "curvature_dtype": ("curvature", "GGN", "dtype"),
    "compile": ("curvature", "GGN", "compile"),
    "structural_damping": ("curvature", "GGN", "structural_damping"),
    "damping_thresholds": ("damping", "LevenbergMarquardt", "thresholds"),
    "damping_factors": ("damping", "LevenbergMarquardt", "factors"),
    "damping_range": ("damping", "LevenbergMarquardt", "range"),
    "reduction_ratio": ("damping", "LevenbergMarquardt", "model"),
    "ratio_data": ("damping", "LevenbergMarquardt", "data"),
    "block_samples": ("blocks", "Blocks", "samples"),
    "block_group": ("blocks", "Blocks", "group"),
}
"""Flat name -> option, part and field."""
FORMER = (*_FIELDS, "adapt_damping", "block_diagonal")
_OPTIONS = {"lr": 1.0, "damping_scale": 1.0, "line_search": True, "debias": False, "tolerance": None}


def now(name: str, value: Any) -> str | None:
    """What became of an option; None where there never was one."""
    return f"is {written(name, value)}" if name in FORMER else None


def written(name: str, value: Any) -> str:
    """How a flat option is written with parts."""
    if name == "adapt_damping":
        return "damping=LevenbergMarquardt(...)" if value else "damping=Fixed(...)"
    if name == "block_diagonal":
        return f"blocks={bool(value)}"
    option, part, field = _FIELDS[name]
    if name == "cg_backtracking":
        value = "best" if value else "last"
    plain = isinstance(value, (str, int, float, tuple, list, type(None)))
    return f"{option}={part}({field}={repr(value) if plain else '...'})"


def in_a_table(name: str, value: Any) -> str:
    """How a flat option is written in a file."""
    if name == "adapt_damping":
        rule = "levenberg_marquardt" if value else "fixed"
        return f'damping.kind = "{rule}"'
    if name == "block_diagonal":
        return 'blocks = "layerwise" or the names of modules, beside the options'
    option, _, field = _FIELDS[name]
    if name == "cg_backtracking":
        value = "best" if value else "last"
    said = {bool: str(value).lower(), str: f'"{value}"'}.get(type(value), str(value))
    return f"{option}.{field} = {said}"


def flat_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """A param group with parts as one with flat options."""
    solver: CG = group["solver"] if isinstance(group["solver"], CG) else CG()
    curvature: GGN | Hessian = group["curvature"]
    rule, blocks = group["damping"], group["blocks"]
    adapted = rule if isinstance(rule, LevenbergMarquardt) else LevenbergMarquardt()
    parts = {"solver": solver, "curvature": curvature, "damping": adapted, "blocks": blocks or Blocks()}
    flat = {name: getattr(parts[option], field) for name, (option, _, field) in _FIELDS.items()}
    return {
        **{name: value for name, value in group.items() if name not in parts},
        **flat,
        "curvature": curvature.kind,
        "damping": rule.initial,
        "adapt_damping": isinstance(rule, LevenbergMarquardt),
        "cg_backtracking": solver.candidates == "best",
        "block_diagonal": blocks is not None,
        "cg_tolerance": solver.tolerance if group["tolerance"] is None else group["tolerance"],
    }


def with_parts(flat: Mapping[str, Any], like: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A param group, or options, with flat names as one with parts.

    Args:
        flat: may leave out what it likes.
        like: a param group with parts that gives what is left out. Default: the parts' defaults.

    Raises:
        ValueError: naming the part and the field.
    """
    if like is None:
        like = {**_OPTIONS, "curvature": GGN(), "solver": CG(), "damping": LevenbergMarquardt(), "blocks": None}
    own: CG = like["solver"] if isinstance(like["solver"], CG) else CG()
    flat = {**flat_of(like), **flat}
    fields: dict[str, dict[str, Any]] = {"solver": {}, "curvature": {}, "damping": {}, "blocks": {}}
    for name, (option, _, field) in _FIELDS.items():
        fields[option][field] = flat.pop(name)
    fields["solver"]["candidates"] = "best" if fields["solver"]["candidates"] else "last"
    tolerance, blocks = fields["solver"]["tolerance"], flat.pop("block_diagonal")
    if blocks:  # the groups' own, while the solver is the same for all of them
        fields["solver"]["tolerance"] = own.tolerance
    kind, damping, adapted = flat.pop("curvature"), flat.pop("damping"), flat.pop("adapt_damping")
    search, before = flat.pop("line_search"), like["line_search"]
    if kind not in ("ggn", "hessian"):
        raise ValueError(f"curvature must be one of ggn, hessian; got {kind!r}")
    return {
        **flat,
        "curvature": (Hessian if kind == "hessian" else GGN)(**fields["curvature"]),
        "solver": CG(**fields["solver"]),
        "damping": _rule(damping, adapted, fields["damping"]),
        "line_search": (before if isinstance(before, Armijo) else Armijo()) if search else False,
        "blocks": Blocks(**fields["blocks"]) if blocks else None,
        "tolerance": tolerance if blocks and tolerance != own.tolerance else None,
    }


def _rule(damping: Any, adapted: Any, fields: Mapping[str, Any]) -> LevenbergMarquardt | Fixed:
    if adapted:
        return LevenbergMarquardt(damping, **fields)
    if (fields["model"], fields["data"]) == (Fixed.model, Fixed.data):
        return Fixed(damping)
    return LevenbergMarquardt(damping, **{**fields, "factors": (1.0, 1.0)})  # a ratio that is only looked at
