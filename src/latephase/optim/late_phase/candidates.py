"""The library's own contestants: those that take part by themselves where they fit, and those that do when named."""

import difflib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch.nn import Parameter
from torch.optim import LBFGS, Optimizer

from ..fresh_optimizers import FRESH, start_fresh
from ..kfac import KFAC
from ..newton import GaussNewton, HessianFree
from ..quasi_newton import SelfScaledBroyden
from . import asks
from .asks import Ask, Subject
from .averages import ExponentialAverage, WindowAverage
from .contestant import Contestant, Make, Schedule, Wants, cosine, linear, one_minus_sqrt
from .from_average import FromAverageOf

HORIZON = 0.01
"""Of "ema" and "lawa": the share of the budget that Ajroldi et al. (2025, arXiv:2502.06761) find best."""
WINDOW = 5
"""States of "lawa", equally spaced over `HORIZON`."""
STANDS_FOR = {"lbfgs": "self_scaled_broyden", "kfac": "gauss_newton", "hessian_free": "gauss_newton"}
"""Where all steps see the same data, the one behind the colon takes part in place of the other where both fit: in eight
trials each on Poisson's equation (docs/physics.md) its worst ended below the other's best."""


class BaseSteps(NamedTuple):
    """What a contestant's settings depend on.

    Attributes:
        deterministic: whether the base's steps all see the same data.
        batch: of the base's steps; None for all rows.
    """

    deterministic: bool
    batch: int | None


Made = Callable[[str, Wants, BaseSteps], Contestant]
"""The contestant of a name, and of what its steps want."""


class Own(NamedTuple):
    """One of the library's own contestants.

    Attributes:
        ask: what its steps want, or why it cannot take part.
        made: the contestant.
        by_itself: whether it takes part where nobody is named.
    """

    ask: Ask
    made: Made
    by_itself: bool = False


class Candidates(NamedTuple):
    """Who can take part, and who cannot.

    Attributes:
        contestants: those that can.
        excluded: why the others cannot, by name.
    """

    contestants: list[Contestant]
    excluded: dict[str, str]


def candidates(subject: Subject) -> Candidates:
    """The contestants that fit by themselves, and why the others do not.

    The base goes on to the end of a cooldown, 1 - sqrt on batches and a cosine where there is no noise that a rate
    could take away; on batches its average is looked at, too. Of the others take part: late-phase Hessian-free steps
    and K-FAC on batches; on all rows Gauss-Newton by a direct solve, L-BFGS, self-scaled Broyden and
    Hessian-free steps, where memory allows and `asks.FEWEST_STEPS` steps fit into the time. Where all steps see
    the same data those of `STANDS_FOR` make room for others.
    """
    found, excluded = chosen([name for name, own in OWN.items() if own.by_itself], subject)
    fit = {each.name: each for each in found}
    for name, other in STANDS_FOR.items() if subject.deterministic else ():
        if name in fit and other in fit:
            del fit[name]
            excluded[name] = f"{other} takes part, which ends lower where it fits; more would leave less time for each"
    return Candidates(list(fit.values()), excluded)


def chosen(given: Sequence[Contestant | str], subject: Subject) -> Candidates:
    """Contestants that were given, those of them that are the library's own by name, and why some of these cannot."""
    found, excluded = [], {}
    for each in given:
        if isinstance(each, Contestant):
            found.append(each)
            continue
        answer = OWN[each].ask(subject)
        if isinstance(answer, str):
            excluded[each] = answer
        else:
            found.append(contestant(each, answer, BaseSteps(subject.deterministic, subject.batch)))
    return Candidates(found, excluded)


def contestant(name: str, wants: Wants, base: BaseSteps) -> Contestant:
    """One of the library's own contestants.

    Raises:
        ValueError: there is none of this name.
    """
    return OWN[known(name)].made(name, wants, base)


def known(name: str) -> str:
    """The name of one of the library's own contestants.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in OWN:
        close = difflib.get_close_matches(name, OWN, n=1)
        meant = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"there is no contestant {name!r} of the library's own{meant}: {', '.join(OWN)}")
    return name


def lbfgs(parameters: Sequence[Parameter]) -> Optimizer:
    """L-BFGS of torch, five iterations a step, without tolerances that would end it early."""
    off: dict[str, Any] = {"tolerance_grad": 0.0, "tolerance_change": 0.0}
    return LBFGS(list(parameters), max_iter=5, history_size=100, line_search_fn="strong_wolfe", **off)


def _base(name: str, wants: Wants, base: BaseSteps) -> Contestant:
    schedule = cosine if base.deterministic else one_minus_sqrt
    return Contestant(name, None, wants, schedule, average=not base.deterministic, training=True)


def _hessian_free(name: str, wants: Wants, base: BaseSteps, training: bool = False) -> Contestant:
    return Contestant(name, HessianFree if base.deterministic else HessianFree.late_phase, wants, training=training)


def _from_average(name: str, wants: Wants, base: BaseSteps) -> Contestant:
    return FromAverageOf(name, HessianFree.late_phase, wants, base_rows=base.batch)


def _with(make: Make | None, schedule: Schedule | None = None, **more: Any) -> Made:
    """A contestant with an optimizer, or the base's, under a schedule."""
    return lambda name, wants, base: Contestant(name, make, wants, schedule, **more)


def _fresh(kind: str, schedule: Schedule | None) -> Own:
    """A first-order optimizer that begins afresh, at its published rate."""
    make = functools.partial(_started, kind)
    return Own(asks.fresh(kind), _with(make, schedule, training=True))


def _started(kind: str, parameters: Sequence[Parameter]) -> Optimizer:
    return start_fresh(kind, parameters, FRESH[kind].lr, {})


OWN: dict[str, Own] = {
    "base": Own(asks.as_base, _base, True),
    "lbfgs": Own(asks.lbfgs, _with(lbfgs), True),
    "self_scaled_broyden": Own(asks.self_scaled_broyden, _with(SelfScaledBroyden), True),
    "gauss_newton": Own(asks.gauss_newton, _with(GaussNewton), True),
    "kfac": Own(asks.kfac, _with(KFAC), True),
    "hessian_free": Own(asks.hessian_free, _hessian_free, True),
    "cosine": Own(asks.as_base, _with(None, cosine, training=True)),
    "linear": Own(asks.as_base, _with(None, linear, training=True)),
    "one_minus_sqrt": Own(asks.as_base, _with(None, one_minus_sqrt, training=True)),
    "cosine_frozen": Own(asks.as_base, _with(None, cosine)),
    "ema": Own(asks.as_base, _with(None, average=functools.partial(ExponentialAverage, HORIZON), training=True)),
    "lawa": Own(
        asks.as_base,
        _with(None, average=functools.partial(WindowAverage, WINDOW, round(WINDOW / HORIZON)), training=True),
    ),
    "muon": _fresh("muon", one_minus_sqrt),
    "soap": _fresh("soap", one_minus_sqrt),
    "schedule_free": _fresh("schedule_free", None),
    "hessian_free_averaged": Own(asks.on_batches, _from_average),
    "hessian_free_full": Own(asks.full_gradient, _with(HessianFree.late_phase)),
    "hessian_free_training": Own(asks.hessian_free, functools.partial(_hessian_free, training=True)),
}
"""By name; those that take part by themselves in the order of first turns, those with little set-up first."""
