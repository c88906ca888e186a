"""What `LatePhase` is given, as the hand-over takes it."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from ...objective import Objective
from .asks import Subject
from .candidates import BaseSteps, candidates, chosen, contestant, known
from .contestant import Contestant, Wants, twin
from .detectors import default_detector
from .held_out import HeldOut
from .states import in_mode

VERSION = 1
"""Of state dicts."""


def checked(contestants: Sequence[Contestant | str]) -> list[Contestant | str]:
    """Contestants of different names, and names of the library's own.

    Raises:
        TypeError: something else among them.
        ValueError: none, two of one name, or a name that none of the library's own has.
    """
    found = list(contestants)
    if isinstance(contestants, str):
        raise TypeError(f"contestants must be Contestant objects or names, in a list; got {contestants!r} alone")
    for each in found:
        if isinstance(each, str):
            known(each)
        elif not isinstance(each, Contestant):
            raise TypeError(f"contestants must be Contestant objects or names, got {type(each).__name__}")
    names = names_of(found)
    if not names:
        raise ValueError("contestants must not be empty; leave them out for those that fit by themselves")
    if len(set(names)) < len(names):
        raise ValueError(f"two contestants have one name: {', '.join(sorted(names))}")
    return found


def names_of(contestants: Sequence[Contestant | str]) -> list[str]:
    """The names of contestants, some of which are names alone."""
    return [each if isinstance(each, str) else each.name for each in contestants]


def entered(
    given: Sequence[Contestant | str] | None, subject: Subject, base: Optimizer
) -> tuple[list[Contestant], dict[str, Any], dict[str, str]]:
    """Those that take part, their optimizers by name, and why others do not.

    Raises:
        ValueError: nobody can.
    """
    with in_mode(subject.objective.model, False):  # as all but the base take their steps
        found, excluded = candidates(subject) if given is None else chosen(given, subject)
    optimizers, excluded = made(found, base, excluded)
    return [each for each in found if each.name in optimizers], optimizers, excluded


def made(
    contestants: Sequence[Contestant], base: Optimizer, excluded: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Optimizers of contestants by name, and why others have none.

    Args:
        contestants: that are to have one.
        base: from which they go on.
        excluded: why others cannot take part, by name; they are among those that have none.

    Raises:
        ValueError: none has one.
    """
    optimizers, refused = {}, dict(excluded)
    for each in contestants:
        try:
            own = each.optimizer(base)
            taken = any(other is own for other in optimizers.values())
            optimizers[each.name] = twin(own) if taken else own
        except Exception as error:  # whatever a user's own function raises
            refused[each.name] = f"its optimizer cannot be made: {type(error).__name__}: {error}"
    if not optimizers:
        told = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise ValueError(f"there is no contestant that could take part: {told}")
    return optimizers, refused


def detector_of(given: Any) -> Any:
    """The detector that is meant; False for none.

    Raises:
        TypeError: it is none.
    """
    if given is None:
        return default_detector()
    if given is False or hasattr(given, "in_diffusion"):
        return given
    raise TypeError(f"detector must be a detector, None or False, got {type(given).__name__}")


def scores_of(held_out: Objective | Sequence[Objective] | None, first: Objective, deterministic: bool) -> HeldOut:
    """What scores states.

    Args:
        held_out: as it was given, in parts perhaps.
        first: what scores where nothing was given.
        deterministic: whether all steps see the data of `first`.
    """
    if held_out is None:
        if not deterministic:
            warnings.warn(
                "LatePhase has no held-out data: contestants are scored on one training batch, which favours those "
                "that overfit; give held_out=Objective(model, loss, held_out_data)",
                stacklevel=6,
            )
        return HeldOut([first])
    parts = [held_out] if isinstance(held_out, Objective) else list(held_out)
    if len(parts) == 1:
        return HeldOut(parts)
    rows = [sum(chunk.rows for chunk in part.chunks) for part in parts]
    return HeldOut(parts, [count / sum(rows) for count in rows])


def held_out_loss(objectives: Sequence[Objective]) -> float:
    """The loss of the model's present state on held-out data in parts, in eval mode; nan where it is."""
    return float(scores_of(objectives, objectives[0], True)().parts.sum())


def beside_of(
    wants: Wants, objective: Objective, evaluation: Objective | None, curvature: Objective | None, step: int
) -> dict[str, Objective]:
    """What a step gets beside its objective, as far as its contestant takes it.

    Args:
        wants: the contestant's.
        objective: the step's.
        evaluation: that may judge it.
        curvature: where the curvature may be taken; None for the first `wants.curvature` rows of the objective, or,
            where that has all there are, for so many drawn from it.
        step: number of the step, by which they are drawn.
    """
    found = {}
    if wants.evaluation and evaluation is not None:
        found["evaluation"] = evaluation
    if wants.curvature is not None:
        if curvature is None:
            rows = min(wants.curvature, sum(chunk.rows for chunk in objective.chunks))
            drawn = wants.rows is None
            random = torch.Generator().manual_seed(step)
            curvature = objective.subsample(rows, random) if drawn else objective.split(rows)[0]
        found["curvature_objective"] = curvature
    return found


def check_saved(saved: Mapping[str, Any]) -> None:
    """Refuse a state dict that is of something else, or of a later release.

    Raises:
        ValueError: it is.
    """
    if saved.get("kind") != "LatePhase":
        raise ValueError(f"this is no state of a LatePhase but of {saved.get('kind', 'another optimizer')}")
    if saved["version"] > VERSION:
        raise ValueError(f"the state is of version {saved['version']}, this release knows {VERSION}")


def remade(saved: Mapping[str, Any], given: Sequence[Contestant | str] | None) -> list[Contestant]:
    """The contestants of a state dict.

    Args:
        saved: the state dict.
        given: those among which they are; None where they fitted by themselves.

    Raises:
        ValueError: there is no such contestant.
    """
    own = {each.name: each for each in given or () if isinstance(each, Contestant)}
    names = [name for name, _ in saved["contestants"]]
    missing = [name for name in names if given is not None and name not in names_of(given)]
    if missing:
        raise ValueError(f"the state has contestants that this LatePhase was not given: {', '.join(missing)}")
    base = BaseSteps(saved["deterministic"], saved.get("batch"))
    return [own[name] if name in own else contestant(name, Wants(*wants), base) for name, wants in saved["contestants"]]
