"""Tables and figure of `precision.py`. Imports no torch."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from latephase.records.drawing import DPI, house_style, legend

Record = dict[str, Any]
SETS = ("evaluation", "batch", "large")
TOLERANCE = 0.02
_LOOKS = {
    "reordered": {"color": "#595959", "marker": "x", "label": "float32, rows in another order"},
    "float64": {"color": "#0072B2", "marker": "s", "markerfacecolor": "white", "label": "float64"},
    "bfloat16": {"color": "#cb181d", "marker": "o", "alpha": 0.75, "label": "products in bfloat16"},
}
EDGE = 100
"""Percent: larger differences are drawn here."""


def line(record: Record) -> str:
    """One step in a line, for the terminal."""
    base = record["float32"]
    words = [f"  {record['checkpoint']}, damping {record['damping']:g}, cap {record['cap']}, step {record['step']}:"]
    words.append(f"loss {record['loss']['large']:.4f}, {base['cg_iterations'][0]} iterations")
    for variant in ("bfloat16", "reordered", "float64"):
        if variant in record:
            found = "/".join("-" if r is None else f"{r:.3f}" for r in (ratio(record, variant, s) for s in SETS))
            words.append(f"{variant} {found} ({record[variant]['cg_iterations'][0]})")
    return "  ".join(words)


def ratio(record: Record, variant: str, name: str) -> float | None:
    """Decrease of the loss over that of the float32 step; None where either step was rejected."""
    own, base = record[variant], record["float32"]
    if not (own["accepted"] and base["accepted"] and base["decrease"][name]):
        return None
    return own["decrease"][name] / base["decrease"][name]


def ratios(records: Sequence[Record], variant: str, name: str) -> list[float]:
    """The ratios of all steps that have one."""
    found = (ratio(record, variant, name) for record in records if variant in record)
    return [value for value in found if value is not None]


def pooled(records: Sequence[Record], variant: str, name: str) -> float | None:
    """Sum of the decreases over the sum of the float32 steps' on the same data; a rejected step counts as none."""
    pairs = [(r[variant]["decrease"][name], r["float32"]["decrease"][name]) for r in records if variant in r]
    base = sum(b for _, b in pairs)
    return sum(a for a, _ in pairs) / base if base else None


def groups(problem: Record) -> dict[tuple[str, float, int], list[Record]]:
    """Steps by checkpoint, first damping and cap."""
    found: dict[tuple[str, float, int], list[Record]] = {}
    for record in problem["steps"]:
        found.setdefault((record["checkpoint"], record["damping"], record["cap"]), []).append(record)
    return found


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Median and quartiles."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}" if values else "-"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def close(values: Sequence[float]) -> str:
    """How many ratios are one within the tolerance."""
    return str(sum(abs(value - 1) <= TOLERANCE for value in values))


def middle(records: Sequence[Record], variant: str, quantity: str) -> float | None:
    """Median of a number of a variant's accepted steps."""
    found = [r[variant][quantity] for r in records if variant in r and r[variant][quantity] is not None]
    return statistics.median(found) if found else None


def number(value: float | None, form: str = ".3f") -> str:
    """A number that may be missing."""
    return "-" if value is None else format(value, form)


def decreases(result: Record) -> tuple[list[str], list[list[str]]]:
    """Decrease of the loss in bfloat16 over that in float32."""
    heading = ["problem", "checkpoint", "damping", "cap", "steps", "evaluation", "batch", "larger set"]
    heading += ["within 2 %", "sums: evaluation", "batch", "larger set"]
    rows = []
    for problem in result.values():
        for (checkpoint, damping, cap), records in groups(problem).items():
            row = [problem["title"], checkpoint, f"{damping:g}", str(cap)]
            row.append(f"{len(ratios(records, 'bfloat16', 'batch'))} of {len(records)}")
            row += [spread(ratios(records, "bfloat16", name)) for name in SETS]
            row.append(" / ".join(close(ratios(records, "bfloat16", name)) for name in SETS))
            rows.append([*row, *(number(pooled(records, "bfloat16", name)) for name in SETS)])
    return heading, rows


def steps(result: Record) -> tuple[list[str], list[list[str]]]:
    """How the steps differ: vectors, iterations, candidates, damping, acceptance."""
    heading = ["problem", "checkpoint", "damping", "cap", "difference", "cosine", "length", "iterations f32", "bf16"]
    heading += ["same candidate", "same next damping", "same acceptance", "seconds, bf16 / f32"]
    rows = []
    for problem in result.values():
        for (checkpoint, damping, cap), records in groups(problem).items():
            row = [problem["title"], checkpoint, f"{damping:g}", str(cap)]
            for quantity, form in (("step_difference", ".3f"), ("cosine", ".4f"), ("step_norm_ratio", ".3f")):
                row.append(number(middle(records, "bfloat16", quantity), form))
            for variant in ("float32", "bfloat16"):
                row.append(f"{statistics.median(r[variant]['cg_iterations'][0] for r in records):g}")
            for quantity in ("cg_chosen", "next_damping", "accepted"):
                same = sum(r["float32"][quantity] == r["bfloat16"][quantity] for r in records)
                row.append(f"{same} of {len(records)}")
            seconds = statistics.median(r["bfloat16"]["seconds"] / r["float32"]["seconds"] for r in records)
            rows.append([*row, f"{seconds:.2f}"])
    return heading, rows


def rounding(result: Record) -> tuple[list[str], list[list[str]]]:
    """What rounding alone does, on the steps that were also taken in float64 or with reordered rows."""
    heading = ["problem", "damping", "against float32", "steps", "difference", "evaluation", "batch", "larger set"]
    heading.append("within 2 %")
    rows = []
    for problem in result.values():
        for damping in dict.fromkeys(record["damping"] for record in problem["steps"]):
            some = [r for r in problem["steps"] if (r["damping"], r["cap"]) == (damping, 250) and "reordered" in r]
            for variant in ("reordered", "float64", "bfloat16"):
                records = [record for record in some if variant in record]
                if records:
                    row = [problem["title"], f"{damping:g}", variant, str(len(records))]
                    row.append(number(middle(records, variant, "step_difference"), ".1e"))
                    found = [ratios(records, variant, name) for name in SETS]
                    rows.append([*row, *map(spread, found), " / ".join(map(close, found))])
    return heading, rows


def costs(result: Record) -> tuple[list[str], list[list[str]]]:
    """Cost of a product, and its error beside the damping."""
    heading = ["problem", "parameters", "rows", "checkpoint", "float32, ms", "bf16 / f32", "largest eigenvalue"]
    heading += ["error at unit gradient"]
    rows = []
    for problem in result.values():
        for checkpoint, found in problem["products"].items():
            row = [problem["title"], f"{problem['parameters']:,}", str(problem["rows"]), checkpoint]
            low, high = found["bfloat16"]["quartiles"]
            row += [f"{1000 * found['float32']['seconds']:.1f}"]
            row += [f"{found['bfloat16']['ratio']:.2f} [{low:.2f}, {high:.2f}]"]
            rows.append([*row, f"{found['largest_eigenvalue']:.3g}", f"{found['error_at_gradient']:.2g}"])
    return heading, rows


TABLES = {
    "Decrease of the loss, bfloat16 over float32": decreases,
    "The steps, bfloat16 against float32": steps,
    "What is rounding": rounding,
    "Products": costs,
}


def write(result: Record, directory: Path) -> None:
    """Write `precision.md` and `precision.png`, and print the tables."""
    console = Console()
    sections = ["# Curvature products in bfloat16", INTRODUCTION]
    for title, make in TABLES.items():
        heading, rows = make(result)
        table = Table(*heading, title=title, box=box.SIMPLE_HEAD)
        for row in rows:
            table.add_row(*row)
        console.print(table)
        lines = [heading, ["---"] * len(heading), *rows]
        sections += [f"## {title}", "\n".join("| " + " | ".join(cells) + " |" for cells in lines)]
    for problem in result.values():
        machine = problem["environment"]
        where = f"torch {machine['torch']}, {machine['cpu']}, one thread, commit {machine['git_commit']}"
        sections.append(f"{problem['title']}: {where}, {problem['seconds']:.0f} s.")
    (directory / "precision.md").write_text("\n\n".join(sections) + "\n")
    with house_style():
        draw(result).savefig(directory / "precision.png", dpi=DPI, metadata={"Software": None})


INTRODUCTION = """
Made by `benchmarks/precision.py`, which says what is compared. A ratio above 1 is in favour of bfloat16. Ratios are
medians and quartiles over the steps that both took; "sums" are sums of the decreases of all steps, rejected ones
counting as none, divided by each other; "within 2 %" counts steps on evaluation batch / batch / larger set. A
difference is |p - p32| / |p32| for the steps p. The damping is that of the first step. Where no run of conjugate
gradients is longer than 50 iterations, the cap of 50 changes nothing and is left out.
""".strip()


def draw(result: Record) -> Figure:
    """A panel per problem: how far each step's decrease on the larger set is from that of float32, in percent."""
    figure = Figure(figsize=(10.0, 2.4 * ((len(result) + 1) // 2) + 1.2))
    FigureCanvasAgg(figure)
    panels = list(figure.subplots((len(result) + 1) // 2, 2, squeeze=False, sharex=True).flat)
    for axes, problem in zip(panels, result.values(), strict=False):
        panel(axes, problem)
    for axes in panels[len(result) :]:
        axes.remove()
    for axes in panels[max(len(result) - 2, 0) : len(result)]:
        axes.set_xlabel("decrease on the larger set, % above float32")
    legend(figure, panels[0], narrow=False)
    return figure


def panel(axes: Axes, problem: Record) -> None:
    """One problem: a row per checkpoint and damping, a marker per step and a bar at the median."""
    settings = [key for key in groups(problem) if key[2] == 250]
    axes.axvspan(-100 * TOLERANCE, 100 * TOLERANCE, color="#e4e4e4", zorder=0)
    for place, key in enumerate(settings):
        for shift, (variant, look) in zip((-0.25, 0, 0.25), _LOOKS.items(), strict=True):
            found = [100 * (value - 1) for value in ratios(groups(problem)[key], variant, "large")]
            found = [max(min(value, EDGE), -EDGE) for value in found]
            (points,) = axes.plot(found, [place + shift] * len(found), linestyle="none", markersize=5, **look)
            if place:  # one entry in the legend is enough
                points.set_label(None)
    axes.set_xscale("symlog", linthresh=1, linscale=0.8)
    axes.set_xlim(-1.3 * EDGE, 1.3 * EDGE)
    axes.set_xticks([-EDGE, -10, -2, 0, 2, 10, EDGE], [f"≤−{EDGE}", "−10", "−2", "0", "2", "10", f"≥{EDGE}"])
    axes.set_yticks(range(len(settings)), [f"{checkpoint}, damping {damping:g}" for checkpoint, damping, _ in settings])
    axes.set_ylim(len(settings) - 0.5, -0.5)
    axes.set_title(problem["title"])
    axes.minorticks_off()
