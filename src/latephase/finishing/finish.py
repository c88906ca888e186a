"""`latephase.finish`: go on with a trained model by what pays on it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..objective import Decay, Objective
from ..optim import Contestant, Halving, LatePhase
from .folder import Folder
from .reading import Reading, objective_alone
from .report import FinishReport

BATCH = 128
"""Rows of the base's steps where nothing is said."""


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
    contestants: Sequence[Contestant] | None = None,
    settings: Halving | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    say: Callable[[str], object] = lambda line: None,
) -> FinishReport:
    """Finish a trained model: race those ways to go on that fit it, and go on with what wins, until the time is up.

        report = latephase.finish(model, loss, (inputs, targets), held_out=(x, y), seconds=600, base=optimizer)
        print(report)

    The model is finished in place: at the end it has the state with the lowest held-out loss of all that was held, the
    given one included. See `LatePhase` for the race, which takes a tenth of the time.

    Args:
        model: the trained module; or an `Objective` alone, all of whose data every step then sees (a physics-informed
            loss, a small regression).
        loss: any callable (outputs, targets) -> scalar.
        data: training data: (inputs, targets) with all rows; or a loader (any iterable of batches that can be begun
            anew), whose batches are (inputs, targets) or dicts with "labels".
        held_out: data of the same form that training did not see, or an Objective. Default: a tenth of the training
            rows, which then are not trained on; for an Objective its own loss. The report says so.
        seconds: how long it may take, the race included. Default 600.
        steps: the same in steps, for runs that come out the same on any machine; in place of `seconds`.
        base: the optimizer that trained the model, with its state. Default: a fresh Adam with rate 1e-3.
        batch_size: rows of the base's steps where data has all rows. Default 128; as many as there are, or more, for
            all rows in each step.
        forward: as for `Objective`.
        weight_decay: as for `Objective`; not part of held-out losses.
        contestants: in place of those that fit by themselves.
        settings: shares and numbers of the race.
        out: folder for checkpoint, events and page. Given again, it goes on from there. Default: nothing is written.
        seed: of what is drawn from the data. Default 0.
        say: told in a line what is going on. Default: nobody is.

    Returns:
        The report; `print(report)` tells all of it.

    Raises:
        TypeError: data or contestants of the wrong kind.
        ValueError: both seconds and steps, no data, parameters of the base that are not the model's; or `out` holds the
            run of another model or other settings.
    """
    if seconds is not None and steps is not None:
        raise ValueError("give seconds or steps, not both")
    remarks: list[str] = []
    if isinstance(model, Objective):
        if loss is not None or data is not None or forward is not None or weight_decay:
            raise TypeError("an Objective is finished as it is: leave out loss, data, forward and weight_decay")
        task = objective_alone(model, held_out, remarks)
    else:
        if loss is None or data is None:
            raise TypeError("finish needs a loss and data: finish(model, loss, (inputs, targets)), or an Objective")
        options = {"forward": forward, "weight_decay": weight_decay}
        task = Reading(model, loss, options, BATCH if batch_size is None else batch_size, seed, remarks).of(
            data, held_out
        )
    module = task.template.model
    trainable = [p for p in module.parameters() if p.requires_grad]
    if base is None:
        base = torch.optim.Adam(trainable, lr=1e-3)
        remarks.append("no base was given: a fresh Adam with rate 1e-3 stands for it")
    parameters = [p for group in base.param_groups for p in group["params"]]
    late = LatePhase(
        parameters,
        base,
        float(steps) if steps is not None else 600.0 if seconds is None else seconds,
        held_out=task.scores,
        source=task.source,
        contestants=contestants,
        detector=False,
        settings=settings,
        unit="seconds" if steps is None else "steps",
    )
    return _run(late, module, None if out is None else Folder(Path(out), module, late, say), remarks, say)


def _run(
    late: LatePhase, model: nn.Module, folder: Folder | None, remarks: list[str], say: Callable[[str], object]
) -> FinishReport:
    if folder is not None:
        folder.resume()
    told = 0
    while late.phase != "done":
        late.step()
        for event in late.events[told:]:
            say(_in_words(event))
        told = len(late.events)
        if folder is not None:
            folder.save_if_due()
    events = late.events
    winners = [event["name"] for event in events if event["event"] == "winner"]
    report = FinishReport(
        start=events[0]["loss"],
        loss=late.best[0],
        holder=late.best[1],
        winner=winners[-1] if winners else None,
        sureness=late.sureness,
        excluded=dict(late.excluded),
        events=events,
        spent=late.spent,
        unit=late.unit,
        remarks=remarks,
        folder=None if folder is None else str(folder.path),
    )
    if folder is not None:
        folder.finish(report)
    return report


def _in_words(event: dict[str, Any]) -> str:
    name, loss = event["name"], event.get("loss")
    told = "" if loss is None else f"held-out loss {loss:.4g}"
    if event["event"] == "start":
        return f"start: {told}"
    if event["event"] in ("score", "look"):
        return f"{name} after {event['steps']:,} steps: {told}"
    if event["event"] == "winner":
        return f"{name} goes on"
    return f"{name} is out: {event['reason']}"
