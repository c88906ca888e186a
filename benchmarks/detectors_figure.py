"""The figure of `detectors.py`: the statistics of the rules over the training of a network. Imports no torch."""

from pathlib import Path
from typing import Any

from latephase.records.drawing import DPI, freeze, house_style, panels

LABELS = {
    "Slope": "t of the loss's slope",
    "SLOPE, published": "t of the loss's slope",
    "SASA+": "mean over half its interval",
    "distance": "slope of log distance",
    "Pflug": "sum of inner products",
    "gradient norm": "norm over its maximum",
}
EPOCH = {"digits": 100, "fashion": 8}
"""From which on docs/late_phase.md calls it diffusion."""


def draw(results: dict[str, Any], path: Path, problem: str = "digits") -> None:
    """Draw what the detectors saw of one training, with where each fires and where it should."""
    found = results[problem]
    with house_style():
        figure, all_axes = panels(len(LABELS), narrow=False, height=2.4)
        for axes, (rule, label) in zip(all_axes, LABELS.items(), strict=True):
            history = found["histories"][rule]
            axes.plot(*zip(*history["pairs"], strict=True), color="#0072B2", marker=".", markersize=4)
            axes.axhline(history["level"], color="#595959", linestyle="--", linewidth=1)
            axes.axvspan(EPOCH[problem], found["epochs"], color="#009E73", alpha=0.08, linewidth=0)
            fired = found["fires"][rule][0]
            if fired is not None:
                axes.axvline(fired, color="#B2182B", linewidth=1)
            axes.set_xlim(0, found["epochs"])
            axes.set_title(f"{rule}: " + ("never" if fired is None else f"epoch {fired:.1f}"))
            axes.set_ylabel(label)
            axes.set_xlabel("epoch")
        freeze(figure)
        figure.savefig(path, dpi=DPI)
