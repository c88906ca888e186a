"""Options of `HessianFree` for tests that put them together from several dicts: the fields of its parts, flat."""

from typing import Any

from latephase import CG, GGN, Armijo, Blocks, Fixed, Hessian, LevenbergMarquardt
from latephase.optim.parts import names_of


def parts(**fields: Any) -> dict[str, Any]:
    """The options that these fields make.

    Args:
        **fields: of the parts, under their own names; further `damping`, a number, with `fixed`, whether it stays;
            `curvature` and `blocks` as `HessianFree` takes them; and what is no part.
    """

    def taken(names: list[str]) -> dict[str, Any]:
        return {name: fields.pop(name) for name in names if name in fields}

    made: dict[str, Any] = {}
    solver, curvature, rule, blocks = map(
        taken,
        (
            names_of(CG),
            names_of(GGN),
            ["damping", "fixed", *names_of(LevenbergMarquardt, ["initial"])],
            ["blocks", *names_of(Blocks)],
        ),
    )
    if solver:
        made["solver"] = CG(**solver)
    if curvature:
        made["curvature"] = (Hessian if fields.pop("curvature", "ggn") == "hessian" else GGN)(**curvature)
    fixed, initial = rule.pop("fixed", False), rule.pop("damping", 1.0)
    if fixed and rule:  # whose ratio is looked at
        rule["factors"] = (1.0, 1.0)
    made["damping"] = Fixed(initial) if fixed and not rule else LevenbergMarquardt(initial, **rule)
    on = blocks.pop("blocks", False)
    if blocks and (on or any(value is not None for value in blocks.values())):
        made["blocks"] = Blocks(**blocks)
    elif on:
        made["blocks"] = on
    if isinstance(fields.get("line_search"), dict):
        made["line_search"] = Armijo(**fields.pop("line_search"))
    return made | fields
