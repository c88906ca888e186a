"""The race: contestants from one state take turns, and the worse half drops out, until one is left."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ...objective import Objective
from .entrant import Entrant, better
from .held_out import HeldOut, Score
from .states import State, put, taken

TURNS = 4
"""In how many turns a contestant takes its slice of a round: the machine's speed changes, and all should have of it."""
BEATEN = "others had a lower held-out loss"
Event = dict[str, Any]


class Race:
    """Successive halving (Jamieson and Talwalkar 2016) of ways to go on from one state.

    In each round every contestant that is left gets the same slice of the budget, in turns; then each is scored by what
    it would hold if it stopped now, and the worse half drops out. All rounds cost the same, so that slices double. The
    one that is left goes on from where it stands.

    Args:
        entrants: that start from the model's present state.
        model: which all share.
        held_out: gives the scores.
        total: what the race may take of the budget, evaluations included. A step is begun while there is anything left.

    Attributes:
        best: score, state and name of the best that was held so far, the start included.
        events: what there is to tell, newest last.
        spent: of the budget.
    """

    def __init__(self, entrants: Sequence[Entrant], model: nn.Module, held_out: HeldOut, total: float):
        self.entrants, self._model, self._held_out, self._total = list(entrants), model, held_out, total
        self._rounds = max(1, math.ceil(math.log2(max(len(self.entrants), 1))))
        self.round = 0
        self.spent = 0.0
        self._turn = 0.0
        self._current: Entrant | None = None
        self.events: list[Event] = []
        self.best: tuple[Score, State, str] = (held_out(), taken(model), "start")
        self._tell("start", "start", self.best[0])

    @property
    def left(self) -> list[Entrant]:
        """Those that still take part."""
        return [entrant for entrant in self.entrants if entrant.out is None]

    @property
    def winner(self) -> Entrant | None:
        """The one that is left; None while there are more, or where none is."""
        return self.left[0] if len(self.left) == 1 else None

    @property
    def _slice(self) -> float:
        """What each that is left gets in this round."""
        return self._total / (self._rounds * max(len(self.left), 1))

    def next(self) -> Entrant | None:
        """Whose turn it is; the model stands where this one does. None where the race is decided."""
        if len(self.left) < 2:
            self._finish_turn()
            return None
        waiting = [entrant for entrant in self.left if entrant.in_round < self._slice]
        if self._current in waiting and self._turn < self._slice / TURNS:
            return self._current
        self._change_to(min(waiting, key=lambda entrant: entrant.in_round))
        return self._current

    def step(self, entrant: Entrant, objective: Objective, share: float, **beside: Objective) -> Tensor | None:
        """The next one's step; None where it raised an error, and takes part no more."""
        try:
            loss = entrant.step(objective, share, **beside)
        except Exception as error:
            self.drop(entrant, f"{type(error).__name__}: {error}")
            return None
        if not math.isfinite(float(loss)):
            self.drop(entrant, f"its loss is {float(loss)} after {entrant.steps} steps")
        return loss

    def charge(self, entrant: Entrant, taken_by_step: float, batches: Callable[[], Sequence[Objective]]) -> bool:
        """Count what a step took; whether the round ended with it, and all were scored.

        Args:
            entrant: whose step it was.
            taken_by_step: of the budget.
            batches: of the training data, for batch norm's statistics of averages.
        """
        entrant.charge(taken_by_step)
        self.spent += taken_by_step
        self._turn += taken_by_step
        over = self.spent >= self._total
        if not over and any(each.in_round < self._slice for each in self.left):
            return False
        self._end_round(over, batches())
        return True

    def drop(self, entrant: Entrant, reason: str) -> None:
        """Let one take part no more; the model goes back to where its turn began."""
        entrant.out = reason
        if entrant is self._current:
            entrant.enter()
            self._current = None
        self._tell("out", entrant.name, entrant.score, reason=reason)

    def _change_to(self, entrant: Entrant) -> None:
        if entrant is not self._current:
            self._finish_turn()
            entrant.enter()
        self._current, self._turn = entrant, 0.0

    def _finish_turn(self) -> None:
        if self._current is not None:
            self._current.leave()
        self._current = None

    def _end_round(self, over: bool, batches: Sequence[Objective]) -> None:
        """Score all that are left, and let the worse half go."""
        self._finish_turn()
        self.round += 1
        for entrant in self.left:
            entrant.enter()
            if not entrant.steps:
                continue
            score, held = entrant.look(self._held_out, batches)
            self._tell("score", entrant.name, score, steps=entrant.steps, taken=entrant.spent)
            if better(score, self.best[0]):
                self.best = (score, held, entrant.name)
            entrant.in_round = 0.0
        ranked = sorted(self.left, key=lambda entrant: math.inf if entrant.score is None else entrant.score.total)
        keep = 1 if over or self.round >= self._rounds else math.ceil(len(ranked) / 2)
        for entrant in ranked[keep:]:
            entrant.out = BEATEN if entrant.steps else "no time was left for a step of it"
            self._tell("out", entrant.name, entrant.score, reason=entrant.out)

    def _tell(self, event: str, name: str, score: Score | None, **more: Any) -> None:
        told = None if score is None else score.total
        self.events.append(
            {"event": event, "name": name, "round": self.round, "spent": self.spent, "loss": told} | more
        )

    def state_dict(self) -> dict[str, Any]:
        """All of it, as tensors and plain values."""
        self._sync()
        score, state, name = self.best
        return {
            "entrants": [entrant.state_dict() for entrant in self.entrants],
            "current": None if self._current is None else self._current.name,
            "best": (score.parts, {key: tensor.clone() for key, tensor in state.items()}, name),
            "events": [dict(event) for event in self.events],
        } | {key: getattr(self, key) for key in ("round", "spent", "_turn", "_total", "_rounds")}

    def _sync(self) -> None:
        """Let the state of the one that has the model be the model's."""
        if self._current is not None:
            self._current.leave()

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, with entrants of the same names; the model is put where the next one stands."""
        by_name = {entrant.name: entrant for entrant in self.entrants}
        for each in saved["entrants"]:
            by_name[each["name"]].load_state_dict(each)
        self._current = by_name.get(saved["current"])
        parts, state, name = saved["best"]
        self.best = (Score(parts), {key: tensor.clone() for key, tensor in state.items()}, name)
        self.events = [dict(event) for event in saved["events"]]
        for key in ("round", "spent", "_turn", "_total", "_rounds"):
            setattr(self, key, saved[key])
        if self._current is not None:
            put(self._model, self._current.state)
