"""The hand-over: a race of ways to go on, and the steps of its winner."""

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from ...objective import Objective
from ...optim import Halving, LatePhase, OneObjective, Wants, known
from ...problems import Problem
from ...problems.problem import is_batch, start_optimizer
from ...problems.sampling import StepRows, Stream, generator
from ..outline import About
from .base import Strategy
from .context import StrategyContext
from .table import StrategyTable

PARTS = 10
"""Of the held-out rows, so that differences have an interval."""


class LatePhaseSteps(StrategyTable):
    """Go on by `latephase.LatePhase`: the training's optimizer races with what else fits, and the winner goes on.

    A share of the training split is held out from the steps and scores them; the validation split is not looked at. Of
    a problem whose data is a list of batches, all of which every step sees, held out is data drawn anew.
    """

    about: ClassVar = About("hand-over", second_order=True, has_rate=False, counts=())
    kind: Literal["late_phase"]
    batch_size: int | None = Field(default=None, ge=1, description="of the base's steps; default: the training's")
    held_out: float = Field(default=0.1, gt=0, lt=1, description="share of the training split")
    wait: bool = Field(default=False, description="for the base to be in diffusion, before the race begins")
    contestants: list[str] | None = Field(
        default=None, min_length=1, description="the library's, by name; default: those that fit by themselves"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="of latephase.Halving")

    @field_validator("contestants")
    @classmethod
    def _named(cls, contestants: list[str] | None) -> list[str] | None:
        names = [known(name) for name in contestants or []]
        if len(set(names)) < len(names):
            raise ValueError(f"contestants: one is named twice: {', '.join(names)}")
        return contestants

    @field_validator("options")
    @classmethod
    def _known(cls, options: dict[str, Any]) -> dict[str, Any]:
        try:
            Halving(**options)
        except TypeError as error:
            raise ValueError(f"options are those of Halving: {error}") from error
        return options

    def fitted(self, problem: Problem, rows: int) -> "LatePhaseSteps":
        """The strategy, whose batches fit what is not held out."""
        self._check_fit(self.batch_size or 1, max(1, round(self.held_out * rows)), problem, rows)
        return self

    def start(self, context: StrategyContext) -> "LatePhaseStrategy":
        """The strategy."""
        return LatePhaseStrategy(self, context)


class LatePhaseStrategy(Strategy):
    """See `LatePhaseSteps`."""

    def __init__(self, config: LatePhaseSteps, context: StrategyContext):
        super().__init__(context)
        if context.budget is None:
            raise ValueError("kind late_phase goes with a budget in seconds or in steps")
        training = context.training
        self._base = start_optimizer(training.optimizer, self.model.parameters(), training.lr, training.momentum)
        if context.checkpoint.get("optimizer") is not None:
            self._base.load_state_dict(copy.deepcopy(context.checkpoint["optimizer"]))
        lists = not is_batch(context.splits.train)
        self._source: OneList | OtherRows = OneList(context) if lists else OtherRows(context, config)
        amount, unit = context.budget
        self._late = LatePhase(
            self.model.parameters(),
            self._base,
            amount,
            held_out=self._source.held_out,
            source=self._source,
            contestants=config.contestants,
            detector=None if config.wait else False,
            settings=Halving(**config.options),
            unit=unit,
        )
        self._steps = 0

    @property
    def lr(self) -> float:
        """The base's rate."""
        return self._base.param_groups[0]["lr"]

    def step(self, share: float) -> dict[str, Any]:
        """Take one step of whoever is next; none where nobody is, and the budget still runs."""
        self._steps += 1
        if self._late.phase == "done":
            return {"phase": "done"}
        if self._late.phase == "base":
            self._late.step(self._source.draw(Wants(self._source.batch), self._steps)[0])
        else:
            self._late.step()
        report = self._late.report
        return {} if report is None else report.as_dict()

    def held(self) -> dict[str, Tensor]:
        """The state with the lowest held-out loss so far; before the hand-over the base's."""
        return super().held() if self._late.phase == "base" else self._late.best_state(self.model)


class OtherRows:
    """The training rows that are not held out, drawn by the numbers of steps."""

    def __init__(self, context: StrategyContext, config: LatePhaseSteps):
        self._context = context
        count = max(1, round(config.held_out * context.rows))
        order = torch.randperm(context.rows, generator=generator(Stream.EVALUATION, context.seed, 0))
        self._rows = order[count:]
        self.rows: int | None = len(self._rows)
        size = config.batch_size or context.training.batch_size
        self.batch: int | None = None if size is None or size >= len(self._rows) else size
        self.deterministic = self.batch is None and context.problem.augment is None
        self.held_out = [self._plain(part) for part in order[:count].tensor_split(min(PARTS, count))]
        self._drawing = StepRows(len(self._rows), context.seed)

    def draw(self, wants: Wants, step: int) -> tuple[Objective, Objective | None]:
        """The data of a step."""
        random = generator(Stream.AUGMENTATION, self._context.seed, step)
        own, judging = self._drawing.of_step(wants.rows, wants.evaluation, step)
        if own is None:
            return self._context.objective(self._rows, random), None
        return self._of(own, random), None if judging is None else self._of(judging, random)

    def statistics(self) -> Sequence[Objective]:
        """Batches for batch norm's statistics of an average; the same always."""
        return [self._plain(self._rows[rows]) for rows in self._drawing.statistics(self.batch)]

    def _of(self, places: Tensor, random: torch.Generator) -> Objective:
        return self._context.objective(self._rows[places], random)

    def _plain(self, rows: Tensor) -> Objective:
        context = self._context
        return context.problem.objective(context.model, context.problem.batch(context.splits.train, rows))


class OneList(OneObjective):
    """The data of a problem that is a list of batches, all of which every step sees."""

    def __init__(self, context: StrategyContext):
        problem, model = context.problem, context.model
        super().__init__(problem.objective(model, problem.batch(context.splits.train)))
        self.held_out: list[Objective] | None = None
        if problem.redraw is not None:
            fresh = problem.redraw(generator(Stream.EVALUATION, context.seed, 0))
            self.held_out = [problem.objective(model, problem.batch(fresh))]
