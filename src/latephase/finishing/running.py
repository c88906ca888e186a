"""A finish under way: from the first step, or a state in a folder, to the report."""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..objective import Objective
from ..optim import LatePhase, in_mode
from .certificate import Certificate, certify
from .folder import Folder
from .report import FinishReport

TRACING = ("hessian_free", "kfac", "gauss_newton")
"""Contestants of the library's own whose first step traces the model."""

Say = Callable[[str], object]
Watch = Callable[[LatePhase], object]


@dataclass
class Finishing:
    """All that a finish needs.

    Attributes:
        late: takes the steps.
        model: that is finished.
        folder: where it writes; None for nowhere.
        remarks: what a user should know of data and scores; warnings of the steps are added.
        given: what was given, in words, for the page.
        sound: raises a ValueError where the model that was given cannot be finished.
        training: gives an objective of training data, on which the end is certified.
        say: told in a line what is going on.
        watch: called after every step.
    """

    late: LatePhase
    model: nn.Module
    folder: Folder | None
    remarks: list[str]
    given: dict[str, str]
    sound: Callable[[], None]
    training: Callable[[], Objective]
    say: Say
    watch: Watch

    def run(self) -> FinishReport:
        """Take all steps that are left; the model then has the best state that was held, also where this is stopped."""
        if self.folder is None:
            return self._run(None)
        with self.folder as folder:
            return self._run(folder)

    def _run(self, folder: Folder | None) -> FinishReport:
        late = self.late
        if folder is None or not folder.resume():
            self.sound()
            self.say("setting up: the held-out loss as it is, and who can take part")
        told = len(late.events)
        if late.phase == "done":
            self.model.load_state_dict(late.best_state(self.model))
        try:
            with self._warnings_kept():
                while late.phase != "done":
                    late.step()
                    told = self._tell(told)
                    self.watch(late)
                    if folder is not None:
                        folder.save_if_due()
        finally:
            if math.isfinite(late.best[0]):
                self.model.load_state_dict(late.best_state(self.model))
            for parameter in self.model.parameters():
                parameter.grad = None
        report = self._report()
        if folder is not None:
            folder.finish(report)
        return report

    def _certificate(self) -> Certificate | None:
        """Where the model stands, on training rows, in eval mode; an extra must not end a finish."""
        try:
            with in_mode(self.model, False):
                return certify(self.training())
        except Exception as error:  # of a model that has no curvature products
            self.remarks.append(f"no certificate of where the model stands: {type(error).__name__}: {error}")
            return None

    def _tell(self, told: int) -> int:
        events = self.late.events
        for event in events[told:]:
            if event["event"] == "start":
                self.say(in_words(event))
                self.say(f"these take part: {', '.join(each.name for each in self.late.contestants)}")
                if tracing := [each.name for each in self.late.contestants if each.name in TRACING]:
                    self.say(f"the first steps of {', '.join(tracing)} trace the model, once, which takes some seconds")
                for name, reason in self.late.excluded.items():
                    self.say(f"{name} does not take part: {reason}")
            else:
                self.say(in_words(event))
        return len(events)

    @contextmanager
    def _warnings_kept(self) -> Iterator[None]:
        """Warnings within become remarks, each once: a step may warn every time, in the middle of a line."""

        def show(message: Warning | str, category: type[Warning], *_: Any) -> None:
            remark = f"{category.__name__}: {message}"
            if remark not in self.remarks:
                self.remarks.append(remark)
                self.say(remark)

        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = show
            yield

    def _report(self) -> FinishReport:
        late, events = self.late, self.late.events
        winners = [event["name"] for event in events if event["event"] == "winner"]
        return FinishReport(
            start=events[0]["loss"],
            loss=late.best[0],
            holder=late.best[1],
            winner=winners[0] if winners else None,
            sureness=late.sureness,
            excluded=dict(late.excluded),
            events=events,
            spent=late.spent,
            unit=late.unit,
            remarks=list(self.remarks),
            folder=None if self.folder is None else str(self.folder.path),
            given=dict(self.given),
            certificate=self._certificate(),
        )


def in_words(event: dict[str, Any]) -> str:
    """An event in a line."""
    name, loss = event["name"], event.get("loss")
    told = "" if loss is None else f"held-out loss {loss:.4g}"
    if event["event"] == "start":
        return f"start: {told}"
    if event["event"] in ("score", "look"):
        return f"{name} after {event['steps']:,} steps: {told}"
    if event["event"] == "winner":
        return f"{name} goes on"
    return f"{name} is out: {event['reason']}"


def unsound(model: nn.Module, loss: float) -> str:
    """Why a model with this held-out loss cannot be finished; empty where it can."""
    if math.isfinite(loss):
        return ""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    bad = [name for name, tensor in tensors if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())]
    where = f"not all values of {', '.join(bad[:5])} are finite" if bad else "though all its values are finite"
    return f"the held-out loss of the model is {loss}, {where}: there is nothing to go on from"
