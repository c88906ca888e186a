"""Methods run one after the other, on a clock of their own, into files that survive an interruption; their picture."""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
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
Measure = Callable[[], float | Line]
"""The error, or a line with it as "error" and whatever else is measured."""
Start = Callable[[], tuple[Step, Measure]]
"""Makes the step of a method, and the error that is measured."""


def marks() -> Iterator[float]:
    """Seconds of training at which the error is measured: after the first step that ends past each."""
    yield from (0, 0.5, 1, 2, 3, 5, 8, 10, 15, 20, 25, 30, 40, 50, 60, 80)
    yield from itertools.count(100, 20)


def run(name: str, folder: Path, settings: Line, start: Start) -> None:
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
                sys.stdout.write(f"{name} {line['seconds']:7.1f} s, step {line['steps']}: {line['error']:.4g}\n")
                sys.stdout.flush()

        write({"settings": settings, "environment": describe_environment(settings["threads"], jobs=1)})
        train(*start(), settings["time_limit"], settings["clock"], write)
        write({"finished": True})


def train(step: Step, error: Measure, limit: float, clock: str, write: Callable[[Line], None]) -> None:
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
            found = error()
            measured = found if isinstance(found, dict) else {"error": found}
            times = {"seconds": seconds} | {f"{name}_seconds": time for name, time in spent.items()}
            write(times | {"steps": steps} | measured | ({"step": last} if last else {}))
            if seconds >= limit or not measured["error"] < float("inf"):
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


def plot(
    folder: Path, path: Path, looks: Mapping[str, Line], ylabel: str, more: Mapping[str, str] | None = None
) -> None:
    """Draw the error over seconds of the methods in the folder.

    Args:
        folder: of the results.
        path: of the picture.
        looks: keyword arguments of each method's line, by its name.
        ylabel: what the error is.
        more: what else was measured, by its name in the lines: a panel each.
    """
    panels = {"error": ylabel} | dict(more or {})
    figure = Figure(figsize=(7.5 if len(panels) == 1 else 5.2 * len(panels), 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    # The legend has the order in which the lines end.
    found = sorted(errors(folder).items(), key=lambda item: -item[1][-1]["error"])
    for axes, (quantity, label) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, lines in found:
            seconds, measured = zip(*[(line["seconds"], line[quantity]) for line in lines], strict=True)
            axes.plot(seconds, measured, **looks.get(name, {"label": name}))
        axes.set(xlabel="seconds of training", ylabel=label, yscale="log")
        low, high = axes.get_ylim()
        wide = high > 1e3 * low
        axes.yaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(which="major" if wide else "both", color="#e4e4e4", linewidth=0.6)
        if quantity == "error":
            axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


COLORS = {"red": "#B2182B", "blue": "#0072B2", "green": "#009E73", "orange": "#E69F00"}


def look(label: str, color: str) -> Line:
    """How a method's line is drawn."""
    return {"label": label, "color": COLORS[color], "linewidth": 2}


def command_line(description: str | None, name: str, methods: Sequence[str], seconds: float) -> argparse.ArgumentParser:
    """The options that comparisons share, of which --out is runs/NAME; everything runs in one thread."""
    torch.set_num_threads(1)
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=kind)
    parser.add_argument("--out", type=Path, default=Path("runs") / name, help="results and picture")
    parser.add_argument("--time-limit", type=float, default=seconds, help=f"seconds of each method ({seconds:g})")
    parser.add_argument("--methods", nargs="+", choices=tuple(methods), default=list(methods))
    parser.add_argument(
        "--clock", choices=tuple(CLOCKS), default="process", help="process: for a machine with other load"
    )
    return parser


def compare(given: argparse.Namespace, start: Callable[[str], tuple[Step, Measure]], **settings: Any) -> None:
    """Run the methods that were asked for on the command line, each from `start(method)`."""
    settings |= {"time_limit": given.time_limit, "threads": 1, "clock": given.clock}
    for name in given.methods:
        run(name, given.out, settings, lambda name=name: start(name))


def closure_step(optimizer: torch.optim.Optimizer, objective: Callable[[], torch.Tensor]) -> Step:
    """Steps of one of torch's optimizers on an objective, which gives loss and gradient."""

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        return objective()

    return lambda: {"loss": float(optimizer.step(closure))}
