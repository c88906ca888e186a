"""The page of a finish."""

from html import escape

from .report import FinishReport


def page(report: FinishReport) -> str:
    """The page, whole."""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{steps:,}</td><td>{'' if loss is None else f'{loss:.4g}'}</td>"
        f"<td>{escape(became)}</td></tr>"
        for name, steps, loss, became in report.standings()
    )
    return (
        f"<!doctype html><meta charset=utf-8><title>finish</title><p>{escape(report.verdict)}</p><table>{rows}</table>"
    )
