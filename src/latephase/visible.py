"""Texts of somebody else (names, labels, messages) as a terminal and a figure may show them: letters and no orders."""

import unicodedata
from typing import Any

from rich.console import Console
from rich.text import Text


def visible(text: str) -> str:
    """The text with what would steer a terminal written out: control characters, escapes, marks that turn direction.

    Args:
        text: any string; line ends and tabs stay.
    """
    return "".join(_written(character) for character in text)


def _written(character: str) -> str:
    steers = unicodedata.category(character) in ("Cc", "Cf", "Cs") and character not in "\n\t"
    return character.encode("unicode_escape").decode() if steers else character


def as_label(text: str) -> str:
    """The text as a label of a figure: no formula between dollar signs, no underscore that hides it from a legend."""
    text = visible(text).replace("$", r"\$")
    return f"\u200a{text}" if text.startswith("_") else text


class PlainConsole(Console):
    """A console that prints every string as it is: no markup, no emoji codes, nothing that steers the terminal."""

    def render_str(self, text: str, **options: Any) -> Text:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A string as text; everything printed, and every cell of a table, comes through here."""
        options.update(markup=False, emoji=False)
        return super().render_str(visible(text), **options)
