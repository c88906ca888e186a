"""Figures of a tuning: the metric against each value that was searched for, and how much each of them mattered."""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from ...records import as_label, legend, logarithmic, panels
from ..page import FINAL, INITIAL, Chart, Look, Mark, Style, remember, save_all
from ..results import Measure
from .config import Search, Tuning
from .outcome import Outcome, best_of

LABELS = {
    "lr": "learning rate",
    "batch_size": "batch size",
    "options.damping": "initial damping",
    "options.damping.initial": "initial damping",
    "options.damping.factors.0": "stepping factor, falling",
    "options.damping.factors.1": "stepping factor, rising",
    "options.amplification": "learning-rate amplification",
    "options.lr_clip": "learning-rate clip",
    "options.eps": "epsilon",
}
MARKED = 3
"""Best trials that are ringed."""
ENOUGH = 10
"""Trials of a strategy below which nothing is said about importance."""
GREY = "#8c8c8c"


def label_of(path: str) -> str:
    """How a value is called: as in the papers, or as its path says."""
    return LABELS.get(path, path.removeprefix("options.").replace("_", " "))


def draw_all(tuning: Tuning, found: Sequence[Outcome], folder: Path) -> tuple[list[Path], dict[str, Chart | None]]:
    """Draw every figure of a tuning, as PNG and PDF; the same trials give the same bytes.

    Args:
        tuning: the tuning.
        found: its trials.
        folder: where to; made where it is missing.

    Returns:
        The files, ``sensitivity-STRATEGY`` for each tuned strategy, and ``importance`` where there are enough trials;
        and by the name of each figure what it shows.
    """
    return save_all(build(tuning, found), folder)


def build(tuning: Tuning, found: Sequence[Outcome]) -> Iterator[tuple[str, Figure]]:
    """Build every figure in `house_style`: its name and itself; see `draw_all`."""
    for name in tuning.tuned:
        own = [outcome for outcome in found if outcome.strategy == name]
        if own:
            yield f"sensitivity-{name}", sensitivity(tuning, own, name)
    shares = {name: importances(tuning, found, name) for name in tuning.tuned}
    shares = {name: entries for name, entries in shares.items() if entries}
    if shares:
        yield "importance", importance(tuning, shares)


def sensitivity(tuning: Tuning, own: Sequence[Outcome], name: str) -> Figure:
    """Draw the metric of a strategy's trials against each value that was searched for, a panel each.

    A filled dot is a finished trial; a hollow one was stopped by successive halving, at the value that it had then; a
    cross at the bad edge diverged or failed, a triangle there lies beyond it. The best three are ringed.
    """
    searches = tuning.searches[name]
    measure = Measure(tuning.tune.metric, tuning.higher_is_better)
    figure, row = panels(len(searches), narrow=False)
    best = best_of(own, name, tuning.higher_is_better, MARKED)
    valued = [o for o in own if o.value is not None and o.outcome in ("finished", "stopped")]
    start = next((o.start for o in own if o.start is not None), None)
    bad, good = _limits([o.value for o in valued if o.value is not None], measure, start)
    for axes, (path, search) in zip(row, searches.items(), strict=True):
        for kind, group, y, look in _groups(own, best, bad, measure):
            x = [_place(search, o.values[path]) for o in group]
            axes.plot(x, y, linestyle="none", label=kind, **look)
            if group:
                hollow = "white" in look.values() or look.get("fillstyle") == "none"
                style = Style(look["color"], "-", look["marker"].upper(), not hollow)
                remember(axes, Mark(Look(kind, kind, style), x, y, drawn="dots", notes=[_said(o) for o in group]))
        _scale(axes, search, label_of(path))
        if not measure.is_share and min(bad, good) > 0:
            title = axes.get_title(loc="left")
            logarithmic(axes, [bad, good])
            axes.set_title(title)
        axes.set_ylim(*_with_margin(bad, good, axes.get_yscale() == "log"))
    row[0].set_ylabel(as_label(measure.name))
    legend(figure, row[0], narrow=False)
    return figure


def _groups(
    own: Sequence[Outcome], best: Sequence[Outcome], bad: float, measure: Measure
) -> Iterator[tuple[str, Sequence[Outcome], list[float], dict[str, Any]]]:
    """What is drawn together: its name, the trials, their values on the y axis, and the look of the dots."""
    dot: dict[str, Any] = {"marker": "o", "markersize": 4.5, "alpha": 0.8}
    valued = [(o, o.value) for o in own if o.value is not None and o.outcome in ("finished", "stopped")]
    for outcome, look in (
        ("finished", {"color": INITIAL, **dot}),
        ("stopped", {"color": GREY, "markerfacecolor": "white", **dot}),
    ):
        inside = [(o, value) for o, value in valued if o.outcome == outcome and measure.reaches(value, bad)]
        yield outcome, [o for o, _ in inside], [value for _, value in inside], look
    beyond = [o for o, value in valued if not measure.reaches(value, bad)]
    lost = [o for o in own if o.outcome in ("diverged", "failed")]
    for kind, group, marker in (
        ("worse", beyond, "v" if measure.higher_is_better else "^"),
        ("diverged or failed", lost, "x"),
    ):
        if group:
            yield kind, group, [bad] * len(group), {"color": GREY, "marker": marker, "markersize": 5}
    ring = {"color": FINAL, "marker": "o", "markersize": 10, "fillstyle": "none", "markeredgewidth": 1.6}
    yield f"best {len(best)}", best, [o.value for o in best if o.value is not None], ring


def _said(outcome: Outcome) -> str:
    """What is said of a dot beside its place."""
    reached = "" if outcome.share >= 1 else f", {100 * outcome.share:.3g}% of the budget"
    return f"trial {outcome.place}, {outcome.outcome}{reached}"


def _limits(values: Sequence[float], measure: Measure, start: float | None) -> tuple[float, float]:
    """The bad and the good end of the y axis, so that a few bad trials do not flatten the rest.

    Nine in ten values lie between, or fewer where more are worse than the metric before the first step.
    """
    if not values:
        return 1.0, 0.0
    bad = float(np.quantile(values, 0.1 if measure.higher_is_better else 0.9, method="nearest"))
    good = measure.choose(values)
    if start is not None and measure.lead(good, start) > 0:
        bad = measure.choose((bad, start))
    return (bad, good) if bad != good else (good - 1e-3, good) if measure.higher_is_better else (good + 1e-3, good)


def _with_margin(bad: float, good: float, log: bool) -> tuple[float, float]:
    low, high = min(bad, good), max(bad, good)
    if log:
        factor = (high / low) ** 0.06
        return low / factor, high * factor
    return low - 0.06 * (high - low), high + 0.06 * (high - low)


def _place(search: Search, value: Any) -> float:
    """Where a value lies on its axis: choices side by side, and 1 - value where that is what was drawn."""
    if search.choices is not None:
        return float(search.choices.index(value))
    return 1.0 - value if search.one_minus else float(value)


def _scale(axes: Axes, search: Search, name: str) -> None:
    """The x axis of a value: its name, its scale, and the whole of where it was looked for."""
    axes.set_title(as_label(f"1 - {name}" if search.one_minus else name))
    if search.choices is not None:
        axes.set_xticks(range(len(search.choices)), [as_label(str(choice)) for choice in search.choices])
        axes.set_xlim(-0.5, len(search.choices) - 0.5)
        return
    assert search.low is not None
    assert search.high is not None
    if search.log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if search.high < 300 * search.low else (1,), numticks=5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(*_with_margin(search.low, search.high, search.log))


def importances(tuning: Tuning, found: Sequence[Outcome], name: str) -> dict[str, float]:
    """How much each value that was searched for mattered for being among a strategy's best trials; they sum to one.

    PED-ANOVA (Watanabe, Bansal and Hutter 2023, "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in
    Arbitrary Subspaces") compares how values are distributed among the best trials and among all. It needs an order of
    the trials only. They are ordered by the budget that they reached and then by the metric, so that trials which
    successive halving stopped count as well.

    Returns:
        By path, the largest first; nothing where there are fewer than ten trials or only one value.
    """
    own = [outcome for outcome in found if outcome.strategy == name]
    searches = tuning.searches[name]
    if len(own) < ENOUGH or len(searches) < 2:
        return {}
    sign = -1.0 if tuning.higher_is_better else 1.0
    order = sorted(own, key=lambda o: (o.value is None, o.outcome == "diverged", -o.share, sign * (o.value or 0.0)))
    spaces = {path: _space(search) for path, search in searches.items()}
    study = optuna.create_study()
    for rank, outcome in enumerate(order):
        drawn = {path: searches[path].value(value) for path, value in outcome.values.items()}
        study.add_trial(optuna.trial.create_trial(params=drawn, distributions=spaces, value=float(rank)))
    best = max(0.1, min(0.5, 5 / len(own)))  # a tenth, as by default, but no fewer than five trials
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=best)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _space(search: Search) -> BaseDistribution:
    if search.choices is not None:
        return CategoricalDistribution(search.choices)
    assert search.low is not None
    assert search.high is not None
    if search.is_whole:
        return IntDistribution(int(search.low), int(search.high), search.log, int(search.step or 1))
    return FloatDistribution(float(search.low), float(search.high), search.log, search.step)


def importance(tuning: Tuning, shares: dict[str, dict[str, float]]) -> Figure:
    """Draw how much each value mattered, a panel for each strategy; see `importances`."""
    most = max(len(entries) for entries in shares.values())
    figure, row = panels(len(shares), narrow=False, height=1.1 + 0.3 * most)
    labels = {strategy.name: strategy.label for strategy in tuning.study.strategies}
    for axes, (name, entries) in zip(row, shares.items(), strict=True):
        axes.barh(range(len(entries)), list(entries.values()), height=0.62, color=INITIAL, alpha=0.8)
        look = Look("importance", "importance", Style(INITIAL, "-", "o", True))
        remember(axes, Mark(look, list(entries.values()), list(range(len(entries))), drawn="dots", across=True))
        axes.set_yticks(range(len(entries)), [as_label(label_of(path)) for path in entries])
        axes.set(xlim=(0, 1), ylim=(most - 0.4, -0.6), xlabel="importance (PED-ANOVA)")
        axes.set_title("\n".join(as_label(line) for line in textwrap.wrap(labels[name], 20, max_lines=4)))
        axes.grid(visible=False, axis="y")
    return figure
