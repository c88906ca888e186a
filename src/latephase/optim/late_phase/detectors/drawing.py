"""The figure of a detector: its statistic over the steps of a run."""

from pathlib import Path
from typing import Any

from ....records import DPI, house_style, panels


def draw(detector: Any, path: Path) -> None:
    """Draw a `Detector`'s history, its threshold, and where it fired, into a file."""
    with house_style():
        figure, (axes,) = panels(1, narrow=False)
        steps = [step for step, _ in detector.history]
        axes.plot(steps, [value for _, value in detector.history], color="#0072B2", marker=".", markersize=4)
        axes.axhline(detector.level, color="#595959", linestyle="--", linewidth=1)
        if detector.since is not None:
            axes.axvline(detector.since, color="#B2182B", linewidth=1)
        axes.set_xlabel("step")
        axes.set_ylabel(detector.label)
        fired = "not in diffusion" if detector.since is None else f"in diffusion from step {detector.since} on"
        axes.set_title(f"{type(detector).__name__}: {fired}")
        figure.savefig(path, dpi=DPI)
