"""Methods run one after the other, on a clock of their own, into files that survive an interruption; their picture."""

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from latephase.records.environment import describe_environment
from latephase.records.strict_json import finite

CLOCKS = {"wall": time.perf_counter, "process": time.process_time}
"""Wall-clock time, and the time for which the process has had a processor: with one thread and a processor to itself
they agree, and on a machine that others use too only the second says what a method costs."""
Line = dict[str, Any]
"""One line of a result file."""
Step = Callable[[], Line]
"""One step of a method; returns what is worth writing down about it."""


def marks() -> Iterator[float]:
    """Seconds of training at which the error is measured: after the first step that ends past each."""
    yield from (0, 2, 5, 10, 15, 20, 30, 40, 50, 60, 80)
    yield from itertools.count(100, 20)


def run(name: str, folder: Path, settings: Line, start: Callable[[], tuple[Step, Callable[[], float]]]) -> None:
    """Run one method, unless it has finished before, adding lines to its file in the folder.

    Args:
        name: of the method and its file.
        folder: of the results.
        settings: "time_limit", "clock", "threads" and whatever else makes runs comparable; an attempt's first line.
        start: makes the method's step and the error that is measured.

    Raises:
        SystemExit: it has finished with other settings.
    """
    earlier = read_runs(folder).get(name, [])
    if earlier and "finished" in earlier[-1]:
        if (old := earlier[0]["settings"]) != settings:
            raise SystemExit(f"{name} has finished with {old}; give another --out for {settings}")
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jsonl"
    if path.exists() and not path.read_bytes().endswith(b"\n"):  # an attempt was cut off in writing
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")
    with path.open("a", encoding="utf-8") as file:

        def write(line: Line) -> None:
            file.write(json.dumps(finite(line), allow_nan=False) + "\n")
            file.flush()
            if "error" in line:
                sys.stdout.write(f"{name} {line['seconds']:7.1f} s, step {line['steps']}: {line['error']:.4f}\n")
                sys.stdout.flush()

        write({"settings": settings, "environment": describe_environment(settings["threads"], jobs=1)})
        train(*start(), settings["time_limit"], settings["clock"], write)
        write({"finished": True})


def train(step: Step, error: Callable[[], float], limit: float, clock: str, write: Callable[[Line], None]) -> None:
    """Take steps until the clock shows the limit, writing a line at every mark and at the end.

    Args:
        step: one step of the method; only this is on the clock.
        error: what is measured.
        limit: seconds.
        clock: one of `CLOCKS`.
        write: takes the lines: seconds by each clock, steps, error, and what the last step returned.
    """
    spent = dict.fromkeys(CLOCKS, 0.0)
    steps, last = 0, {}
    due = marks()
    mark = next(due)
    while True:
        seconds = spent[clock]
        if seconds >= mark or seconds >= limit:
            measured = error()
            times = {"seconds": seconds} | {f"{name}_seconds": time for name, time in spent.items()}
            write(times | {"steps": steps, "error": measured} | ({"step": last} if last else {}))
            if seconds >= limit or not measured < float("inf"):
                return
            mark = next(m for m in due if m > seconds)
        started = {name: now() for name, now in CLOCKS.items()}
        last = step()
        for name, now in CLOCKS.items():
            spent[name] += now() - started[name]
        steps += 1


def read_runs(folder: Path) -> dict[str, list[Line]]:
    """The lines of every method's last attempt, its settings first; a line that was cut off in writing is left out."""
    runs = {}
    for path in sorted(folder.glob("*.jsonl")):
        lines: list[Line] = []
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            lines = [line] if "settings" in line else [*lines, line]
        if lines:
            runs[path.stem] = lines
    return runs


def errors(folder: Path) -> dict[str, list[Line]]:
    """The measurements of every method that has any."""
    found = {
        name: [line for line in lines if line.get("error") is not None] for name, lines in read_runs(folder).items()
    }
    return {name: lines for name, lines in found.items() if lines}


def plot(folder: Path, path: Path, looks: Mapping[str, Mapping[str, Any]], ylabel: str) -> None:
    """Draw the error over seconds of the methods in the folder.

    Args:
        folder: of the results.
        path: of the picture.
        looks: keyword arguments of each method's line, by its name.
        ylabel: what the error is.
    """
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    # The legend has the order in which the lines end.
    for name, lines in sorted(errors(folder).items(), key=lambda item: -item[1][-1]["error"]):
        seconds, measured = zip(*[(line["seconds"], line["error"]) for line in lines], strict=True)
        axes.plot(seconds, measured, **looks.get(name, {"label": name}))
    axes.set(xlabel="seconds of training", ylabel=ylabel, yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(which="both", color="#e4e4e4", linewidth=0.6)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
