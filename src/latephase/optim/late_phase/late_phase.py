"""`LatePhase`: a base optimizer until its iterates diffuse, then the race, then the winner."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ...objective import Objective
from ..parts import the_objective
from .asks import Subject
from .contestant import Contestant, Wants, parameters_of
from .given import VERSION, beside_of, check_saved, checked, detector_of, entered, made, remade, scores_of
from .hand_over import HandOver
from .loaded import Loaded
from .report import LatePhaseReport
from .settings import Budget, Halving
from .source import Source, drawn, first_of
from .states import state_dict_with

SAME = 3
"""Steps with one and the same objective after which the problem counts as deterministic."""


class LatePhase(Optimizer):
    """The steps of a base optimizer until they only diffuse; then a race of ways to go on, and the steps of its winner.

    Whether second-order steps pay late in a training depends on the model and its data, and cannot be known beforehand
    (Tatzel, Hennig and Schneider 2022 name it as future work). So it is measured: when the detector says that the base
    is in diffusion, contestants start from the same state, get slices of a tenth of what is left of the budget, and are
    scored by what each would hold if it stopped then; the worse half drops out, and so on. The winner goes on from
    where it stands. When the budget is spent, the model has the best state that was held, by the held-out loss: never a
    worse one than the state at the hand-over::

        base = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = LatePhase(model.parameters(), base, budget=3600.0, held_out=Objective(model, loss, held_out))
        while optimizer.phase != "done":
            optimizer.step(Objective(model, loss, next_batch(optimizer.wants)))

    Args:
        params: the base's parameters, all of them.
        base: any torch optimizer. Its rates may follow schedulers (made for it or for this one) until the hand-over.
        budget: what the whole training may take, in seconds spent in steps or in steps, see `unit`.
        held_out: the objective of held-out data that scores states, or several of parts of it, which tell how sure a
            difference is. Default none: for a problem whose steps all see the same data its own objective; else the
            batch at the hand-over, with a warning.
        source: where the steps after the hand-over get data; they are then given none. Default none: give what `wants`
            says; contestants that need all rows take part if every step sees the same data.
        contestants: who takes part, in place of those that fit by themselves (`candidates`), which is the default:
            `Contestant`s of your own, and names of the library's.
        detector: says when the base is in diffusion; None for the default one, False to race at once.
        settings: shares and numbers. Default `Halving()`.
        unit: "seconds" (default), "processor_seconds" of this process, or "steps". In steps a run is the same on every
            machine, but a step of one contestant costs as much as one of another.

    Attributes:
        report: `LatePhaseReport` of the last step; None before the first.
        excluded: why others cannot take part, by name, once the race has begun.

    Raises:
        TypeError: a base that is no optimizer, contestants that are none.
        ValueError: parameters that are not the base's, a budget that is no finite number above 0, two contestants of
            one name.
    """

    report: LatePhaseReport | None = None

    def __init__(
        self,
        params: Iterable[Any],
        base: Optimizer,
        budget: float,
        held_out: Objective | Sequence[Objective] | None = None,
        source: Source | None = None,
        contestants: Sequence[Contestant | str] | None = None,
        detector: Any = None,
        settings: Halving | None = None,
        unit: str = "seconds",
    ):
        if not isinstance(base, Optimizer):
            raise TypeError(f"base must be a torch optimizer, got {type(base).__name__}")
        super().__init__(params, {})
        if set(map(id, parameters_of(self))) != set(map(id, parameters_of(base))):
            raise ValueError("params must be the parameters of the base optimizer, all of them and no others")
        self.param_groups, self.base = base.param_groups, base
        self._budget = Budget(budget, unit)
        self._held_out, self._source = held_out, source
        self._contestants = None if contestants is None else checked(contestants)
        self.detector, self._settings = detector_of(detector), Halving() if settings is None else settings
        self._hand_over: HandOver | Loaded | None = None
        self._deterministic, self._steps = False, 0
        self._batch: int | None = None
        self._seen: tuple[Any, int] = (None, 0)
        self.excluded: dict[str, str] = {}

    @property
    def phase(self) -> str:
        """One of "base", "race", "winner" and "done"."""
        return "base" if self._hand_over is None else self._hand_over.phase

    @property
    def wants(self) -> Wants | None:
        """Data of the next step; None in the base's phase, whose batches are yours to choose, and when all is done."""
        return None if self._hand_over is None else self._hand_over.wants

    @property
    def events(self) -> list[dict[str, Any]]:
        """What happened since the hand-over: scores, who dropped out and why, who won, what the winner held."""
        return [] if self._hand_over is None else list(self._hand_over.events)

    @property
    def sureness(self) -> tuple[float, float] | None:
        """Of the winner: its held-out loss minus the runner-up's, and half the width of the 95 % interval of that."""
        return None if self._hand_over is None else self._hand_over.sureness

    @property
    def contestants(self) -> list[Contestant]:
        """Those that take part, once the race has begun; before, your own."""
        given = [each for each in self._contestants or [] if isinstance(each, Contestant)]
        return given if self._hand_over is None else list(self._taking_part)

    @property
    def spent(self) -> float:
        """Of the budget."""
        return self._budget.spent

    @property
    def budget(self) -> float:
        """What may be spent in all."""
        return self._budget.amount

    @property
    def unit(self) -> str:
        """Of the budget: "seconds" or "steps"."""
        return self._budget.unit

    @property
    def best(self) -> tuple[float, str]:
        """The lowest held-out loss that was held since the hand-over, and by whom; infinite before."""
        if self._hand_over is None:
            return math.inf, "start"
        score, holder = self._hand_over.best
        return score.total, holder

    def best_state(self, model: nn.Module) -> dict[str, Tensor]:
        """The state dict of the model with the parameters and buffers that had the lowest held-out loss."""
        return state_dict_with(model, {} if self._hand_over is None else self._hand_over.held)

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        objective: Objective | None = None,
        *,
        evaluation: Objective | None = None,
        curvature_objective: Objective | None = None,
        closure: Objective | None = None,
    ) -> Tensor | None:
        """Take one step of whoever is next.

        Args:
            objective: the step's data; may be left out after the hand-over where there is a `source`.
            evaluation: data that judges the step, where `wants.evaluation` says so.
            curvature_objective: where the curvature is taken. Default: `wants.curvature` rows of the objective.
            closure: the objective, by the name that wrappers of torch optimizers use.

        Returns:
            The loss before the step; None where the step raised an error, so that its contestant is out.

        Raises:
            TypeError: no objective where one is needed.
            RuntimeError: all is done.
        """
        loaded = self._hand_over if isinstance(self._hand_over, Loaded) else None
        if self.phase == "done" and loaded is None:
            raise RuntimeError("all is done: the budget is spent, and the model has the best state that was held")
        self._budget.start()
        if objective is not None or closure is not None or self._source is None:
            objective = the_objective(objective, closure, type(self).__name__)
        if loaded is not None:
            self._hand_over = self._resumed(loaded.saved, objective)
        elif self._hand_over is None and self.detector is False:
            self._hand_over = self._begun(objective)
        hand_over = self._hand_over
        if not isinstance(hand_over, HandOver):
            return self._base_step(objective)
        return None if hand_over.done else self._later_step(hand_over, objective, evaluation, curvature_objective)

    def _base_step(self, objective: Objective | None) -> Tensor:
        if objective is None:
            raise TypeError("the base's steps need an objective each; its batches are yours to choose")
        before, count = self._seen
        self._seen = objective, count + 1 if before is objective else 1
        base: Any = self.base
        loss = base.step(objective)
        self.detector.update(self.base.param_groups, loss=loss)
        self._budget.stop(1)
        inner = getattr(self.base, "report", None)
        self.report = LatePhaseReport("base", "base", float(loss), self._budget.spent, None, None, inner)
        self._steps += 1
        due = self._settings.at is not None and self._steps >= self._settings.at
        if due or self.detector.in_diffusion or self._budget.spent >= self._settings.latest * self._budget.amount:
            self._hand_over = self._begun(objective)
        return loss

    def _begun(self, objective: Objective | None) -> HandOver:
        """The hand-over from where the base stands."""
        source, budget = self._source, self._budget
        first = first_of(objective, source)
        self._deterministic = self._seen[1] >= SAME if source is None else source.deterministic
        self._batch = None if self._deterministic else sum(chunk.rows for chunk in first.chunks)
        rows = None if source is None else source.rows
        subject = Subject(first, rows, self._batch, self._deterministic, budget.seconds_left, budget.clock)
        self._taking_part, optimizers, self.excluded = entered(self._contestants, subject, self.base)
        hand_over = self._made(optimizers, first)
        budget.stop()
        return hand_over

    def _made(self, optimizers: Mapping[str, Any], first: Objective) -> HandOver:
        held_out = scores_of(self._held_out, first, self._deterministic)
        settings = self._budget, self._settings, self._deterministic
        return HandOver(self._taking_part, optimizers, first.model, held_out, *settings)

    def _later_step(
        self,
        hand_over: HandOver,
        objective: Objective | None,
        evaluation: Objective | None,
        curvature_objective: Objective | None,
    ) -> Tensor | None:
        """A step in the race or of its winner."""
        current = hand_over.current
        assert current is not None
        wants = current.contestant.wants
        source = self._source
        batches = list if source is None else source.statistics
        if objective is None and source is not None:
            data = drawn(source, wants, current.steps + 1)
            if isinstance(data, str):
                hand_over.drop(data, batches)
                return None
            objective, evaluation = data
        assert objective is not None
        beside = beside_of(wants, objective, evaluation, curvature_objective, current.steps + 1)
        loss = hand_over.step(objective, batches, **beside)
        told, (best, holder) = None if loss is None else float(loss), hand_over.best
        inner = getattr(current.optimizer, "report", None)
        self.report = LatePhaseReport(
            hand_over.phase, current.name, told, self._budget.spent, best.total, holder, inner
        )
        return loss

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to go on, in whatever phase: tensors and plain values."""
        hand_over, wants = self._hand_over, self.wants
        if isinstance(hand_over, Loaded):
            return dict(hand_over.saved)
        return {
            "kind": "LatePhase",
            "version": VERSION,
            "phase": self.phase,
            "wants": None if wants is None else tuple(wants),
            "base": self.base.state_dict(),
            "budget": self._budget.state_dict(),
            "detector": self.detector.state_dict() if self.detector else None,
            "deterministic": self._deterministic,
            "batch": self._batch,
            "steps": self._steps,
            "contestants": hand_over and [(each.name, tuple(each.wants)) for each in self._taking_part],
            "excluded": dict(self.excluded),
            "hand_over": hand_over and hand_over.state_dict(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a state dict; from the first step on, the model stands where the next contestant does.

        Raises:
            ValueError: it is not of a LatePhase, of a later version, or names a contestant that there is not.
        """
        check_saved(state_dict)
        if state_dict["contestants"] is not None:
            self._taking_part = remade(state_dict, self._contestants)
        self.base.load_state_dict(state_dict["base"])
        self.param_groups = self.base.param_groups
        self._budget.load_state_dict(state_dict["budget"])
        if self.detector and state_dict["detector"] is not None:
            self.detector.load_state_dict(state_dict["detector"])
        self._deterministic, self._seen = state_dict["deterministic"], (None, 0)
        self._batch = state_dict.get("batch")
        self._steps, self.excluded = state_dict["steps"], dict(state_dict["excluded"])
        self._hand_over = None if state_dict["hand_over"] is None else Loaded(state_dict)

    def _resumed(self, saved: Mapping[str, Any], objective: Objective | None) -> HandOver:
        """The hand-over that a loaded state says, now that the model is known."""
        optimizers, refused = made(self._taking_part, self.base, {})
        if refused:
            raise RuntimeError(f"contestants of the state cannot be made here: {refused}")
        hand_over = self._made(optimizers, first_of(objective, self._source))
        hand_over.load_state_dict(saved["hand_over"])
        return hand_over
