"""Names and labels of somebody else reach terminal and figures as letters."""

import io

import matplotlib.pyplot as plt
import pytest
from rich.table import Table

from latephase.records.safe_text import PlainConsole, as_label, visible

HOSTILE = [
    "SGD [/foo]",
    "[bold red]x[/]",
    ":smile:",
    "\x1b[2Jgone",
    "a\rb",
    "\u202eturned",
    "\x07",
    "$x_{",
    "_hidden",
    "100 $ to $",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_terminal_shows_the_letters(text):
    out = io.StringIO()
    console = PlainConsole(file=out, force_terminal=True, color_system=None, width=120)
    table = Table(title=text)
    table.add_column(text)
    table.add_row(text)
    for thing in (text, table):
        out.truncate(0)
        out.seek(0)
        console.print(thing, style="red")
        shown = out.getvalue()
        assert visible(text) in shown
        assert not any(character in shown for character in "\x1b\r\x07\u202e")


@pytest.mark.parametrize("text", HOSTILE)
def test_a_figure_shows_the_letters(text):
    figure, axes = plt.subplots()
    axes.plot([0, 1], label=as_label(text))
    axes.set_title(as_label(text))
    legend = axes.legend()
    figure.canvas.draw()  # raises on half a formula
    assert len(legend.get_texts()) == 1
    plt.close(figure)
