"""Who can take part: the ways to go on that fit a model, its data, its memory and the time there is."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import Parameter
from torch.optim import LBFGS, Optimizer

from ...curvature import linearize
from ...objective import Objective, available, is_exhaustion
from ..kfac import KFAC
from ..newton import Direct, GaussNewton, HessianFree, multiplications_per_second
from ..quasi_newton import SelfScaledBroyden
from .contestant import Contestant, Wants, cosine, one_minus_sqrt

LARGE_BATCH = 2048
"""Rows of late-phase Hessian-free steps, with half as many to judge and an eighth for the curvature."""
FACTOR_BATCH = 1024
"""Rows of K-FAC's steps on noisy data."""
FEWEST_STEPS = 100
"""Steps that must fit into what is left, for an optimizer whose steps can be foretold."""
MOST_DENSE = 10_000
"""Parameters up to which a dense inverse Hessian is tried: 0.8 GB in float64."""
SAMPLE = 64
"""Rows on which is looked how many rows of J~ an example gives."""
LAYERS = (nn.Linear, nn.Conv2d)
STANDS_FOR = {"lbfgs": "self_scaled_broyden", "kfac": "gauss_newton", "hessian_free": "gauss_newton"}
"""Where all steps see the same data, the one behind the colon takes part in place of the other where both fit: in eight
trials each on Poisson's equation (docs/physics.md) its worst ended below the other's best."""


@dataclass(frozen=True)
class Subject:
    """What is to be gone on with.

    Attributes:
        objective: on data as the base has it.
        rows: of all training data; None where that is not known.
        batch: of the base's steps; None for all rows.
        deterministic: whether the base's steps all see the same data.
        seconds: that are left; None where the budget is in steps.
    """

    objective: Objective
    rows: int | None
    batch: int | None
    deterministic: bool
    seconds: float | None

    @cached_property
    def too_many_rows(self) -> str:
        """Why steps on all rows cannot be taken, measured once; empty where they can."""
        if self.deterministic:
            return ""
        if self.rows is None:
            return "takes all rows in a step, and how many there are is not known"
        if self.seconds is None:
            return ""
        seconds, rows = seconds_of_a_gradient(self.objective)
        whole = seconds * self.rows / max(rows, 1)
        if FEWEST_STEPS * 2 * whole > self.seconds:
            return f"a gradient of all {self.rows:,} rows takes about {whole:.2g} s, too long for {self.seconds:.0f} s"
        return ""


class Candidates(NamedTuple):
    """Who can take part, and who cannot.

    Attributes:
        contestants: those that can.
        excluded: why the others cannot, by name.
    """

    contestants: list[Contestant]
    excluded: dict[str, str]


def candidates(subject: Subject) -> Candidates:
    """The contestants that fit, and why the others do not.

    The base goes on to the end of a cooldown, 1 - sqrt on batches and a cosine where there is no noise that a rate
    could take away; on batches its average is looked at, too. Of the others take part: late-phase Hessian-free steps
    and K-FAC on batches; on all rows Gauss-Newton by a direct solve, L-BFGS, self-scaled Broyden and
    Hessian-free steps, where memory allows and `FEWEST_STEPS` steps fit into the time. Where all steps see
    the same data those of `STANDS_FOR` make room for others.
    """
    fit, excluded = {"base": Wants(subject.batch)}, {}
    for name, ask in CANDIDATES.items():
        answer = ask(subject)
        if isinstance(answer, str):
            excluded[name] = answer
        else:
            fit[name] = answer
    for name, other in STANDS_FOR.items() if subject.deterministic else ():
        if name in fit and other in fit:
            del fit[name]
            excluded[name] = f"{other} takes part, which ends lower where it fits; more would leave less time for each"
    return Candidates([contestant(name, wants, subject.deterministic) for name, wants in fit.items()], excluded)


def contestant(name: str, wants: Wants, deterministic: bool) -> Contestant:
    """One of the contestants that fit by themselves.

    Raises:
        ValueError: there is none of this name.
    """
    if name == "base":
        schedule = cosine if deterministic else one_minus_sqrt
        return Contestant(name, None, wants, schedule, average=not deterministic, training=True)
    makes: dict[str, Any] = {
        "gauss_newton": GaussNewton,
        "hessian_free": HessianFree if deterministic else HessianFree.late_phase,
        "kfac": KFAC,
        "lbfgs": lbfgs,
        "self_scaled_broyden": SelfScaledBroyden,
    }
    if name not in makes:
        raise ValueError(f"there is no contestant {name!r} of the library's own: {', '.join(['base', *makes])}")
    return Contestant(name, makes[name], wants)


def _hessian_free(subject: Subject) -> Wants | str:
    if subject.deterministic:
        return Wants()
    rows = LARGE_BATCH if subject.rows is None else min(LARGE_BATCH, 2 * subject.rows // 3)
    if rows < 2 * SAMPLE:
        return f"{subject.rows} rows are too few to judge a step by others than it was made of"
    return Wants(rows, rows // 2, rows // 8)


def _kfac(subject: Subject) -> Wants | str:
    model = subject.objective.model
    layered = sum(p.numel() for m in model.modules() if isinstance(m, LAYERS) for p in m.parameters(recurse=False))
    if 2 * layered < size_of(model):
        return "most parameters are not of linear or convolutional layers"
    if subject.deterministic:
        return Wants()
    return Wants(FACTOR_BATCH if subject.rows is None else min(FACTOR_BATCH, subject.rows))


def _gauss_newton(subject: Subject) -> Wants | str:
    if subject.too_many_rows:
        return subject.too_many_rows
    try:
        rows = _rows_of(subject)
    except Exception as error:
        return "there is no memory to look at its rows" if is_exhaustion(error) else f"has no rows: {error}"
    parameter = next(p for p in subject.objective.model.parameters() if p.requires_grad)
    plan = Direct().plan(rows, size_of(subject.objective.model), parameter.dtype)
    free = available(parameter.device) // 2
    if plan.bytes > free:
        return f"{plan}, but {free / 1e9:.1f} GB may be used"
    each = plan.multiplications / multiplications_per_second(parameter.dtype, parameter.device)
    if subject.seconds is not None and FEWEST_STEPS * each > subject.seconds:
        return f"{plan}: about {each:.2g} s, too long for {subject.seconds:.0f} s"
    return Wants()


def _self_scaled_broyden(subject: Subject) -> Wants | str:
    size = size_of(subject.objective.model)
    if size > MOST_DENSE:
        return f"its inverse Hessian is dense: {size:,} parameters, more than {MOST_DENSE:,}"
    return subject.too_many_rows or Wants()


def _lbfgs(subject: Subject) -> Wants | str:
    return subject.too_many_rows or Wants()


def lbfgs(parameters: Sequence[Parameter]) -> Optimizer:
    """L-BFGS of torch, five iterations a step, without tolerances that would end it early."""
    off: dict[str, Any] = {"tolerance_grad": 0.0, "tolerance_change": 0.0}
    return LBFGS(list(parameters), max_iter=5, history_size=100, line_search_fn="strong_wolfe", **off)


CANDIDATES: dict[str, Callable[[Subject], Wants | str]] = {
    "lbfgs": _lbfgs,
    "self_scaled_broyden": _self_scaled_broyden,
    "gauss_newton": _gauss_newton,
    "kfac": _kfac,
    "hessian_free": _hessian_free,
}
"""What is asked beside the base, by name; in the order of first turns, those with little set-up first."""


def _rows_of(subject: Subject) -> int:
    """Rows of J~ of all data, counted on a few examples where there are many."""
    objective = subject.objective
    have = sum(chunk.rows for chunk in objective.chunks)
    if subject.deterministic or have <= SAMPLE:
        part, scale = objective, 1.0 if subject.deterministic else (subject.rows or have) / max(have, 1)
    else:
        part, scale = objective.subsample(SAMPLE, torch.Generator().manual_seed(0)), (subject.rows or have) / SAMPLE
    return round(linearize(part).row_count() * scale)


def size_of(model: nn.Module) -> int:
    """P: trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def seconds_of_a_gradient(objective: Objective) -> tuple[float, int]:
    """Seconds of one gradient, the faster of two, and its rows; parameters, gradients and buffers stay as they are."""
    found = []
    for _ in range(2):
        started = time.perf_counter()
        _ = linearize(objective).gradient
        found.append(time.perf_counter() - started)
    return min(found), sum(chunk.rows for chunk in objective.chunks)
