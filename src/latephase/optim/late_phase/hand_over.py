"""From the base to the end of the budget: the race, the winner's steps, the best that was held."""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ...objective import Objective
from .contestant import Contestant, Wants
from .entrant import Entrant, better
from .held_out import HeldOut, Score, difference
from .race import BEATEN, Race
from .settings import Budget, Halving
from .states import State, in_mode, put, taken

Batches = Callable[[], Sequence[Objective]]


class HandOver:
    """Contestants race from the model's present state, the winner goes on, and at the end the model is the best seen.

    Args:
        contestants: that take part. Where there is one, it goes on at once.
        optimizers: theirs, by name.
        model: with its present state.
        held_out: scores states.
        budget: of which what is left is spent.
        settings: shares and numbers.
        deterministic: whether all steps of the base see the same data. Whoever goes on in place of a winner then begins
            at the best state: it is a minimum that is sought, and no step is needed that takes noise away.

    Attributes:
        done: whether the budget is spent, or nobody can go on; the model then has the best state that was held.
        why: in words, why it ended.
        sureness: of the winner before the runner-up, (difference of held-out losses, half width of its 95 % interval);
            None before the race is decided, and where there was nobody else.
    """

    def __init__(
        self,
        contestants: Sequence[Contestant],
        optimizers: Mapping[str, Any],
        model: nn.Module,
        held_out: HeldOut,
        budget: Budget,
        settings: Halving,
        deterministic: bool = False,
    ):
        self._model, self._held_out, self._budget, self._settings = model, held_out, budget, settings
        self._begun, self._left = budget.spent, max(budget.left, 1e-9)
        entrants = [Entrant(each, optimizers[each.name], model, self._left) for each in contestants]
        # The winner's own slices, a fair share at least, are not lost: what the others take is within the share.
        lost = settings.share * self._left
        total = min(lost * len(entrants) / max(len(entrants) - 1, 1), 0.5 * self._left)
        self.race = Race(entrants, model, held_out, total)
        self._winner: Entrant | None = None
        self._next_look = 0.0
        self._idle = self._vain = 0
        self._deterministic = deterministic
        self._lowest = math.inf
        self.done, self.why = False, ""
        self.sureness: tuple[float, float] | None = None
        self._decide()

    @property
    def phase(self) -> str:
        """One of "race", "winner" and "done"."""
        return "done" if self.done else "race" if self._winner is None else "winner"

    @property
    def share(self) -> float:
        """Of what was left at the hand-over, how much is spent."""
        return min(1.0, (self._budget.spent - self._begun) / self._left)

    @property
    def current(self) -> Entrant | None:
        """Whose step is next; the model stands where this one does."""
        return None if self.done else self._winner if self._winner is not None else self.race.next()

    @property
    def wants(self) -> Wants | None:
        """Data of the next step; None where there is none."""
        current = self.current
        return None if current is None else current.contestant.wants

    def step(self, objective: Objective, batches: Batches, **beside: Objective) -> Tensor | None:
        """The step of whoever is next, and what follows from it.

        Args:
            objective: data as `wants` says.
            batches: of the training data, for batch norm's statistics of averages.
            **beside: `evaluation` and `curvature_objective`, where they are wanted.

        Returns:
            The loss before the step; None where it raised an error.
        """
        entrant = self.current
        if entrant is None:
            raise RuntimeError(f"there is no step to take: {self.why}")
        with contextlib.nullcontext() if entrant.contestant.training else in_mode(self._model, False):
            loss = self.race.step(entrant, objective, self.share, **beside)
        passed = self._budget.stop(1)
        if self._winner is None:
            if entrant.out is None and self.race.charge(entrant, passed, batches):
                self._budget.stop()  # what the scores took
            self._decide()
        else:
            entrant.charge(passed)
            self._follow(entrant, batches)
        return loss

    def drop(self, reason: str, batches: Batches) -> None:
        """Whoever is next cannot go on, for want of data or memory: what it reached counts, but it takes no more part.

        Args:
            reason: why.
            batches: as for `step`.
        """
        entrant = self.current
        if entrant is not None:
            if entrant.steps:
                self._look(entrant, batches)
            self.race.drop(entrant, reason)
            self._decide() if self._winner is None else self._succeed()

    def _decide(self) -> None:
        """Take the winner of a race that is decided; end where nobody is left."""
        if self.race.next() is not None:
            return
        self._winner = self.race.winner
        if self._winner is None:
            self._end("no contestant could go on")
            return
        self._winner.enter()
        others = [each for each in self.race.entrants if each is not self._winner and better(each.score, None)]
        if self._winner.score is not None and others:
            second = min(others, key=lambda each: each.score.total if each.score else math.inf)
            self.sureness = difference(self._winner.score, second.score or self._winner.score)
        self._next_look = self.share + (1 - self.share) / self._settings.looks
        self._lowest = self.race.best[0].total
        self._tell_winner(self._winner)
        if self._budget.left <= 0:
            self._end("the budget was spent by the race")

    def _follow(self, winner: Entrant, batches: Batches) -> None:
        """After a step of the winner: look at what it would hold where that is due, end, or let another go on."""
        if winner.out is not None:
            self._succeed()
            return
        self._idle = self._idle + 1 if winner.stationary else 0
        over, stuck = self._budget.left <= 0, self._idle >= self._settings.patience
        if over or stuck or self.share >= self._next_look:
            self._look(winner, batches)
            self._next_look = self.share + (1 - self._begun_share()) / self._settings.looks
            self._budget.stop()
        if over:
            self._end("the budget is spent")
        elif stuck or self._overfits(winner):
            winner.leave()
            winner.out = (
                f"stationary for {self._idle} steps" if stuck else f"no lower held-out loss in {self._vain} looks"
            )
            score = None if winner.score is None else winner.score.total
            self.race.events.append({"event": "out", "name": winner.name, "loss": score, "reason": winner.out})
            self._succeed()

    def _overfits(self, winner: Entrant) -> bool:
        """Whether it has long found nothing lower, and another may; one whose rate still falls gets to its end."""
        long = self._vain >= self._settings.vain * self._settings.looks
        return long and winner.contestant.schedule is None and bool(self._beaten())

    def _beaten(self) -> list[Entrant]:
        return [each for each in self.race.entrants if each.out == BEATEN and better(each.score, None)]

    def _begun_share(self) -> float:
        return min(1.0, self.race.spent / self._left)

    def _look(self, entrant: Entrant, batches: Batches) -> None:
        score, held = entrant.look(self._held_out, batches())
        told = {"event": "look", "name": entrant.name, "spent": self._budget.spent - self._begun, "loss": score.total}
        self.race.events.append(told | {"steps": entrant.steps, "taken": entrant.spent})
        self._vain += 1
        if better(score, self.race.best[0]):
            self.race.best = (score, held, entrant.name)
        if score.total < self._lowest:
            self._lowest, self._vain = score.total, 0

    def _succeed(self) -> None:
        """The next best of those that were beaten, and neither failed nor ended, goes on.

        It does so from where it stands or, where all steps see the same data, from the best state. It need not get
        below that at once: as long as it gets lower itself, it has not gone on in vain.
        """
        beaten = self._beaten()
        if not beaten or self._budget.left <= 0:
            self._end("nobody is left who could go on")
            return
        self._winner = min(beaten, key=lambda each: each.score.total if each.score else math.inf)
        if self._deterministic:
            self._winner.begin_at(self.race.best[1])
        self._lowest = math.inf
        self._winner.out, self._idle, self._vain = None, 0, 0
        self._winner.enter()
        self._tell_winner(self._winner)

    def _tell_winner(self, winner: Entrant) -> None:
        score = None if winner.score is None else winner.score.total
        spent = self._budget.spent - self._begun
        self.race.events.append({"event": "winner", "name": winner.name, "spent": spent, "loss": score})

    def _end(self, why: str) -> None:
        self.done, self.why = True, why
        self._winner = None
        put(self._model, self.race.best[1])

    @property
    def best(self) -> tuple[Score, str]:
        """The best held-out loss so far, and who held it."""
        return self.race.best[0], self.race.best[2]

    @property
    def held(self) -> State:
        """The state that had it."""
        return self.race.best[1]

    @property
    def events(self) -> list[dict[str, Any]]:
        """What happened, newest last."""
        return self.race.events

    def state_dict(self) -> dict[str, Any]:
        """All of it, as tensors and plain values; the winner stands where the model does."""
        if self._winner is not None:
            self._winner.state = taken(self._model)
        names = ("_begun", "_left", "_next_look", "_idle", "_vain", "_lowest", "done", "why", "sureness")
        return {name: getattr(self, name) for name in names} | {
            "race": self.race.state_dict(),
            "winner": None if self._winner is None else self._winner.name,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, with contestants of the same names."""
        self.race.load_state_dict(saved["race"])
        for name in ("_begun", "_left", "_next_look", "_idle", "_vain", "done", "why", "sureness"):
            setattr(self, name, saved[name])
        self._lowest = saved.get("_lowest", self.race.best[0].total)
        for entrant in self.race.entrants:
            entrant.left = self._left
        by_name = {entrant.name: entrant for entrant in self.race.entrants}
        self._winner = by_name.get(saved["winner"])
        if self._winner is not None:
            self._winner.enter()
        elif self.done:
            put(self._model, self.race.best[1])
