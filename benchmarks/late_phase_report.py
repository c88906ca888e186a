"""Tables and figure of `late_phase.py`. Imports no torch."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from latephase.records.drawing import DPI, house_style

Record = dict[str, Any]
TITLES = {"fashion": "Fashion-MNIST", "digits": "digits"}
_LOOKS: dict[str, tuple[str, Any]] = {
    "SGD, constant": ("#595959", ":"),
    "SGD, tenth": ("#0072B2", "--"),
    "SGD, cosine": ("#009E73", "-."),
    "HF, late phase": ("#a50f15", "-"),
    "HF, late phase but damping 1": ("#fb6a4a", "-"),
    "HF, published defaults": ("#E69F00", (0, (6, 1, 1, 1))),
}
"""Colour and line of what the curves show."""


def line(record: Record, label: str) -> str:
    """One run in a line, for the terminal."""
    start, end = record["curve"][0][1], record["valid"]["loss"]
    words = [f"{record['problem']}-{record['epoch']} {label:30s} seed {record['seed']}: {start:.4f} -> {end:.4f}"]
    words.append(f"test {record['test']['loss']:.4f} train {record['train']['loss']:.4f} l2 {record['l2']:.4f}")
    words.append(f"{record['seconds']:.1f} s")
    if "steps" in record:
        words.append(f"{record['taken']}/{record['steps']} steps of {cost(record):.1f} gradients")
        words.append(f"damping {record['damping'][0]:g}..{record['damping'][-1]:g} cg {record['cg_iterations'][-5:]}")
        words.append(record["method"])
    return "  ".join(words)


def cost(record: Record) -> float:
    """A step's CPU seconds in gradients of the same batch."""
    return record["step_seconds"] / record["gradient_seconds"]


def spread(values: Sequence[float], digits: int = 4) -> str:
    """Median, smallest and largest."""
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def rate(record: Record) -> float:
    """Decrease of the held-out loss per second, in thousandths; negative where it rose."""
    return 1000 * (record["curve"][0][1] - record["valid"]["loss"]) / record["seconds"]


def rows_of(records: Sequence[Record]) -> str:
    """The cells of a setting's row: the same for every table."""
    first = records[0]
    accuracy = statistics.median(100 * record["test"]["accuracy"] for record in records)
    cells = [
        spread([record["valid"]["loss"] for record in records]),
        f"{statistics.median(rate(record) for record in records):.2f}",
        f"{statistics.median(record['test']['loss'] for record in records):.4f}",
        f"{accuracy:.2f}",
        f"{statistics.median(record['train']['loss'] for record in records):.4f}",
        f"{statistics.median(record['l2'] for record in records):.4f}",
    ]
    if "steps" in first:
        steps = statistics.median(record["steps"] for record in records)
        taken = statistics.median(record["taken"] for record in records)
        cells += [f"{taken:g} of {steps:g}", f"{statistics.median(cost(record) for record in records):.1f}"]
        cells += [f"{statistics.median(record['seconds'] for record in records):.1f}"]
    else:
        cells += ["", "1.0", f"{statistics.median(record['seconds'] for record in records):.1f}"]
    return " | ".join(cells)


HEADINGS = (
    "held-out loss, median [min, max] | decrease per 1,000 s | test loss | test acc. (%) | training loss | L2 term "
    "| steps taken | step, in gradients | seconds"
)


def grouped(records: Sequence[Record]) -> dict[tuple[str, ...], list[Record]]:
    """Runs of one setting, in the order of the file: by stage, problem, checkpoint and setting."""
    found: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        setting = json.dumps(record["setting"], sort_keys=True)
        found.setdefault((record["stage"], record["problem"], str(record["epoch"]), setting), []).append(record)
    return found


def tables(records: Sequence[Record], searches: dict[str, Any]) -> str:
    """All tables as Markdown."""
    lines: list[str] = []
    groups = grouped(records)
    marks = "|---" * (HEADINGS.count("|") + 1)
    for problem, search in searches.items():
        lines += [f"## Search on {TITLES[problem]}, epoch {search['epoch']}", ""]
        lines += [f"| factor | value | {HEADINGS} |", f"|---|---{marks}|"]
        for factor in search["factors"]:
            for label, setting in factor["settings"].items():
                key = ("search", problem, str(search["epoch"]), json.dumps(setting, sort_keys=True))
                shown = f"**{_short(label)}**" if label == factor["chosen"] else _short(label)
                if key in groups:
                    lines.append(f"| {factor['factor']} | {shown} | {rows_of(groups[key])} |")
        lines.append("")
    most = max((len(found) for key, found in groups.items() if key[0] == "verify"), default=0)
    groups = {key: found for key, found in groups.items() if key[0] != "verify" or len(found) == most}
    places = dict.fromkeys(key[1:3] for key in groups if key[0] == "verify")
    for problem, epoch in places:
        start = next(found[0]["curve"][0][1] for key, found in groups.items() if key[1:3] == (problem, epoch))
        lines += [f"## {TITLES[problem]} from epoch {epoch} (held-out loss there: {start:.4f})", ""]
        lines += [f"| strategy | {HEADINGS} |", f"|---{marks}|"]
        for key, found in groups.items():
            if key[:3] == ("verify", problem, epoch):
                lines.append(f"| {found[0]['label']} | {rows_of(found)} |")
        lines.append("")
    return "\n".join(lines)


def _short(label: str) -> str:
    """A value as the figure and the table show it."""
    value = json.loads(label)
    if isinstance(value, list):
        return ", ".join(f"{each:.3g}" for each in value)
    return "none" if value is None else str(value)


def draw_search(axes: Axes, records: Sequence[Record], search: dict[str, Any]) -> None:
    """One dot per value of every factor, with a line from the smallest to the largest of the seeds."""
    groups, labels, height = grouped(records), [], 0
    for factor in search["factors"]:
        for label, setting in factor["settings"].items():
            key = ("search", search["problem"], str(search["epoch"]), json.dumps(setting, sort_keys=True))
            if key not in groups:
                continue
            values = [record["valid"]["loss"] for record in groups[key]]
            chosen = label == factor["chosen"]
            colour = "#cb181d" if chosen else "#595959"
            axes.plot([min(values), max(values)], [height, height], color=colour, linewidth=1.2)
            face = colour if chosen else "white"
            axes.plot([statistics.median(values)], [height], "o", markersize=4.5, color=colour, markerfacecolor=face)
            labels.append((height, f"{factor['factor']} = {_short(label)}"))
            height -= 1
        height -= 0.6
    axes.set_yticks([place for place, _ in labels], [label for _, label in labels], fontsize=7.5)
    axes.grid(axis="y", visible=False)
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel("held-out cross-entropy at the end of the budget")
    axes.set_title(f"Search, {TITLES[search['problem']]} (red: kept)")


def draw_curves(axes: Axes, records: Sequence[Record], problem: str, epoch: int) -> None:
    """Held-out loss over CPU seconds: medians over the seeds, and a thin line per seed."""
    groups = [found for key, found in grouped(records).items() if key[:3] == ("verify", problem, str(epoch))]
    most = max(len(found) for found in groups)
    for found in groups:
        if len(found) < most or found[0]["label"] not in _LOOKS:
            continue
        colour, style = _LOOKS[found[0]["label"]]
        for record in found:
            axes.plot(*zip(*record["curve"], strict=True), color=colour, linestyle=style, linewidth=0.6, alpha=0.4)
        points = zip(*(record["curve"] for record in found), strict=False)
        medians = [[statistics.median(values) for values in zip(*point, strict=True)] for point in points]
        label = found[0]["label"]
        axes.plot(*zip(*medians, strict=True), color=colour, linestyle=style, linewidth=1.8, label=label)
    start, budget = groups[0][0]["curve"][0][1], groups[0][0]["budget"]
    axes.axhline(start, color="#bbbbbb", linewidth=0.8)
    axes.set_xlim(0, 1.12 * budget)
    axes.set_ylim(top=max(1.04 * start, 1.04 * statistics.median(r["valid"]["loss"] for r in groups[0])))
    axes.set_xlabel("CPU seconds, one thread")
    axes.set_ylabel("held-out cross-entropy")
    axes.set_title(f"{TITLES[problem]}, from epoch {epoch}")


def figure(records: Sequence[Record], searches: dict[str, Any], path: Path) -> None:
    """The search on the left, the verification on the right."""
    with house_style():
        drawing = Figure(figsize=(11, 9.5))
        FigureCanvasAgg(drawing)
        grid = drawing.add_gridspec(2, 2, width_ratios=(1, 1.15))
        if "fashion" in searches:
            draw_search(drawing.add_subplot(grid[:, 0]), records, searches["fashion"])
        places = sorted({(r["problem"], r["epoch"]) for r in records if r["stage"] == "verify"})
        last = dict(places)
        axes = None
        for row, problem in enumerate(("fashion", "digits")):
            if problem in last:
                axes = drawing.add_subplot(grid[row, 1])
                draw_curves(axes, records, problem, last[problem])
        if axes is not None:
            handles, labels = axes.get_legend_handles_labels()
            drawing.legend(handles, labels, loc="outside lower right", ncols=3, fontsize=8.5, handlelength=3)
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing.savefig(path, dpi=DPI)


def report(out: Path, image: Path) -> None:
    """Write tables (`tables.md`) and figure from the runs and the searches."""
    records = [json.loads(text) for text in (out / "runs.jsonl").read_text(encoding="utf-8").splitlines()]
    searches = {}
    for problem in TITLES:
        path = out / f"search-{problem}.json"
        if path.exists():
            searches[problem] = json.loads(path.read_text(encoding="utf-8"))
    figure(records, searches, image)
    for problem, search in searches.items():
        path = out / f"grid-{problem}.json"
        if path.exists():
            search["factors"] += json.loads(path.read_text(encoding="utf-8"))["factors"]
    (out / "tables.md").write_text(tables(records, searches), encoding="utf-8")
