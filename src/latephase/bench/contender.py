"""One way to compute products, and our own ways."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..curvature import METHODS, linearize
from ..objective import Objective


@dataclass(frozen=True)
class Contender:
    """A way to compute Gauss-Newton products on one batch, set up.

    Attributes:
        product: () -> product with the vector [P], everything that does not depend on the vector being there.
        first: loss, gradient, whatever products need, and one product, all from nothing.
        quadratic_form: () -> v'Gv; None where there is no such thing.
    """

    product: Callable[[], Tensor]
    first: Callable[[], Any]
    quadratic_form: Callable[[], Tensor] | None = None


def default_method() -> str:
    """The method that is measured first, and that steps use."""
    return "traced" if "traced" in METHODS else "auto"


def ours(dtypes: list[str], all_methods: bool, compiled: bool) -> dict[str, dict[str, Any]]:
    """The arguments of `linearize` by the name in tables, the default method in the parameters' dtype first.

    Args:
        dtypes: dtypes of the products; the default method is measured in each.
        all_methods: the other methods too.
        compiled: the default method compiled, too.
    """
    default = default_method()
    table: dict[str, dict[str, Any]] = {default: {"method": default}}
    for name in dtypes:
        if name != "float32":
            table[f"{default}, {name}"] = {"method": default, "dtype": getattr(torch, name)}
    if compiled:
        table[f"{default}, compiled"] = {"method": default, "compile": True}
    if all_methods:
        table |= {name: {"method": name} for name in METHODS if name not in ("auto", default)}
    return table


def set_up(objective: Objective, v: Tensor, options: dict[str, Any]) -> Contender:
    """Linearise the objective, and get ready for products.

    Raises:
        ValueError: this version of `linearize` does not know one of the options.
    """
    unknown = options.keys() - inspect.signature(linearize).parameters.keys()
    if unknown:
        raise ValueError(f"linearize has no argument {', '.join(sorted(unknown))}")

    def first() -> object:
        new = linearize(objective, **options)
        return new.loss, new.gradient, new.matvec(v)

    linear = linearize(objective, **options)
    _ = linear.gradient  # lets go of what only the gradient needs
    return Contender(lambda: linear.matvec(v), first, lambda: linear.quadratic_form(v))
