"""Draws the README's first figure from committed results: python docs/readme_figure.py."""

import json
from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt

from latephase.records import DPI, house_style

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "gauss_newton.json"
LABELS = {"adam": "Adam, cosine", "lbfgs": "L-BFGS, strong Wolfe", "gauss_newton": "GaussNewton"}


def main() -> None:
    """Median and range of three seeds at the start, after half of the time and at its end."""
    runs = json.loads(RESULTS.read_text(encoding="utf-8"))["runs"]
    with house_style():
        figure, axes = plt.subplots(figsize=(7.0, 3.2), layout="constrained")
        for name, label in LABELS.items():
            own = [run for run in runs if run["method"] == name]
            seconds = [0.0, own[0]["seconds"] / 2, own[0]["seconds"]]
            errors = [[run[when]["error"] for run in own] for when in ("start", "half", "end")]
            middle = [median(each) for each in errors]
            (line,) = axes.plot(seconds, middle, marker="o", label=label)
            lowest, highest = [min(each) for each in errors], [max(each) for each in errors]
            axes.fill_between(seconds, lowest, highest, color=line.get_color(), alpha=0.2, linewidth=0)
        axes.set_yscale("log")
        axes.set_xlabel("seconds of processor time, after 10 s of Adam")
        axes.set_ylabel("relative error of the solution")
        axes.legend()
        figure.savefig(ROOT / "docs" / "images" / "poisson.png", dpi=DPI)


if __name__ == "__main__":
    main()
