"""What the steps of second-order strategies did, by their own reports. Imports no torch."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from .load import Results, Run, Strategy, finite_values


@dataclass(frozen=True)
class StepSummary:
    """What the steps of one strategy from one checkpoint did, over all its runs; None where their reports do not say.

    Attributes:
        strategy: Which one.
        steps: Mean number of steps per run, within the budget.
        accepted: Share of the steps that were taken.
        cg_iterations: Median number of CG iterations; of several blocks the largest, as one loop serves all.
        damping: Smallest and largest damping used.
        stopped_by: How often CG stopped for which reason, in words.
    """

    strategy: Strategy
    steps: float
    accepted: float | None
    cg_iterations: float | None
    damping: tuple[float, float] | None
    stopped_by: str


def step_summaries(results: Results, epoch: int) -> list[StepSummary]:
    """Return a summary per strategy that reported steps from a checkpoint, in the order of the plan."""
    rows = [(strategy, results.concluded(epoch, strategy)) for strategy in results.plan.strategies]
    return [summarize_steps(strategy, runs) for strategy, runs in rows if any(run.steps for run in runs)]


def summarize_steps(strategy: Strategy, runs: Sequence[Run]) -> StepSummary:
    """Summarise the step reports of a strategy's runs from one checkpoint, at least one of them with a step."""
    steps = [step for run in runs for step in run.steps]
    iterations = [count for step in steps if (count := cg_iterations(step)) is not None]
    damping = finite_values(steps, "damping")
    taken = [bool(step["accepted"]) for step in steps if step.get("accepted") is not None]
    reasons = Counter(str(status).replace("_", " ") for step in steps for status in _list(step.get("cg_status")))
    return StepSummary(
        strategy=strategy,
        steps=fmean(len(run.steps) for run in runs),
        accepted=fmean(taken) if taken else None,
        cg_iterations=median(iterations) if iterations else None,
        damping=(min(damping), max(damping)) if damping else None,
        stopped_by=", ".join(f"{reason} {count / reasons.total():.0%}" for reason, count in reasons.most_common()),
    )


def cg_iterations(step: dict[str, object]) -> int | None:
    """Return the CG iterations of a step report, the largest where there are several blocks; None where it has none."""
    return max(_list(step.get("cg_iterations")), default=None)


def _list(value: object) -> list:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]
