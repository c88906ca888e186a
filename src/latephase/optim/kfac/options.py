"""Options of K-FAC: the part that says how factors are kept, checks, presets of Clarke and Hernandez-Lobato (2024)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ...curvature import WEIGHT_SHARING, check_whole
from ..parts import DAMPINGS, Fixed, LevenbergMarquardt, Part, check_number, check_same, damping_of, is_number, part_of


@dataclass(frozen=True)
class KroneckerFactors(Part):
    """How K-FAC estimates and inverts its factors.

    Args:
        period: steps after which they are estimated anew. Default 1 (Martens and Grosse 2015).
        inverse_period: T3: steps after which they are inverted anew; the first three estimates are at once. Default 5,
            as in kfac-jax; 20 in the paper.
        decay: of the moving averages. Default 0.95 (Section 5).
        probes: random vectors per estimate of B, and of the diagonal. Default 1, as one sample per example in the
            paper: the moving average takes the mean over steps.
        weight_sharing: what a layer makes of several positions of one example, as a convolution has them: "expand"
            (default; Grosse and Martens 2016 for convolutions) or "reduce" (Eschenhagen et al. 2023), see
            `curvature.preconditioners.Kronecker`.

    Raises:
        ValueError: naming the field.
    """

    kind: ClassVar[str] = "kronecker"

    period: int = 1
    inverse_period: int = 5
    decay: float = 0.95
    probes: int = 1
    weight_sharing: str = "expand"

    def __post_init__(self):
        for name in ("period", "inverse_period", "probes"):
            self._check_whole(name)
        below = is_number(self.decay) and 0 <= self.decay < 1
        self._check(below, "decay", "a number >= 0 and below 1: with 1 nothing would ever move")
        self._check_choice("weight_sharing", WEIGHT_SHARING)


PARTS = ("damping", "factors")
"""Options that are parts."""
OPTIONS = ("lr", "momentum", "damping", "adapt_period", "factors")
"""Options of the constructor."""
GLOBAL = ("exact_lr", "momentum", "damping", "adapt_period", "factors")
"""Options that all param groups have in common; `lr` may differ."""

DECAY = 19 / 20
"""Of the damping per step (Martens and Grosse 2015, Section 6.5)."""
LOW = 1e-8
"""Least damping (Clarke and Hernandez-Lobato 2024)."""

ADAPTIVE_DECAY = 0.9
"""Of the damping per step (Clarke and Hernandez-Lobato 2024)."""
UNADAPTIVE: dict[str, Any] = {
    "lr": 1e-3,
    "momentum": 0.9,
    "damping": Fixed(1.0),
    "factors": KroneckerFactors(inverse_period=1),
}


def factors_by(decay: float, period: int) -> tuple[float, float]:
    """Factors on the damping in one adaptation, omega and 1 / omega with omega = decay ** period."""
    omega = decay**period
    return omega, (1 / omega if omega > 0 else math.inf)


def adaptive(period: Any = 1) -> dict[str, Any]:
    """The options where everything is adapted; a period is that of the damping."""
    factors = KroneckerFactors(inverse_period=1)
    return {"damping": rule_for(period, ADAPTIVE_DECAY), "adapt_period": period, "factors": factors}


def rule_for(period: Any, decay: float = DECAY) -> LevenbergMarquardt:
    """How the damping is adapted where nothing else is said.

    Args:
        period: steps from one adaptation to the next; anything that is none is checked elsewhere.
        decay: of the damping per step.
    """
    whole = isinstance(period, int) and not isinstance(period, bool) and period >= 1
    return LevenbergMarquardt(1.0, factors=factors_by(decay, period if whole else 1), range=(LOW, math.inf))


def part(name: str, given: Any, like: Part | None) -> Any:
    """The part that is meant: itself, or what a number or a table of its fields says.

    Args:
        name: of the option.
        given: part, number or table.
        like: gives what these leave open.

    Raises:
        ValueError: none of these, or a field with a value that will not do.
    """
    if name == "damping":
        return damping_of(given, DAMPINGS, like)
    if isinstance(given, KroneckerFactors):
        return given
    if isinstance(given, Mapping):
        return part_of(given, {KroneckerFactors.kind: KroneckerFactors}, like, name)
    raise ValueError(f"{name} must be a part: KroneckerFactors(...); got {given!r}")


def over(preset: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a preset with others in place of them; a number or a table changes what it says of a part."""
    changed = {name: part(name, x, preset.get(name)) if name in PARTS else x for name, x in given.items()}
    return {**preset, **changed}


def check_options(groups: Sequence[dict[str, Any]]) -> None:
    """Put parts in place of shorthands, and check the options of the param groups.

    Raises:
        ValueError: naming the option, its value and what would do; or an option that differs between groups.
    """
    for group in groups:
        check_number("lr", group["lr"])
        if group["adapt_period"] == 0:
            raise ValueError("adapt_period must be a whole number >= 1, got 0: damping=Fixed(...) keeps the damping")
        check_whole("adapt_period", group["adapt_period"])
        _check_momentum(group)
        group["damping"] = part("damping", group["damping"], rule_for(group["adapt_period"]))
        group["factors"] = part("factors", group["factors"], KroneckerFactors())
    check_same(groups, GLOBAL)


def _check_momentum(options: Mapping[str, Any]) -> None:
    if options["momentum"] is None:
        return
    if options["exact_momentum"]:
        raise ValueError(
            f"momentum was exact (None), and has become {options['momentum']!r}: OneCycleLR and CyclicLR do that "
            "unless they are made with cycle_momentum=False. For a momentum that a schedule sets, give "
            "KFAC(momentum=...) a number"
        )
    check_number("momentum", options["momentum"])
