"""Colours of strategies on a light and on a dark page, legible on either by WCAG's formula. Imports no torch."""

from collections.abc import Iterable
from functools import cache

PAGES = {"light": "#ffffff", "dark": "#15171b"}
"""The ground of a page in each theme, as `report.css` has it."""

LEAST = 3.0
"""Contrast of lines and dots with the page: what WCAG 2.2 asks of graphics (1.4.11)."""


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio of two colours, from 1 to 21.

    Args:
        one: a colour as "#rrggbb".
        other: another.
    """
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@cache
def legible(colour: str, ground: str, least: float = LEAST) -> str:
    """The colour nearest to one, on its way to black or white, that has enough contrast with a ground.

    Args:
        colour: as "#rrggbb".
        ground: what it is drawn on.
        least: the contrast. Default: that of graphics.
    """
    end = "#000000" if _luminance(ground) > 0.2 else "#ffffff"
    steps = (_mixed(colour, end, share / 100) for share in range(101))
    return next(mixed for mixed in steps if contrast(mixed, ground) >= least)


def inks(colour: str) -> tuple[str, str]:
    """A figure's colour as it is on a light and on a dark page."""
    return legible(colour.lower(), PAGES["light"]), legible(colour.lower(), PAGES["dark"])


def class_of(pair: tuple[str, str]) -> str:
    """The class of elements in the inks of a strategy; see `rules`."""
    return "ink-" + "-".join(colour.removeprefix("#") for colour in pair)


def rules(pairs: Iterable[tuple[str, str]]) -> str:
    """Style rules that give each pair's class its ink in either theme, as the property `--own`."""
    light, asked, system = [], [], []
    for pair in dict.fromkeys(pairs):
        name, (day, night) = class_of(pair), pair
        light.append(f".{name}{{--own:{day}}}")
        asked.append(f":root[data-theme=dark] .{name}{{--own:{night}}}")
        system.append(f":root:not([data-theme=light]) .{name}{{--own:{night}}}")
    dark = f"@media screen{{{''.join(asked)}}}@media screen and (prefers-color-scheme:dark){{{''.join(system)}}}"
    return "".join(light) + dark


def _channels(colour: str) -> list[float]:
    return [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]


def _luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in _channels(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _mixed(colour: str, end: str, share: float) -> str:
    mixed = ((1 - share) * c + share * e for c, e in zip(_channels(colour), _channels(end), strict=True))
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in mixed)
