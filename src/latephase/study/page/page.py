"""The report page of a study: one self-contained HTML file that says what was run, how it was measured, what came out.

Figures are embedded, as pictures and as the data from which a script draws them anew. Nothing is fetched.
No torch here.
"""

import base64
import io
import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from jinja2 import BaseLoader, ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from ...records import DPI, refuse_links, write_text_atomic
from ..results import (
    Reading,
    Results,
    Score,
    amount_text,
    duration_text,
    load_results,
    number_word,
    read_plan,
    score_results,
    summarize,
    verdicts_of,
)
from .assets import dressed
from .charts import Chart, letters
from .colours import class_of
from .context import context_of
from .figures import draw_results, render
from .style import Style, styles
from .tables import write_tables

_LOADER = PackageLoader("latephase.study.page")
_EXPLAINED = [name for name in _LOADER.list_templates() if name.startswith("kinds/")]
"""What the page says of a kind of strategies that readers may not know, by the kind's name."""


@dataclass(frozen=True)
class Picture:
    """A figure as the page embeds it.

    Attributes:
        wide: its PNG as a data address; for print, and where scripts do not run.
        narrow: the one for a phone; None where there is none.
        width: of the wide one, at 96 dpi.
        height: of the wide one.
        chart: the data from which the page's script draws it; None where there is the picture alone.
        inks: that are in the data.
    """

    wide: str
    narrow: str | None
    width: int
    height: int
    chart: Markup | None = None
    inks: tuple[tuple[str, str], ...] = ()


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
        drawn, charts = draw_results(results)
        wide = {path.stem: path.read_bytes() for path in drawn if path.suffix == ".png"}
        narrow = render(results, narrow=True)
        pictures = {name: picture(wide[name], narrow[name], charts[name]) for name in wide}
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
    return whole_page("report.html.jinja", context)


def render_scores(results: Results, scores: list[Score], pictures: dict[str, Picture], links: dict[str, str]) -> str:
    """The page of a study of which no more is kept than its scores.

    Args:
        results: its plan and environment; it may have neither training nor runs.
        scores: its scores.
        pictures: the figures, in order.
        links: what else there is to see, and where.
    """
    reading, steps = Reading(results, scores), summarize(scores, "steps")
    tables = []
    for epoch in results.plan.checkpoints:
        rows = []
        for strategy in results.plan.strategies:
            cells = [reading.summary(measure, epoch, strategy) for measure in results.measures]
            if all(cells):
                rows.append((strategy, cells, steps[epoch, strategy.name].mean))
        tables.append((epoch, rows))
    context = {
        "plan": results.plan,
        "runs": len(scores),
        "machine": results.environment.get("cpu", "a machine"),
        "budget": amount_text(results.budget, results.plan.unit),
        "verdicts": verdicts_of(reading),
        "measures": results.measures,
        "tables": tables,
        "looks": styles(results.plan),
        "pictures": pictures,
        "links": links,
    }
    return whole_page("scores.html.jinja", context)


def whole_page(
    template: str, context: dict[str, Any], room: str | None = None, sheet: str = "", **filters: Callable[..., Any]
) -> str:
    """A page from its template, whatever it says being escaped, with styles and scripts inside.

    Args:
        template: its name.
        context: what it reads; the styles of strategies, as `looks`, and the `pictures` among it.
        room: the package whose `templates` it is among. Default: this one, whose templates all may use.
        sheet: a style sheet among them, for this page alone.
        filters: that the template uses beside ours.
    """
    loader = _LOADER if room is None else ChoiceLoader([PackageLoader(room), _LOADER])
    environment = _environment(loader)
    environment.filters.update(filters)
    more = environment.get_template(sheet).render() if sheet else ""
    pictures: dict[str, Picture] = context["pictures"]
    looks: dict[str, Style] = context["looks"]
    pairs = [*(look.inks for look in looks.values()), *(pair for each in pictures.values() for pair in each.inks)]
    return environment.get_template(template).render(context | dressed(pairs, more))


def _environment(loader: BaseLoader) -> Environment:
    environment = Environment(
        loader=loader,
        autoescape=True,
        finalize=_letters,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(duration=duration_text, word=number_word, named=named, ink=_ink)
    return environment


def _letters(value: Any) -> Any:
    """What an expression of the page says, with nothing that would steer the reader's browser; then it is escaped."""
    return letters(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _ink(look: Style) -> str:
    return class_of(look.inks)


def named(text: str) -> Markup:
    """A text in which names stand in “quotes”, with the names set off by their type instead."""
    return Markup(re.sub("“([^“”]*)”", r'<b class="name">\1</b>', str(escape(letters(text)))))


def picture(wide: bytes, narrow: bytes | None, chart: Chart | None = None) -> Picture:
    """A figure of a page.

    Args:
        wide: its PNG.
        narrow: the one for a phone; None: there is none.
        chart: what it shows (`chart_of`), to be drawn anew by the page's script.
    """
    width, height = struct.unpack(">II", wide[16:24])  # the IHDR chunk of a PNG begins with them
    size = round(width * 96 / DPI), round(height * 96 / DPI)
    data = None if chart is None else escape(chart.data)
    return Picture(
        _address(wide), _address(narrow) if narrow else None, *size, data, () if chart is None else chart.inks
    )


def _address(image: bytes) -> str:
    """A PNG as data address, its colours cut to 128: a third of the size, and no difference to the eye."""
    small = io.BytesIO()
    Image.open(io.BytesIO(image)).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(small, "png")
    return f"data:image/png;base64,{base64.b64encode(small.getvalue()).decode('ascii')}"
