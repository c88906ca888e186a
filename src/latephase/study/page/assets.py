"""What every page carries inside: styles, scripts, the chart library, and the policy that lets nothing else run.

No page fetches anything. Its Content-Security-Policy names the one style sheet and the one script by their checksums,
so that a browser would not run what a text of somebody else might smuggle in, were it ever not escaped. No torch here.
"""

import base64
import hashlib
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from .colours import rules

_HERE = files("latephase.study.page")
SCRIPTS = ("theme.js", "sort.js", "plots.js", "charts.js")
"""In their order: each may use what those before it have defined."""


@cache
def script() -> str:
    """The script of a page: uPlot with its licence, and our own."""
    licence = _text("vendor", "LICENSE").strip()
    library = _text("vendor", "uPlot.iife.min.js")
    banner, _, code = library.partition("\n")
    if not banner.startswith("/*!"):
        raise RuntimeError(f"the first line of uPlot is not its banner: {banner[:60]!r}")
    own = "\n".join(_text("scripts", name) for name in SCRIPTS)
    return f'/* uPlot 1.6.32\n{licence}\n*/\n{code}\n(() => {{\n"use strict";\n{own}}})();\n'


def style(pairs: Iterable[tuple[str, str]], more: str = "") -> str:
    """The style sheet of a page.

    Args:
        pairs: inks on a light and on a dark page, by which its tables and figures tell strategies.
        more: rules that only this page has.
    """
    own = _text("templates", "report.css")
    return f"{_text('vendor', 'uPlot.min.css')}\n{own}\n{more}\n{rules(pairs)}\n"


def dressed(pairs: Iterable[tuple[str, str]], more: str = "") -> dict[str, Any]:
    """What the template `page.html.jinja` reads of all this: the style sheet, the script, the policy."""
    sheet, code = style(pairs, more), script()
    policy = (
        f"default-src 'none'; img-src data:; style-src '{checksum(sheet)}'; script-src '{checksum(code)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return {"style": Markup(sheet), "script": Markup(code), "policy": Markup(policy)}


def checksum(text: str) -> str:
    """The checksum of an inline style or script as a policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}"


def _text(*place: str) -> str:
    return _HERE.joinpath(*place).read_text(encoding="utf-8")
