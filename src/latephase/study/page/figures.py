"""The figures of a study, all of them: drawn into its folder, or as bytes for the page.

Built with matplotlib's objects on the Agg canvas, without pyplot and so without global state; the same result files
give the same bytes. Imports no torch.
"""

import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from matplotlib.figure import Figure

from ...records import DPI, freeze, house_style
from ..results import Results, load_results, score_results
from .charts import Chart, chart_of
from .of_runs import judged_strategies, learning_rates, overfitting, rates_of, step_reports
from .of_scores import performance_profile, relative_performance, target_bars
from .over_time import over_budget, over_updates, training_curve
from .paths import has_points, paths
from .style import save


def draw(directory: str | os.PathLike[str]) -> list[Path]:
    """Draw every figure of a study into its folder ``figures``, as PNG and PDF.

    Args:
        directory: The study's folder; its training is finished, its runs may be missing, under way, failed or damaged.

    Returns:
        The files written, two for each figure; see `build`.

    Raises:
        FileNotFoundError: There is no ``study.toml``.
        ValueError: see `latephase.study.results.load.load_results`.
    """
    return draw_results(load_results(directory))[0]


def draw_results(results: Results) -> tuple[list[Path], dict[str, Chart | None]]:
    """Draw every figure of results already read; the files, and by name what each shows. See `draw`."""
    return save_all(build(results), results.root / "figures")


def save_all(figures: Iterable[tuple[str, Figure]], folder: Path) -> tuple[list[Path], dict[str, Chart | None]]:
    """Write figures as `save` does; the files, and by name what each figure shows.

    Args:
        figures: each with its name, drawn in `house_style` as they are asked for.
        folder: where to.
    """
    paths: list[Path] = []
    charts: dict[str, Chart | None] = {}
    with house_style():
        for name, figure in figures:
            charts[name] = chart_of(figure)
            freeze(figure)
            paths += save(figure, folder, name)
    return paths, charts


def render(results: Results, *, narrow: bool = False) -> dict[str, bytes]:
    """Return every figure as the bytes of a PNG, keyed by name; narrow: panels below each other, for a phone."""
    images: dict[str, bytes] = {}
    with house_style():
        for name, figure in build(results, narrow=narrow):
            freeze(figure)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
            images[name] = buffer.getvalue()
    return images


def build(results: Results, *, narrow: bool = False) -> Iterator[tuple[str, Figure]]:
    """Build every figure of a study in `house_style`, one after the other.

    Yields:
        Name and figure: ``training``; ``relative`` and, where there are second-order strategies and more than the
        baseline beside them, ``relative-second-order``; where runs have concluded, per checkpoint ``budget-EPOCH``,
        ``time-to-target-EPOCH``, of models with two parameters ``paths-EPOCH``, with block-diagonal curvature
        ``updates-EPOCH``, and where steps were reported ``steps-EPOCH``; ``overfitting`` of the last checkpoint
        where steps were judged on the same batch and on disjoint ones; ``learning-rates`` where there are any;
        ``profile`` where there are two checkpoints or more. Steps and learning rates are drawn from every checkpoint
        where there are up to three of them, else from the last alone.
    """
    plan, scores = results.plan, score_results(results)
    last = max(plan.checkpoints)
    detailed = plan.checkpoints if len(plan.checkpoints) <= 3 else [last]
    second = [strategy for strategy in plan.strategies if strategy.is_second_order]
    beside = [strategy for strategy in plan.strategies if strategy.is_second_order or strategy.name == plan.baseline]
    yield "training", training_curve(results, narrow=narrow)
    yield "relative", relative_performance(results, scores, plan.strategies, narrow=narrow)
    if second and len(second) < len(beside) < len(plan.strategies):
        yield "relative-second-order", relative_performance(results, scores, beside, narrow=narrow)
    for epoch in plan.checkpoints:
        runs = [run for run in results.runs if run.checkpoint_epoch == epoch and run.concluded]
        if runs:
            yield f"budget-{epoch:04d}", over_budget(results, epoch, narrow=narrow)
            yield f"time-to-target-{epoch:04d}", target_bars(results, scores, epoch, narrow=narrow)
        if has_points(runs):
            yield f"paths-{epoch:04d}", paths(results, epoch, narrow=narrow)
        if runs and plan.unit != "steps" and any(strategy.has_blocks for strategy in plan.strategies):
            yield f"updates-{epoch:04d}", over_updates(results, epoch, narrow=narrow)
        if epoch in detailed and any(run.steps for run in runs):
            yield f"steps-{epoch:04d}", step_reports(results, epoch, narrow=narrow)
    if judged_strategies(results, last):
        yield "overfitting", overfitting(results, last, narrow=narrow)
    if any(rates_of(run) for run in results.runs if run.checkpoint_epoch in detailed):
        yield "learning-rates", learning_rates(results, detailed, narrow=narrow)
    if len(plan.checkpoints) > 1 and any(run.concluded for run in results.runs):
        yield "profile", performance_profile(results, scores, narrow=narrow)
