"""The benchmark's figure: what a product costs, by network and contender. Imports no torch."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..records import house_style, legend
from ..study.page import save
from .tables import contenders

LIMIT = 4 / 3
"""Operations of a product over those of a gradient: in each layer 4 matrix products, tangents and pull-back of weights
and activations, against 3."""

# Ours in reds with filled markers, others in the colours of Okabe and Ito with hollow ones, as in the study's figures.
_OURS = ("#cb181d", "#fb6a4a", "#67000d", "#fcae91", "#a50f15")
_PEERS = {"BackPACK": ("#0072B2", "s"), "curvlinops": ("#009E73", "^")}
_MARKERS = ("o", "D", "P", "X", "v")


def draw(result: dict[str, Any], directory: Path) -> list[Path]:
    """Draw the figure as `bench.png` and `bench.pdf`; returns their paths."""
    with house_style():
        return save(product_costs(result), directory, "bench")


def product_costs(result: dict[str, Any]) -> Figure:
    """Draw the cost of a product: a row per network, a marker per contender, its line from quartile to quartile."""
    networks = [network for network in result["networks"] if "contenders" in network]
    names = contenders(result)
    with house_style():
        figure = Figure(figsize=(8.0, 1.5 + max(len(networks), 2) * (0.13 * len(names) + 0.2)))
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for position, name in enumerate(names):
            shift = (position - (len(names) - 1) / 2) * 0.7 / max(len(names), 1)
            _markers(axes, networks, name, _style(names, name), shift)
        axes.axvline(1, color="#555555", linewidth=1, zorder=0.5)
        axes.axvline(LIMIT, color="#555555", linewidth=1, linestyle=(0, (4, 3)), zorder=0.5)
        word = {"y": 1, "transform": axes.get_xaxis_transform(), "fontsize": 8, "color": "#555555", "va": "bottom"}
        axes.text(1, s="a gradient ", ha="right", **word)
        axes.text(LIMIT, s=" 4/3: operations", ha="left", **word)
        axes.set_yticks(range(len(networks)), [network["title"] for network in networks])
        axes.set_ylim(len(networks) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.grid(axis="y", visible=False)
        for boundary in range(1, len(networks)):
            axes.axhline(boundary - 0.5, color="#e4e4e4", linewidth=0.7, zorder=0)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("cost of a Gauss-Newton product, in gradients of the same batch")
        legend(figure, axes, narrow=False)
    return figure


def _style(names: list[str], name: str) -> dict[str, Any]:
    if name in _PEERS:
        colour, marker = _PEERS[name]
        return {"color": colour, "marker": marker, "markerfacecolor": "white"}
    own = [other for other in names if other not in _PEERS].index(name)
    return {"color": _OURS[own % len(_OURS)], "marker": _MARKERS[own % len(_MARKERS)]}


def _markers(axes: Axes, networks: list[dict[str, Any]], name: str, style: dict[str, Any], shift: float) -> None:
    """The markers of one contender; a word in its colour where it failed."""
    places, ratios, spreads = [], [], []
    for place, network in enumerate(networks):
        record = network["contenders"].get(name, {})
        if "product" in record:
            low, high = record["product"]["quartiles"]
            places.append(place + shift)
            ratios.append(record["product"]["ratio"])
            spreads.append((ratios[-1] - low, high - ratios[-1]))
        elif record.get("error", "not installed") != "not installed":
            axes.text(0, place + shift, f" {name} fails", fontsize=8, color=style["color"], va="center")
    if places:
        errors = tuple(zip(*spreads, strict=True))
        axes.errorbar(ratios, places, xerr=errors, linestyle="none", markersize=6, linewidth=1.4, label=name, **style)
