"""The options of a strategy as text, for the report. Imports no torch."""

from typing import Any

from ..results import Strategy


def options_text(strategy: Strategy) -> str:
    """Return the options of a strategy, those of a chain part by part; names and labels are left out."""
    parts = [
        f"until {100 * part['until']:g}% of the budget: {_pairs(part['strategy'])}"
        for part in strategy.options.get("parts", [])
    ]
    return "; ".join(parts) or _pairs(strategy.options)


def _pairs(options: dict[str, Any]) -> str:
    """Options one after the other; what a nested table holds stands for itself."""
    flat = {key: value for key, value in options.items() if key not in ("name", "label", "options")}
    return ", ".join(f"{key} = {_short(value)}" for key, value in (flat | options.get("options", {})).items())


def _short(value: Any) -> str:
    """A value, its numbers with four digits; the configuration below has all of them."""
    if isinstance(value, list):
        return f"[{', '.join(map(_short, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {_short(each)}' for key, each in value.items())}}}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
