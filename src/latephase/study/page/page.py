"""The report page of a study: one self-contained HTML file that says what was run, how it was measured, what came out.

Figures are embedded, styles and the small script that sorts tables are inline, and nothing is fetched. No torch here.
"""

import base64
import io
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from jinja2 import BaseLoader, ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from ...records import DPI, refuse_links, visible, without_passwords, write_text_atomic
from ..results import Results, Score, duration_text, load_results, number_word, read_plan, score_results
from .context import context_of
from .figures import draw_results, render
from .tables import write_tables

_LOADER = PackageLoader("latephase.study.page")
_EXPLAINED = [name for name in _LOADER.list_templates() if name.startswith("kinds/")]
"""What the page says of a kind of strategies that readers may not know, by the kind's name."""


@dataclass(frozen=True)
class Picture:
    """A figure as the page embeds it: its wide and narrow PNG as data addresses, and the wide one's size at 96 dpi."""

    wide: str
    narrow: str
    width: int
    height: int


def write_report(directory: str | os.PathLike[str]) -> Path:
    """Write the tables, the figures and ``report.html`` into a study's folder.

    Everything is made anew from the result files, so it can be called while runs are missing or under way, and again
    later. The same result files give the same page.

    Args:
        directory: The study's folder; its training is finished, its runs may be missing, under way, failed or damaged.

    Returns:
        The path of ``report.html``.

    Raises:
        FileNotFoundError: There is no ``study.toml``.
        ValueError: see `latephase.study.results.load.load_results`.
    """
    root = Path(directory)
    read_plan(root / "study.toml")  # nothing is written into another folder, nor is a lock
    refuse_links(root)
    with FileLock(root / ".lock-report"):  # of several parts of a study one after the other, each reading what is there
        results = load_results(root)
        scores = score_results(results)
        write_tables(results, scores)
        wide = {path.stem: path.read_bytes() for path in draw_results(results) if path.suffix == ".png"}
        narrow = render(results, narrow=True)
        pictures = {name: picture(wide[name], narrow[name]) for name in wide}
        write_text_atomic(root / "report.html", render_page(results, scores, pictures))
    return root / "report.html"


def render_page(results: Results, scores: list[Score], pictures: dict[str, Picture]) -> str:
    """Return the page as HTML.

    Args:
        results: The study's results.
        scores: Its scores.
        pictures: The figures, keyed by the names that `figures.build` gives them; what is not there is
            left out of the page.
    """
    context = context_of(results, scores, _EXPLAINED) | {"pictures": pictures}
    return page_templates().get_template("report.html.jinja").render(context)


def page_templates(*loaders: BaseLoader) -> Environment:
    """The templates of pages, whatever they say being escaped.

    Args:
        loaders: where more of them are, which may use those of a study's page.
    """
    environment = Environment(
        loader=ChoiceLoader([*loaders, _LOADER]),
        autoescape=True,
        finalize=_letters,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(duration=duration_text, word=number_word)
    return environment


def _letters(value: Any) -> Any:
    """What an expression of the page says, with nothing that would steer the reader's browser; then it is escaped."""
    return visible(without_passwords(value)) if isinstance(value, str) and not isinstance(value, Markup) else value


def picture(wide: bytes, narrow: bytes) -> Picture:
    """A figure of a page, from its PNG and the one for a phone."""
    width, height = struct.unpack(">II", wide[16:24])  # the IHDR chunk of a PNG begins with them
    return Picture(_address(wide), _address(narrow), round(width * 96 / DPI), round(height * 96 / DPI))


def _address(image: bytes) -> str:
    """A PNG as data address, its colours cut to 128: a third of the size, and no difference to the eye."""
    small = io.BytesIO()
    Image.open(io.BytesIO(image)).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(small, "png")
    return f"data:image/png;base64,{base64.b64encode(small.getvalue()).decode('ascii')}"
