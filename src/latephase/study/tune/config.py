"""What a tuning is: a study's TOML with a table `[tune]`, and for each strategy what is searched for."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from ...problems import Problem, get
from ...problems.registry import factory_of
from ..config import Budget, ConfigError, Study, explain, parse_study, read_toml
from ..outline import Table, hint
from ..strategies import StrategyConfig
from .paths import with_value

TUNINGS = Path(__file__).parent / "tunings"
PARSED: TypeAdapter[Any] = TypeAdapter(StrategyConfig)
OF_THE_STRATEGY = ("name", "kind", "label")
"""Keys that say which strategy it is, so that there is nothing to search for."""


class Search(Table):
    """Where to look for one value: `low` to `high`, of which whole numbers are drawn where both are, or `choices`.

    `log` draws uniformly in the logarithm, `step` on a grid from `low`. `one_minus` draws 1 - value instead, which is
    how momenta are searched for (Clarke and Hernandez-Lobato 2024: 1 - momentum from 1e-4 to 0.3, in the logarithm).
    """

    low: int | float | None = Field(default=None, allow_inf_nan=False)
    high: int | float | None = Field(default=None, allow_inf_nan=False)
    log: bool = False
    step: int | float | None = Field(default=None, gt=0, allow_inf_nan=False)
    one_minus: bool = False
    choices: list[bool | int | float | str] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> "Search":
        low, high = self.low, self.high
        if self.choices is not None:
            if self.model_fields_set != {"choices"}:
                raise ValueError("give choices, or low and high with what belongs to them, not both")
            if any(self.choices.count(choice) > 1 for choice in self.choices):
                raise ValueError(f"choices must differ from each other, got {self.choices}")
            return self
        if low is None or high is None:
            raise ValueError("give low and high, or choices")
        if low >= high:
            raise ValueError(f"low must be below high, got low {low:g} and high {high:g}")
        if self.log and low <= 0:
            raise ValueError(f"low must be above 0 where log is true, got {low:g}")
        if self.step is not None and (self.log or abs((high - low) / self.step % 1 - 0.5) < 0.5 - 1e-9):
            raise ValueError("step goes without log, and must divide high - low")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether whole numbers are drawn."""
        given = [number for number in (self.low, self.high, self.step) if number is not None]
        return not self.one_minus and all(isinstance(number, int) for number in given)

    def value(self, drawn: Any) -> Any:
        """What a strategy gets for what was drawn."""
        return 1.0 - drawn if self.one_minus else drawn

    def ends(self) -> list[Any]:
        """The values that bound all others: both ends, or all choices."""
        return list(self.choices) if self.choices is not None else [self.value(self.low), self.value(self.high)]


class Halving(Table):
    """Successive halving, asynchronous (Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning").

    Trials are compared after `1 / factor` of the budget, `1 / factor**2` and so on, `rungs` times; at each, a trial
    goes on if it is among the best 1 in `factor` so far. The paper's first rung is at 1 second of 900: `rungs = 5`.
    Default 3, that is after 1/64, 1/16 and 1/4 of the budget, as budgets are shorter here; 0: every trial gets all.
    """

    factor: int = Field(default=4, ge=2)
    rungs: int = Field(default=3, ge=0)


class Tune(Table):
    """How all strategies are tuned; defaults as in Clarke and Hernandez-Lobato (2024), but for `rungs`."""

    trials: int = Field(default=200, ge=1, description="of each strategy")
    sampler: Literal["random", "tpe"] = "random"
    metric: str = Field(default="valid_loss", description="at the end of the budget")
    seed: int = Field(default=0, ge=0, lt=2**31, description="of the settings, and of all trials' data and weights")
    budget: Budget | None = Field(default=None, description="of a trial; default: the study's")
    halving: Halving = Halving()


@dataclass(frozen=True)
class Tuning:
    """A tuning that has been read.

    Attributes:
        study: the study, each strategy with the values that its table gives; its budget is that of a trial.
        tune: the table `[tune]`.
        searches: by strategy name, what is searched for: a path in its table, and where to look. Strategies with
            nothing to search for have no trials.
        table: the study's TOML without what is about tuning.
        given: the whole of it.
        higher_is_better: the direction of the metric.
    """

    study: Study
    tune: Tune
    searches: dict[str, dict[str, Search]]
    table: dict[str, Any]
    given: dict[str, Any]
    higher_is_better: bool

    @property
    def budget(self) -> float:
        """Of a trial, in the unit of the study's budget."""
        assert self.study.budget.amount is not None
        return self.study.budget.amount

    @property
    def points(self) -> list[float]:
        """Where trials are evaluated, in the unit of the budget: at the rungs of successive halving and at the end."""
        halving = self.tune.halving
        return [self.budget / halving.factor**rung for rung in range(halving.rungs, -1, -1)]

    @property
    def tuned(self) -> list[str]:
        """Names of the strategies that have trials, in order."""
        return [name for name, searches in self.searches.items() if searches]

    def changed(self, jobs: int | None = None, trials: int | None = None, device: str | None = None) -> "Tuning":
        """The tuning with another number of trials at a time, or of each strategy, or device, where they are given."""
        changes = {} if device is None else {"device": device}
        study = self.study.model_copy(update=changes if jobs is None else changes | {"jobs": jobs})
        tune = self.tune.model_copy(update={} if trials is None else {"trials": trials})
        return replace(self, study=study, tune=tune, table=self.table | changes, given=self.given | changes)

    def setting(self, strategy: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """The table of a strategy with values at their paths.

        Raises:
            ValueError: a path leads nowhere.
        """
        table = next(table for table in self.table["strategies"] if table["name"] == strategy)
        for path, value in values.items():
            table = with_value(table, path, value)
        return table

    def strategy(self, strategy: str, values: Mapping[str, Any]) -> StrategyConfig:
        """A strategy with values at their paths.

        Raises:
            ValueError: the strategy cannot be had with them; says why.
        """
        try:
            return PARSED.validate_python(self.setting(strategy, values))
        except ValidationError as error:
            raise ValueError("; ".join(explain(detail) for detail in error.errors())) from error


def named_tunings() -> list[str]:
    """Names of the tunings that come with the package."""
    return sorted(path.stem for path in TUNINGS.glob("*.toml"))


def read_tuning(name_or_file: str) -> Tuning:
    """Check the table of `tuning_table`; a problem of the user's own is called."""
    return parse_tuning(*tuning_table(name_or_file))


def tuning_table(name_or_file: str) -> tuple[dict[str, Any], str]:
    """The table of a tuning by its name, or of a TOML file, and how errors call it; see `study_table`."""
    path = Path(name_or_file)
    if path.suffix != ".toml":
        path = TUNINGS / f"{name_or_file}.toml"
        if not path.is_file():
            known = named_tunings()
            raise ConfigError(
                f"no tuning {name_or_file!r}{hint(name_or_file, known)}; known: {', '.join(known)}; one of your own is "
                "a file FILE.toml"
            )
    return read_toml(path), str(path)


def parse_tuning(table: Mapping[str, Any], source: str, *, call: bool = True) -> Tuning:
    """Check a tuning's table; `source` names it in errors, and `call` is as in `parse_study`.

    Raises:
        ConfigError: as `read_tuning`.
    """
    given, table = dict(table), copy.deepcopy(dict(table))
    if not isinstance(table.get("tune"), dict):
        raise ConfigError(f"{source}: missing table [tune]: without it there is nothing to tune; see docs/tune.md")
    tune = _validated(Tune, table.pop("tune"), source, ("tune",))
    wanted: dict[str, Any] = {}
    for entry in table["strategies"] if isinstance(table.get("strategies"), list) else ():
        if isinstance(entry, dict):
            wanted[str(entry.get("name"))] = entry.pop("search", None)
    if "checkpoints" not in table and isinstance(table.setdefault("training", {}), dict):
        table["checkpoints"] = [0]  # trials start from the initialisation, and so do the best settings
        table.setdefault("fresh_weights", True)
        table["training"].setdefault("epochs", 1)  # which nothing starts from
    if tune.budget is not None:
        table.setdefault("budget", tune.budget.model_dump(exclude_none=True))
    study = parse_study(table, source, call=call)
    budget = tune.budget or study.budget
    if budget.amount is None:
        raise ConfigError(
            f"{source}: tune.budget: give amount, in the unit; a share is one of a training, which tuning does without"
        )
    study = study.model_copy(update={"budget": budget})
    halving = tune.halving
    if budget.unit != "seconds" and budget.amount < halving.factor**halving.rungs:
        raise ConfigError(
            f"{source}: tune.halving: the first rung is at {budget.amount / halving.factor**halving.rungs:.2g} "
            f"{budget.unit} of {budget.amount:g}, less than one; give fewer rungs, or a larger budget"
        )
    is_known = call or not factory_of(study.problem)
    direction = is_known and _direction(tune.metric, get(study.problem, **study.problem_options), source)
    searches = {name: _searches(name, given, source) for name, given in wanted.items()}
    tuning = Tuning(study, tune, searches, table, given, direction)
    if not tuning.tuned:
        raise ConfigError(f"{source}: no strategy searches for anything, so that there is nothing to tune")
    for name in tuning.tuned:
        _check_ends(tuning, name, source)
    return tuning


def _validated(model: Any, table: Any, source: str, place: tuple[str, ...]) -> Any:
    """A table's model, errors naming the key.

    Raises:
        ConfigError: the table does not fit.
    """
    try:
        return model.model_validate(table)
    except ValidationError as error:
        details = [{**detail, "loc": (*place, *detail["loc"])} for detail in error.errors()]
        lines = [explain(detail, (Tune, Halving, Search)) for detail in details]
        raise ConfigError("\n".join(f"{source}: {line}" for line in lines)) from error


def _direction(metric: str, problem: Problem, source: str) -> bool:
    """Whether more of a metric is better.

    Raises:
        ConfigError: the validation split has no such metric.
    """
    known = {"valid_loss": False} | {f"valid_{m.name}": m.higher_is_better for m in problem.metrics if m.is_of("valid")}
    if metric not in known:
        raise ConfigError(
            f"{source}: tune.metric: {metric!r} is not measured on the validation split, on which alone settings are "
            f"chosen{hint(metric, list(known))}; known: {', '.join(known)}"
        )
    return known[metric]


def _searches(name: str, given: Any, source: str) -> dict[str, Search]:
    place = f"strategies.{name}.search"
    if given is None:
        raise ConfigError(
            f'{source}: missing table {place}: paths and where to look, such as {{ "options.damping" = {{ low = 1e-8, '
            "high = 1.0, log = true }} }; an empty one, {}, where the strategy shall stay as it is"
        )
    if not isinstance(given, dict):
        raise ConfigError(f"{source}: {place} must be a table, got {given!r}")
    return {path: _validated(Search, table, source, (place, path)) for path, table in given.items()}


def _check_ends(tuning: Tuning, name: str, source: str) -> None:
    """Hold every path, and the ends of where to look, to what the strategy takes.

    An end is tried by itself, and where it is refused, beside the others' largest: one value may need another.

    Raises:
        ConfigError: it does not take them.
    """
    searches = tuning.searches[name]
    largest = {path: search.ends()[-1] for path, search in searches.items()}
    for path, search in searches.items():
        if path in OF_THE_STRATEGY:
            raise ConfigError(
                f"{source}: strategies.{name}.search: {path} says which strategy it is; nothing to search"
            )
        for value in search.ends():
            alone, beside = (_refusal(tuning, name, values) for values in ({path: value}, largest | {path: value}))
            if alone and beside:
                raise ConfigError(f"{source}: strategies.{name}.search.{path}: with {value!r}: {alone}")


def _refusal(tuning: Tuning, name: str, values: Mapping[str, Any]) -> str:
    """Why a strategy does not take values; nothing where it does."""
    try:
        tuning.strategy(name, values)
    except (ValueError, TypeError) as error:  # optimizers raise both
        return str(error)
    return ""
