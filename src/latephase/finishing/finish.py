"""`latephase.finish`: go on with a trained model by what pays on it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..objective import Decay, Objective
from ..optim import Contestant, Halving, LatePhase, Wants, names_of
from .folder import Folder
from .identity import identity_of
from .reading import Reading, Task, objective_alone
from .report import FinishReport
from .running import Finishing, Watch, unsound

CERTIFIED = 4096
"""Training rows, at most, on which is said where the model stands at the end; of an Objective all."""
BATCH = 128
"""Rows of the base's steps where nothing is said."""
SECONDS = 600.0
"""Of the budget where nothing is said."""


def finish(
    model: nn.Module | Objective,
    loss: Callable[[Any, Any], Tensor] | None = None,
    data: Any = None,
    *,
    held_out: Any = None,
    seconds: float | None = None,
    steps: int | None = None,
    base: Optimizer | None = None,
    batch_size: int | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    weight_decay: Decay = 0.0,
    contestants: Sequence[Contestant | str] | None = None,
    settings: Halving | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    say: Callable[[str], object] = lambda line: None,
    watch: Watch = lambda late: None,
) -> FinishReport:
    """Finish a trained model: race those ways to go on that fit it, and go on with what wins, until the time is up.

        report = latephase.finish(model, loss, (inputs, targets), held_out=(x, y), seconds=600, base=optimizer)
        print(report)

    The model is finished in place: at the end, and where this is interrupted, it has the state with the lowest held-out
    loss of all that was held, the given one included. Modes of modules and `requires_grad` are as before, `.grad` is
    None, and the base's state and rates are those of its last step in the race. See `LatePhase` for the race, which
    takes a tenth of the time. Warnings of the steps are among the report's remarks.

    Args:
        model: the trained module; or an `Objective` alone, all of whose data every step then sees (a physics-informed
            loss, a small regression).
        loss: any callable (outputs, targets) -> scalar.
        data: training data: (inputs, targets) with all rows, or a dict with "labels" (they are the targets, and the
            dict the inputs); or a loader (any iterable of batches that can be begun anew) of such batches.
        held_out: data of the same form that training did not see, or an Objective. Default: a tenth of the training
            rows, which then are not trained on; for an Objective its own loss. The report says so.
        seconds: how long it may take, the race included. Default 600.
        steps: the same in steps, for runs that come out the same on any machine; in place of `seconds`.
        base: the optimizer that trained the model, with its state. Default: a fresh Adam with rate 1e-3.
        batch_size: rows of the base's steps where data has all rows. Default 128; as many as there are, or more, for
            all rows in each step.
        forward: as for `Objective`.
        weight_decay: as for `Objective`; not part of held-out losses.
        contestants: in place of those that fit by themselves, of your own or by name.
        settings: shares and numbers of the race.
        out: folder for checkpoint, events and page. Given again, it goes on from there. Default: nothing is written.
        seed: of what is drawn from the data. Default 0.
        say: told in a line what is going on. Default: nobody is.
        watch: called after every step, with the `LatePhase` that took it. Default: nobody is.

    Returns:
        The report; `print(report)` tells all of it.

    Raises:
        TypeError: data or contestants of the wrong kind.
        ValueError: both seconds and steps, no rows, a held-out loss that is not finite, nothing to train, parameters of
            the base that are not the model's; or `out` holds a damaged state, or the run of another model, other
            held-out data, another budget or other contestants.
    """
    if seconds is not None and steps is not None:
        raise ValueError("give seconds or steps, not both")
    remarks: list[str] = []
    _check_model(model.model if isinstance(model, Objective) else model)
    if isinstance(model, Objective):
        if loss is not None or data is not None or forward is not None or weight_decay or batch_size is not None:
            raise TypeError(
                "an Objective is finished as it is: leave out loss, data, forward, weight_decay and batch_size"
            )
        task = objective_alone(model, held_out, remarks)
    else:
        if loss is None or data is None:
            raise TypeError("finish needs a loss and data: finish(model, loss, (inputs, targets)), or an Objective")
        if batch_size is not None and not (type(batch_size) is int and batch_size >= 1):
            raise ValueError(f"batch_size must be a whole number of rows, at least 1; got {batch_size!r}")
        options = {"forward": forward, "weight_decay": weight_decay}
        task = Reading(model, loss, options, BATCH if batch_size is None else batch_size, seed, remarks).of(
            data, held_out
        )
    base = _base(base, task.template.model, remarks)
    amount, unit = (SECONDS if seconds is None else seconds, "seconds") if steps is None else (steps, "steps")
    late = LatePhase(
        [p for group in base.param_groups for p in group["params"]],
        base,
        amount,
        held_out=task.scores,
        source=task.source,
        contestants=contestants,
        detector=False,
        settings=settings,
        unit=unit,
    )
    for each in contestants or ():
        if isinstance(each, Contestant):
            _check_wants(each, task.source.rows)
    return _finishing(late, task, contestants, settings, remarks, out, say, watch).run()


def _finishing(
    late: LatePhase,
    task: Task,
    contestants: Sequence[Contestant | str] | None,
    settings: Halving | None,
    remarks: list[str],
    out: str | Path | None,
    say: Callable[[str], object],
    watch: Watch,
) -> Finishing:
    module, folder = task.template.model, None
    amount = f"{late.budget:g} {late.unit}"
    if out is not None:
        names = None if contestants is None else names_of(contestants)
        race = Halving() if settings is None else settings
        identity = identity_of(module, task.scores, amount, names, race)
        folder = Folder(Path(out), module, late, identity, remarks, say)

    def sound() -> None:
        if reason := unsound(module, task.score()):
            raise ValueError(reason)

    def training() -> Objective:
        rows = task.source.rows
        return task.source.draw(Wants(CERTIFIED if rows is None else min(CERTIFIED, rows)), 0)[0]

    given = _given(task, late.base, amount)
    return Finishing(late, module, folder, remarks, given, sound, training, say, watch)


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch module or an Objective, got {type(model).__name__}")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("there is nothing to train: no parameter of the model has requires_grad")


def _base(base: Optimizer | None, model: nn.Module, remarks: list[str]) -> Optimizer:
    """The base, of parameters of the model.

    Raises:
        TypeError: it is none.
        ValueError: it has other parameters.
    """
    if base is None:
        remarks.append("no base was given: a fresh Adam with rate 1e-3 stands for it")
        return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    if not isinstance(base, Optimizer):
        raise TypeError(f"base must be a torch optimizer, got {type(base).__name__}")
    own = {id(p) for p in model.parameters()}
    others = sum(id(p) not in own for group in base.param_groups for p in group["params"])
    if others:
        raise ValueError(
            f"{others} parameters of the base are not of this model: give the optimizer that trained it, made after "
            "the model was put where it is and loaded"
        )
    return base


def _check_wants(contestant: Contestant, rows: int | None) -> None:
    _, evaluation, _ = contestant.wants
    if rows is not None and evaluation >= rows:
        raise ValueError(
            f"the contestant {contestant.name} wants {evaluation:,} rows to judge its steps by, beside others; there "
            f"are {rows:,}"
        )


def _given(task: Task, base: Optimizer, budget: str) -> dict[str, str]:
    """What was given, in words."""
    module, source = task.template.model, task.source
    parameters = sum(p.numel() for p in module.parameters())
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    first = next(module.parameters())
    dtype = str(first.dtype).removeprefix("torch.")
    return {
        "Model": f"{type(module).__name__}, {parameters:,} parameters, {trainable:,} of them trained",
        "Training rows": "not known" if source.rows is None else f"{source.rows:,}",
        "Rows of the base's steps": "all" if source.batch is None else f"{source.batch:,}",
        "Held-out rows": task.held_out_rows,
        "Base": type(base).__name__,
        "Budget": budget,
        "Data type": dtype,
        "Device of the model": str(first.device),
    }
