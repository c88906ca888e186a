"""The page of a finish: one self-contained HTML file, in the style of a study's."""

import math
from typing import Any

import torch

from ..records import describe_environment
from ..study.page import picture, whole_page
from ..study.results import amount_text
from .certificate import PRODUCTS
from .figure import images_of, looks_of
from .report import FinishReport

_MACHINE = {
    "device": "Device",
    "cpu": "Processor",
    "cores": "Cores",
    "threads": "Threads",
    "platform": "System",
    "python": "Python",
    "torch": "PyTorch",
    "latephase": "latephase",
    "git_commit": "Commit",
}
"""What is said of the machine, by the keys of `describe_environment`."""


def page(report: FinishReport) -> str:
    """The page, whole."""
    return whole_page("finish.html.jinja", context_of(report), "latephase.finishing", loss=loss_text)


def context_of(report: FinishReport) -> dict[str, Any]:
    """All that the template reads."""
    device = report.given.get("Device of the model", "cpu")
    machine = describe_environment(torch.get_num_threads(), 1, device)
    amount, _, unit = report.given.get("Budget", f"{report.spent:g} {report.unit}").partition(" ")
    return {
        "report": report,
        "title": report.given.get("Model", "Model").partition(",")[0],
        "budget": amount_text(float(amount), unit) if unit in ("seconds", "steps") else f"{amount} {unit}",
        "timed": report.unit != "steps",
        "products": PRODUCTS,
        "scored": sum(event["event"] in ("start", "score", "look") for event in report.events),
        "standings": report.standings(),
        "looks": looks_of(report),
        "pictures": {"course": picture(*images_of(report))},
        "machine": {label: machine[key] for key, label in _MACHINE.items() if machine.get(key) is not None},
    }


def loss_text(loss: float | None) -> str:
    """A loss with four digits; a dash where there is none."""
    if loss is None or not math.isfinite(loss):
        return "–" if loss is None else "not finite"
    return f"{loss:.4g}"
