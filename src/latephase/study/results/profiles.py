"""Time to target over checkpoints and problems: the cases of performance profiles and speed-ups. Imports no torch."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from .load import Results, load_results
from .score import Score, score_results
from .statistics import SpeedUp, profile_score, speed_up, time_ratios

TARGETS = {"train loss": "time_to_target_train_loss", "test": "time_to_target_test"}
"""What can be reached, and its column in the scores."""


@dataclass(frozen=True)
class Standing:
    """A strategy in a performance profile.

    Attributes:
        name: The strategy's name.
        ratios: Its times as multiples of the best of each case; infinity where it missed the target.
        score: Mean of its profile over tau from 1 to 4.
        speed_up: Against the baseline.
    """

    name: str
    ratios: list[float]
    score: float
    speed_up: SpeedUp


def target_times(results: Results, scores: Sequence[Score], column: str) -> dict[tuple[str, int], dict[str, float]]:
    """Return the median time to target of each strategy at each checkpoint, the cases of one study.

    Args:
        results: The study.
        scores: Its scores.
        column: "time_to_target_train_loss" or "time_to_target_test".

    Returns:
        Times keyed by (problem, checkpoint epoch) and strategy name, in the study's unit. A run that missed counts as
        infinity, and so does the median where half of the runs or more missed. Checkpoints where a strategy has no
        concluded run are left out, as are those that meet the target themselves: they say nothing about time.
    """
    plan = results.plan
    options = ",".join(f"{key}={value}" for key, value in sorted(plan.problem_options.items()))
    problem = f"{plan.problem}[{options}]" if options else plan.problem
    times: dict[tuple[str, int], dict[str, float]] = {}
    for epoch in plan.checkpoints:
        rows = [row for row in scores if row.checkpoint_epoch == epoch]
        found = {
            s.name: [t for r in rows if r.strategy == s.name and (t := r.number(column)) is not None]
            for s in plan.strategies
        }
        case = {name: median(values) for name, values in found.items() if values}
        if len(case) == len(plan.strategies) and any(case.values()):
            times[problem, epoch] = case
    return times


def combine(directories: Sequence[str | os.PathLike[str]], column: str) -> dict[tuple[str, int], dict[str, float]]:
    """Return the cases of several studies together, for a profile over problems.

    Args:
        directories: The folders of the studies; their trainings are finished. Strategies are the same where their names
            are, and those that a study lacks are left out.
        column: As `target_times`.

    Returns:
        Times keyed by (problem, checkpoint epoch) and strategy name; each study in its own unit, as only the ratios
        within a case count.

    Raises:
        ValueError: Two studies hold the same case, or different versions of a problem, or they have fewer than two
            strategies in common.
    """
    loaded = [load_results(directory) for directory in directories]
    versions: dict[str, int] = {}
    times: dict[tuple[str, int], dict[str, float]] = {}
    for directory, results in zip(directories, loaded, strict=True):
        plan = results.plan
        if versions.setdefault(plan.problem, plan.problem_version) != plan.problem_version:
            raise ValueError(
                f"{directory} has version {plan.problem_version} of {plan.problem}, another study has "
                f"{versions[plan.problem]}: their results do not belong in one table"
            )
        found = target_times(results, score_results(results), column)
        if twice := found.keys() & times.keys():
            raise ValueError(f"{directory} holds {', '.join(map(str, sorted(twice)))} again; give each study once")
        times |= found
    common = set.intersection(*({strategy.name for strategy in results.plan.strategies} for results in loaded))
    if len(common) < 2:
        raise ValueError(f"the studies have {len(common)} strategies of the same name; a profile takes two or more")
    return {case: {name: time for name, time in row.items() if name in common} for case, row in times.items()}


def standings(times: dict[tuple[str, int], dict[str, float]], baseline: str) -> list[Standing]:
    """Return each strategy's place in the performance profile of some cases, in the order of the strategies."""
    return [
        Standing(name, ratios, profile_score(ratios), speed_up(times, name, baseline))
        for name, ratios in time_ratios(times).items()
    ]
