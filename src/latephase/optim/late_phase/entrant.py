"""A contestant in the race: where it stands, what it has taken, what it would hold if it stopped now."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...objective import Objective
from .contestant import Contestant, parameters_of
from .held_out import HeldOut, Score
from .states import State, put, renew_statistics, taken

SEED = 0
"""Of the random numbers in these passes."""


class Entrant:
    """A contestant under way from a state.

    Args:
        contestant: what it is.
        optimizer: its own, over the parameters that all share.
        model: in the state that it begins with.
        left: of the budget at the hand-over.

    Attributes:
        contestant: what it is.
        optimizer: its own, over the parameters that all share.
        left: of which windows of averages are shares.
        state: where it stands while it has not got the model.
        spent: of the budget, since it began; in seconds without what its first step took longer than its second.
        in_round: the same since the round began.
        steps: that it took.
        score: of what it would hold, when last asked.
        out: why it takes part no more; None while it does.
    """

    def __init__(self, contestant: Contestant, optimizer: Any, model: nn.Module, left: float = math.inf):
        self.contestant, self._model, self.left = contestant, model, left
        self.optimizer: Any = optimizer
        self.state = taken(model)
        self.spent = self.in_round = 0.0
        self.steps = 0
        self.score: Score | None = None
        self.out: str | None = None
        self._first = 0.0
        self._rates = [float(group["lr"]) for group in optimizer.param_groups if "lr" in group]
        self._average = contestant.new_average()

    @property
    def name(self) -> str:
        """The contestant's."""
        return self.contestant.name

    def leave(self) -> None:
        """Keep where it stands, since another gets the model."""
        self.state = taken(self._model)

    def enter(self) -> None:
        """Put the model where it stands."""
        put(self._model, self.state)

    def begin_at(self, state: State) -> None:
        """Stand at a state of another. What an optimizer of its own has learnt is of elsewhere, and it begins anew."""
        self.state = {name: tensor.clone() for name, tensor in state.items()}
        if self.contestant.make is not None:
            self.optimizer = self.contestant.make(parameters_of(self.optimizer))
        self._average = self.contestant.new_average()

    def step(self, objective: Objective, share: float, **beside: Objective) -> Tensor:
        """Take a step.

        Args:
            objective: the step's.
            share: of what was left at the hand-over that is spent.
            **beside: `evaluation` and `curvature_objective`, where it wants them.

        Returns:
            The loss before the step.
        """
        schedule = self.contestant.schedule
        if schedule is not None:
            groups = [group for group in self.optimizer.param_groups if "lr" in group]
            for group, rate in zip(groups, self._rates, strict=True):
                group["lr"] = rate * schedule(share)
        loss = self.optimizer.step(objective, **beside)
        self.steps += 1
        if self._average is not None:
            self._average.add(self._model, self.spent / self.left)
        return loss

    def charge(self, taken_by_step: float) -> None:
        """Count what a step took. What only the first one does (tracing, say) is not held against it in the race."""
        if self.steps == 1:
            self._first = taken_by_step
        elif self.steps == 2 and (beside := self._first - taken_by_step) > 0:
            self.spent -= beside
            self.in_round -= beside
        self.spent += taken_by_step
        self.in_round += taken_by_step

    def look(self, held_out: HeldOut, batches: Sequence[Objective] = ()) -> tuple[Score, State]:
        """What it would hold if it stopped now: its last state or the average, whichever is better.

        Args:
            held_out: what is asked; its model is where this entrant stands, and stays there.
            batches: of the training data, on which batch norm's statistics of an average are taken. Where there are
                none, the average has the average of the statistics.
        """
        last = taken(self._model)
        found = [(held_out(), last)]
        try:
            for other in self._others():
                put(self._model, other)
                renew_statistics(self._model, batches, SEED)
                found.append((held_out(), taken(self._model)))
        finally:
            put(self._model, last)
        self.score, state = min(found, key=lambda each: each[0].total)
        return self.score, state

    def _others(self) -> list[State]:
        """What is looked at beside the last state; the model is not quite there afterwards."""
        found = []
        if self._average is not None and self._average.count > 1:
            found.append(self._average.mean)
        if hasattr(self.optimizer, "eval") and hasattr(self.optimizer, "train"):
            self.optimizer.eval()  # a schedule-free one, whose weights of evaluation are an average of its own
            found.append(taken(self._model))
            self.optimizer.train()
        return found

    @property
    def stationary(self) -> bool:
        """Whether its last step said that there is nothing more to be done."""
        report = getattr(self.optimizer, "report", None)
        return str(getattr(report, "status", "")) == "stationary"

    def state_dict(self) -> dict[str, Any]:
        """All of it, as tensors and plain values."""
        names = ("spent", "in_round", "steps", "out", "_first", "_rates")
        return {name: getattr(self, name) for name in names} | {
            "name": self.name,
            "state": {name: tensor.clone() for name, tensor in self.state.items()},
            "optimizer": self.optimizer.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "score": None if self.score is None else self.score.parts,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        for name in ("spent", "in_round", "steps", "out", "_first", "_rates"):
            setattr(self, name, saved[name])
        self.state = {name: tensor.clone() for name, tensor in saved["state"].items()}
        self.optimizer.load_state_dict(saved["optimizer"])
        if self._average is not None and saved["average"] is not None:
            self._average.load_state_dict(saved["average"])
        self.score = None if saved["score"] is None else Score(torch.as_tensor(saved["score"]))


def better(one: Score | None, other: Score | None) -> bool:
    """Whether one score is below another; one that is none, or not finite, never is."""
    if one is None or not math.isfinite(one.total):
        return False
    return other is None or not math.isfinite(other.total) or one.total < other.total
