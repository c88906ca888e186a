"""Tables of `finish.py`: the regret of the race, and what it gains over the base with its cosine, with intervals."""

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Two-sided 95 % quantiles of Student's t for so many pairs."""
DRAWS = 10_000
"""Bootstrap samples of problems, for the interval of a median."""

Losses = dict[int, dict[str, float]]
"""By seed and run."""


def losses_of(lines: Sequence[Mapping[str, Any]], name: str) -> Losses:
    """Held-out losses at the end of a problem's runs; those that took no step are left out."""
    found: Losses = {}
    for line in lines:
        if line["problem"] == name and line.get("loss") is not None:
            found.setdefault(line["seed"], {})[line["run"]] = line["loss"]
            found[line["seed"]]["start"] = line["start"]
    return {seed: losses for seed, losses in found.items() if "race" in losses and "cosine" in losses}


def best_in_hindsight(losses: Losses) -> str:
    """The one contestant that all seeds have had alone and whose losses have the lowest geometric mean."""
    runs = set.intersection(*(set(own) for own in losses.values())) - {"race", "start"}
    return min(sorted(runs), key=lambda run: statistics.fmean(log(own[run]) for own in losses.values()))


def log(loss: float) -> float:
    """The logarithm of a loss, which may be 0 in the limits of its dtype."""
    return math.log(max(loss, 1e-300))


def regrets(losses: Losses, deterministic: bool) -> tuple[list[float], str]:
    """The race's regret by seed, and the contestant that it is measured against.

    With noise it is loss over loss, minus one. Without, losses fall by orders of magnitude: it is the share of the
    best one's fall in log-loss that the race missed.
    """
    best, found = best_in_hindsight(losses), []
    for own in losses.values():
        if deterministic:
            fall = log(own["start"]) - log(own[best])
            found.append((log(own["race"]) - log(own[best])) / fall if fall > 0 else own["race"] / own[best] - 1)
        else:
            found.append(own["race"] / own[best] - 1)
    return found, best


def paired(ones: Sequence[float], others: Sequence[float]) -> tuple[float, float, float]:
    """One over the other, minus one: the geometric mean of pairs, and its 95 % interval by a paired t-test."""
    logs = [log(one) - log(other) for one, other in zip(ones, others, strict=True)]
    middle = statistics.fmean(logs)
    if len(logs) < 2:
        return math.expm1(middle), -math.inf, math.inf
    width = T_95[min(len(logs), max(T_95))] * statistics.stdev(logs) / math.sqrt(len(logs))
    return tuple(math.expm1(min(each, 700.0)) for each in (middle, middle - width, middle + width))  # pyright: ignore[reportReturnType]


def median_interval(values: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """The median over all problems and seeds, and its 95 % interval by a bootstrap over problems."""
    drawn, draws = random.Random(0), []
    for _ in range(DRAWS):
        draws.append(statistics.median(each for _ in values for each in drawn.choice(values)))
    draws.sort()
    everything = [each for own in values for each in own]
    return statistics.median(everything), draws[int(0.025 * DRAWS)], draws[int(0.975 * DRAWS) - 1]


def errors_of(lines: Sequence[Mapping[str, Any]], name: str, run: str) -> dict[int, float]:
    """Relative errors on the test points of a physics problem by seed."""
    own = [line for line in lines if (line["problem"], line["run"]) == (name, run) and "test" in line]
    found = {line["seed"]: line["test"].get("test_relative_l2_error") for line in own}
    return {seed: error for seed, error in found.items() if error is not None}


def percent(value: float) -> str:
    """A share with a sign; large ones as factors."""
    if not math.isfinite(value):
        return "?"
    return f"{1 + value:.3g} times" if value > 10 else f"{100 * value:+.1f} %"


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row for each problem, then what the goals ask."""
    rows = ["| problem | seeds | winners | best alone | regret, by seed | race over cosine | error, cosine over race |",
            "|---|---|---|---|---|---|---|"]  # fmt: skip
    found, against, gains = [], [], []
    for name in dict.fromkeys(line["problem"] for line in lines):
        losses = losses_of(lines, name)
        if not losses:
            continue
        own = [line for line in lines if line["problem"] == name]
        regret, best = regrets(losses, own[0]["setting"]["deterministic"])
        found.append(regret)
        ratio = paired(*([each[run] for each in losses.values()] for run in ("race", "cosine")))
        against += [(each["race"] / each["cosine"] - 1, name) for each in losses.values()]
        race, cosine = (errors_of(lines, name, run) for run in ("race", "cosine"))
        factors = [cosine[seed] / race[seed] for seed in race if seed in cosine and race[seed] > 0]
        if factors:
            gains.append((statistics.median(factors), name))
        winners = dict.fromkeys(line["winners"][0] for line in own if line["run"] == "race" and line.get("winners"))
        interval = "" if len(losses) < 2 else f" ({percent(ratio[1])} to {percent(ratio[2])})"
        rows.append(
            f"| {name} | {len(losses)} | {', '.join(winners)} | {best} | {', '.join(map(percent, regret))} | "
            f"{percent(ratio[0])}{interval} | {f'{statistics.median(factors):.3g}' if factors else ''} |"
        )
    if not found:
        return "no problem has a race and the base with its cosine yet"
    middle, low, high = median_interval(found)
    worst, behind = max(each for own in found for each in own), max(against)
    said = [f"Regret: median {percent(middle)} ({percent(low)} to {percent(high)}), worst {percent(worst)}.",
            f"Behind the cosine at most: {percent(behind[0])} ({behind[1]})."]  # fmt: skip
    if gains:
        said.append(f"Error below the cosine's: at least {min(gains)[0]:.3g} times ({min(gains)[1]}).")
    return "\n".join([*rows, "", *said])
