"""Texts of somebody else (names, labels, messages) as terminal, page, figure and table may show them.

Letters and no orders: nothing that steers the reader's program, and no password that came with an address.
"""

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

LONGEST_LABEL = 80
"""Letters of a label in a figure; a longer one would leave no room for the curves."""

_STEERING = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Categories of characters that are no letters: controls, marks that turn direction, surrogates, breaks of lines."""
_USERINFO = re.compile(r"(?P<begin>[A-Za-z][\w+.-]*://[^\s:@/?#]*):[^\s'\"<>]*@")
_PARAMETER = re.compile(
    r"(?P<begin>\b\w*(?:password|passwd|pwd|passphrase|secret|auth_?token|access_?token|api_?key)=)[^\s&;,'\")]+", re.I
)


def visible(text: str) -> str:
    """The text with what would steer a terminal or a page written out, as Python writes it in a string.

    Control characters, escapes, marks that turn the direction of writing, surrogates without their partner.

    Args:
        text: any string; line ends and tabs stay.
    """
    return text if text.isascii() and text.isprintable() else "".join(map(_written, text))


def _written(character: str) -> str:
    steers = unicodedata.category(character) in _STEERING and character not in "\n\t"
    return character.encode("unicode_escape").decode() if steers else character


def without_passwords(text: str) -> str:
    """The text with the password of every address in it, and of parameters such as password=..., as three stars."""
    if "://" in text:
        text = _USERINFO.sub(r"\g<begin>:***@", text)
    return _PARAMETER.sub(r"\g<begin>***", text) if "=" in text else text


def as_label(text: str) -> str:
    """The text as a label of a figure: no formula between dollar signs, no underscore that hides it from a legend."""
    text = visible(" ".join(text.split()))
    text = text if len(text) <= LONGEST_LABEL else f"{text[: LONGEST_LABEL - 1]}…"
    text = text.replace("$", r"\$")
    return f"\u200a{text}" if text.startswith("_") else text


def as_cell(value: Any) -> Any:
    """What goes into a cell of a CSV file; an apostrophe stands before a text that spreadsheets take for a formula."""
    is_formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    return f"'{value}" if is_formula else value


class PlainConsole(Console):
    """A console that prints every string as it is: no markup, no emoji codes, nothing that steers the terminal."""

    def render_str(self, text: str, **options: Any) -> Text:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A string as text; every string printed, and every cell of a table, comes through here."""
        options.update(markup=False, emoji=False)
        return super().render_str(without_passwords(visible(text)), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What a thing is drawn with; its texts, too, are letters, whoever made them."""
        for segment in super().render(renderable, options):
            if segment.control is None:
                yield Segment(visible(segment.text), segment.style)
            else:
                yield segment
