"""What every reader of a study's file knows of it, with the defaults; nothing here imports torch."""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
"""What a strategy may be called, so that folders can be."""
DEVICE = r"^(cpu|cuda)$"
DTYPE = "float32"
"""Of data and model, where nothing else is said."""
SHARE = 0.1
"""Of the training that a run may spend, where nothing else is said."""


class Table(BaseModel):
    """A table of the configuration: unknown keys are errors, values are not converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def hint(name: str, known: list[str]) -> str:
    """The known name that may be meant, in words."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


class About(NamedTuple):
    """What the rest must know of a kind of strategies; a resolved study says it of its kinds.

    Attributes:
        title: what the page calls it.
        second_order: whether it uses curvature.
        has_rate: whether its learning rate is worth a look, and not the length of steps that something else chose.
        counts: of the passes that `Work` counts, those that its steps can make.
    """

    title: str
    second_order: bool = False
    has_rate: bool = True
    counts: tuple[str, ...] = ("gradients",)

    def as_table(self) -> dict[str, Any]:
        """What a resolved study says: all that readers of results need."""
        return {"title": self.title, "second_order": self.second_order, "has_rate": self.has_rate}


class Training(Table):
    """The first-order training that makes the checkpoints; what is left out comes from the problem."""

    epochs: int = Field(ge=1)
    lr: float = Field(gt=0, allow_inf_nan=False)
    batch_size: int | None = Field(default=None, ge=1, description="default: all rows at once")
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = Field(default=0.0, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)
    evaluate_every: int = Field(default=1, ge=1, description="epochs between evaluations")
    save_every: int = Field(default=1, ge=1, description="epochs after which a stopped training can go on")


class Budget(Table):
    """What every run may spend: a share of what the training took, or an amount.

    Seconds are of the scored clock. Steps and gradients are the same on every machine: a gradient stands for the
    gradient of one training batch, and other passes count by fixed weights (see `work.WEIGHTS`).
    """

    unit: Literal["seconds", "steps", "gradients"] = "seconds"
    share: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    amount: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _default(cls, table: Any) -> Any:
        if isinstance(table, dict) and table.get("amount") is None:
            return {"share": SHARE} | table
        return table

    @model_validator(mode="after")
    def _one(self) -> "Budget":
        if (self.share is None) == (self.amount is None):
            raise ValueError("give share, of the training, or amount, in units, not both")
        if self.unit == "steps" and self.amount is not None and self.amount != int(self.amount):
            raise ValueError(f"amount must be a whole number of steps, got {self.amount}")
        return self

    def of(self, whole: float) -> float:
        """What a run may spend, in the unit, where the training took so much of it."""
        if self.amount is not None:
            return self.amount
        part = (self.share or SHARE) * whole
        return part if self.unit == "seconds" else float(max(1, round(part)))


class Fitted(Table):
    """Why a study has the size that it has, where the command was given `--minutes`."""

    minutes: float = Field(gt=0, allow_inf_nan=False, description="that it should end within")
    trial_seconds: float = Field(ge=0, description="that the trial took")
    epoch_seconds: float = Field(ge=0, description="of the training, in the trial")
    run_seconds: float = Field(ge=0, description="of a run beside its budget, in the trial")
    expected_minutes: float = Field(ge=0, description="that the study should take, by the trial")
    seeds: int = Field(ge=1, description="of the whole study")
    checkpoints: int = Field(ge=1, description="of the whole study")
    epochs: int = Field(ge=1, description="of the whole study's training")


class Outline(Table):
    """What a study is to whoever reads its file: `config.Study` performs it, `results.Plan` reads what came of it."""

    name: str = Field(pattern=f"^{NAME}$")
    description: str = ""
    problem: str = Field(description="a name that `latephase problems` lists, or PACKAGE.MODULE:FACTORY of your own")
    problem_version: int
    problem_options: dict[str, Any] = Field(default_factory=dict)
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1, description="a list, such as [0, 1, 2]")
    budget: Budget = Budget(share=SHARE)
    evaluations: int = Field(default=16, ge=1, description="evaluations per budget, equally spaced")
    checkpoints: list[Annotated[int, Field(ge=0)]] = Field(
        min_length=1, description="epochs that strategies start from, or how many of them"
    )
    fresh_weights: bool = Field(default=False, description="from epoch 0, every seed starts from weights of its own")
    dtype: Literal["float32", "float64"] = Field(default=DTYPE, description="of data, model and everything computed")
    curves: Literal["mean", "median"] = Field(
        default="mean", description="over the budget: mean and quartiles, or median and its bootstrap interval"
    )
    baseline: str = Field(description="the strategy that the others are tested against")
    target: str = Field(description="the strategy whose median best value is the target")
    scale: float = Field(default=1.0, gt=0, le=1)
    fitted: Fitted | None = None
    training: Training
    strategies: Any

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, table: Any) -> Any:
        return with_defaults(table) if isinstance(table, dict) else table

    @model_validator(mode="after")
    def _consistent(self) -> "Outline":
        names = [strategy.name for strategy in self.strategies]
        for epoch in self.checkpoints:
            if epoch > self.training.epochs:
                raise ValueError(f"checkpoints: epoch {epoch} is after the training's {self.training.epochs}")
        if self.fresh_weights and 0 not in self.checkpoints:
            raise ValueError("fresh_weights: only runs from epoch 0 can have them; give checkpoints = [0]")
        for what, values in (("checkpoints", self.checkpoints), ("seeds", self.seeds), ("strategies", names)):
            if len(set(values)) != len(values):
                raise ValueError(f"{what} must differ from each other, got {', '.join(map(str, values))}")
        for what, name in (("baseline", self.baseline), ("target", self.target)):
            if name not in names:
                raise ValueError(f"{what}: no strategy {name!r}{hint(name, names)}")
        return self


def fitted_text(study: Outline) -> str:
    """What a trial chose of a study and why, in a sentence; nothing where there was none."""
    fit = study.fitted
    if fit is None:
        return ""
    return (
        f"A trial of {fit.trial_seconds:.0f} s on this machine measured {fit.epoch_seconds:.2g} s for an epoch of the "
        f"training and {fit.run_seconds:.2g} s for a run beside its budget. For {fit.minutes:g} minutes that leaves "
        f"{len(study.seeds)} of {fit.seeds} seeds, {len(study.checkpoints)} of {fit.checkpoints} checkpoints and "
        f"{study.training.epochs} of {fit.epochs} epochs, which should take about {fit.expected_minutes:.1f} minutes."
    )


def with_defaults(table: Mapping[str, Any]) -> dict[str, Any]:
    """A study's table with a baseline (the first strategy) and a target (the first under a cosine, or the baseline)."""
    table, strategies = dict(table), table.get("strategies")
    if {"baseline", "target"} <= table.keys() or not isinstance(strategies, list) or not strategies:
        return table
    if all(isinstance(strategy, dict) and isinstance(strategy.get("name"), str) for strategy in strategies):
        table.setdefault("baseline", strategies[0]["name"])
        under_cosine = [strategy["name"] for strategy in strategies if strategy.get("schedule") == "cosine"]
        table.setdefault("target", (under_cosine or [table["baseline"]])[0])
    return table
