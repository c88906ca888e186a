"""What `LatePhase` is given, as the hand-over takes it."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from ...objective import Objective
from .candidates import contestant
from .contestant import Contestant, Wants
from .detectors import default_detector
from .held_out import HeldOut

VERSION = 1
"""Of state dicts."""


def checked(contestants: Sequence[Contestant]) -> list[Contestant]:
    """Contestants of different names.

    Raises:
        TypeError: something else among them.
        ValueError: none, or two of one name.
    """
    found = list(contestants)
    for each in found:
        if not isinstance(each, Contestant):
            raise TypeError(f"contestants must be Contestant objects, got {type(each).__name__}")
    names = [each.name for each in found]
    if not names:
        raise ValueError("contestants must not be empty; leave them out for those that fit by themselves")
    if len(set(names)) < len(names):
        raise ValueError(f"two contestants have one name: {', '.join(sorted(names))}")
    return found


def made(contestants: Sequence[Contestant], base: Optimizer) -> tuple[dict[str, Any], dict[str, str]]:
    """Optimizers of contestants by name, and why others have none.

    Raises:
        ValueError: none has one.
    """
    optimizers, refused = {}, {}
    for each in contestants:
        try:
            optimizers[each.name] = each.optimizer(base)
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
    wants: Wants, objective: Objective, evaluation: Objective | None, curvature: Objective | None
) -> dict[str, Objective]:
    """What a step gets beside its objective, as far as its contestant takes it.

    Args:
        wants: the contestant's.
        objective: the step's.
        evaluation: that may judge it.
        curvature: where the curvature may be taken; None for the first `wants.curvature` rows of the objective.
    """
    found = {}
    if wants.evaluation and evaluation is not None:
        found["evaluation"] = evaluation
    if wants.curvature is not None:
        if curvature is None:
            curvature = objective.split(min(wants.curvature, sum(chunk.rows for chunk in objective.chunks)))[0]
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


def remade(saved: Mapping[str, Any], given: Sequence[Contestant] | None) -> list[Contestant]:
    """The contestants of a state dict.

    Args:
        saved: the state dict.
        given: those of one's own among which they are; None where they fitted by themselves.

    Raises:
        ValueError: there is no such contestant.
    """
    if given is None:
        return [contestant(name, Wants(*wants), saved["deterministic"]) for name, wants in saved["contestants"]]
    own = {each.name: each for each in given}
    missing = [name for name, _ in saved["contestants"] if name not in own]
    if missing:
        raise ValueError(f"the state has contestants that this LatePhase was not given: {', '.join(missing)}")
    return [own[name] for name, _ in saved["contestants"]]
