"""The scores of a suite: the final values of all runs, problem by problem, as one small file. Imports no torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ...records import DamagedFile, ResultsError, read_json, write_json
from ..outline import About, hint
from ..results import Measure, Results, Run, Strategy, finite
from .reading import Entry, Found, SuitePlan

MACHINE = ("device", "cpu", "cores", "threads", "jobs", "torch", "latephase")
"""What scores keep of the machine."""
CONCLUDED = ("finished", "diverged", "failed")


@dataclass(frozen=True)
class Value:
    """What one run came to.

    Attributes:
        seed: its seed.
        status: "finished", "diverged" (its last evaluation is not finite), "failed", or that of a run without an end.
        value: of the last evaluation; None unless it finished.
        seconds: of its scored clock; None where it did not record them.
    """

    seed: int
    status: str
    value: float | None
    seconds: float | None


@dataclass(frozen=True)
class Case:
    """One row of a suite's table: a problem, from one of its checkpoints.

    Attributes:
        folder: of its study.
        problem: its name.
        title: what it is called.
        kind: in the suite's words; may be empty.
        parameters: of its model.
        rows: of its training split.
        epoch: of the checkpoint.
        measure: key of what runs are compared by.
        higher_is_better: the direction of it.
        unit: of the budget.
        budget: of each run, in that unit.
        dtype: of data and model.
        scale: as of `--scale`.
        values: by strategy name, one for each seed.
    """

    folder: str
    problem: str
    title: str
    kind: str
    parameters: int
    rows: int
    epoch: int
    measure: str
    higher_is_better: bool
    unit: str
    budget: float
    dtype: str
    scale: float
    values: Mapping[str, Sequence[Value]]

    @property
    def measured(self) -> Measure:
        """What runs are compared by."""
        return Measure(self.measure, self.higher_is_better)

    def ended(self, strategy: str) -> list[Value]:
        """The runs of a strategy that have come to their end."""
        return [value for value in self.values.get(strategy, ()) if value.status in CONCLUDED]

    def numbers(self, strategy: str) -> list[float]:
        """Their final values, that of a run that failed or diverged being infinitely bad."""
        worst = -math.inf if self.higher_is_better else math.inf
        return [worst if each.value is None else each.value for each in self.ended(strategy)]

    def median(self, strategy: str) -> float | None:
        """Their median over the seeds; None where none has come to its end."""
        numbers = self.numbers(strategy)
        return median(numbers) if numbers else None


@dataclass(frozen=True)
class SuiteScores:
    """All that the page of a suite says, small enough to be kept.

    Attributes:
        name: of the suite.
        description: of the suite.
        baseline: name of the strategy that the others are compared with.
        strategies: in order, with what their kinds are.
        cases: in the order of the problems.
        troubles: by folder, why a problem has no results.
        machine: what it was run on.
    """

    name: str
    description: str
    baseline: str
    strategies: tuple[Strategy, ...]
    cases: tuple[Case, ...]
    troubles: Mapping[str, str]
    machine: Mapping[str, Any]

    def label(self, name: str) -> str:
        """What a strategy is called."""
        return next(strategy.label for strategy in self.strategies if strategy.name == name)


def scores_of(plan: SuitePlan, members: Sequence[Found]) -> SuiteScores:
    """Score the studies of a suite.

    Raises:
        ResultsError: A problem does not measure what it is to be compared by.
    """
    read = [(member.entry, member.results) for member in members if member.results is not None]
    first = read[0][1].plan
    strategies = {strategy.name: strategy for _, results in read for strategy in results.plan.strategies}
    machine = {key: value for key, value in read[0][1].environment.items() if key in MACHINE}
    return SuiteScores(
        name=plan.name,
        description=plan.description,
        baseline=first.baseline,
        strategies=tuple(strategies.values()),
        cases=tuple(case for entry, results in read for case in _cases(entry, results)),
        troubles={member.entry.folder: member.trouble for member in members if member.results is None},
        machine=machine,
    )


def _cases(entry: Entry, results: Results) -> list[Case]:
    measure, plan, problem = measure_of(entry, results), results.plan, results.problem
    return [
        Case(
            folder=entry.folder,
            problem=plan.problem,
            title=problem["title"],
            kind=entry.kind,
            parameters=problem["parameters"],
            rows=problem["rows"].get("train", 0),
            epoch=epoch,
            measure=measure.key,
            higher_is_better=measure.higher_is_better,
            unit=plan.unit,
            budget=results.budget,
            dtype=plan.dtype,
            scale=plan.scale,
            values={
                strategy.name: [
                    _value(run, measure)
                    for run in results.runs
                    if (run.checkpoint_epoch, run.strategy.name) == (epoch, strategy.name)
                ]
                for strategy in plan.strategies
            },
        )
        for epoch in plan.checkpoints
    ]


def measure_of(entry: Entry, results: Results) -> Measure:
    """What a problem's runs are compared by: the score of the suite, or else the study's last main measure.

    That is the test accuracy, or else the problem's first own metric on the test split, or else the test loss.

    Raises:
        ResultsError: It does not measure that.
    """
    if entry.score is None:
        return results.main_measures[-1]
    known = {f"{split}_loss": False for split in ("train", "valid", "test")}
    for metric in results.problem["metrics"]:
        known |= {f"{split}_{metric['name']}": metric["higher_is_better"] for split in ("train", "valid", "test")}
    if entry.score not in known:
        said = f"{entry.folder}: score {entry.score!r} is not measured{hint(entry.score, list(known))}"
        raise ResultsError(f"{said}; there are {', '.join(known)}")
    return Measure(entry.score, known[entry.score])


def _value(run: Run, measure: Measure) -> Value:
    seconds = finite(run.record.get("scored_seconds"))
    if run.status != "finished":
        return Value(run.seed, run.status, None, seconds)
    value = finite(run.evaluations[-1].get(measure.key)) if run.evaluations else None
    diverged = value is None or finite(run.evaluations[-1].get("train_loss")) is None
    return Value(run.seed, "diverged" if diverged else "finished", None if diverged else value, seconds)


def write_scores(scores: SuiteScores, path: Path) -> None:
    """Write scores as JSON, from which `read_scores` makes the same again."""
    table = asdict(scores)
    table["strategies"] = [
        {"name": s.name, "kind": s.kind, "label": s.label, "about": {k: list(a[:3]) for k, a in s.about.items()}}
        for s in scores.strategies
    ]
    write_json(path, table)


def read_scores(path: Path) -> SuiteScores:
    """Read scores back.

    Raises:
        ResultsError: There are none, or they are not as they were written.
    """
    table = read_json(path)
    if table is None:
        raise ResultsError(f"{path} is missing; latephase report DIR writes it into DIR/report")
    try:
        strategies = tuple(
            Strategy(s["name"], s["kind"], s["label"], {}, {kind: About(*a) for kind, a in s["about"].items()})
            for s in table["strategies"]
        )
        cases = tuple(_case(each) for each in table["cases"])
        return SuiteScores(**(table | {"strategies": strategies, "cases": cases}))
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedFile(path, f"it is not what a suite writes: {error!r}") from error


def _case(table: dict[str, Any]) -> Case:
    values = {name: [Value(**each) for each in row] for name, row in table["values"].items()}
    whole: dict[str, Any] = table | {"values": values}
    return Case(**whole)
