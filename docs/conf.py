"""Sphinx: these pages, and a reference made from the docstrings. `make docs` builds them without a network."""

import re

import latephase

project = "latephase"
author = "The latephase contributors"
copyright = "the latephase contributors"
version = release = latephase.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"latephase {release}"
html_copy_source = False

myst_heading_anchors = 3

smartquotes_action = "D"  # dashes only: quotes stay as typed, for J'u and for what is copied
default_role = "py:obj"
"""A name in `backticks` in a docstring: a link where it is documented, and code everywhere."""
autodoc_member_order = "bysource"
autodoc_mock_imports = ["transformers", "pina", "deepxde"]
"""Whose classes ours are made of; not installed for these pages."""
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_display_short_literal_types = True
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True


COLON = "\N{RATIO}"


def plain_text(app, what, name, obj, options, lines):
    """Docstrings are plain text with `names` and `other code`: bars and stars, as in |r|/|b|, are no markup.

    What is no name gets the double backticks of code; a letter right after code, as in `name`s, needs a separator.
    """
    for number, line in enumerate(lines):
        parts = re.split(r"(`+[^`]*`+)", line)
        outside = [re.sub(r"(?<!\\)([|*])", r"\\\1", part) for part in parts[::2]]
        for index, part in enumerate(outside):
            if index and part[:1].isalnum():
                outside[index] = "\\ " + part
        parts[::2] = outside
        parts[1::2] = [part if re.fullmatch(r"``.*|`\w[\w.]*`", part) else f"`{part}`" for part in parts[1::2]]
        lines[number] = "".join(parts)
        if what in ("attribute", "data", "property"):  # napoleon would take what stands before a colon for a type
            lines[number] = lines[number].replace(":", COLON)


def colons_again(app, what, name, obj, options, lines):
    """Give the docstrings of attributes their colons back, once napoleon has seen them."""
    lines[:] = [line.replace(COLON, ":") for line in lines]


def outside_links(app, docname, source):
    """Links to Markdown files outside these pages, which are no pages here, hand out the file."""
    source[0] = re.sub(r"(?<!!)\[([^]]+)\]\((\.\./[^)]+\.md)\)", r"{download}`\1 <\2>`", source[0])


def setup(app):
    """Let Sphinx call us; before napoleon, which makes markup of its own."""
    app.connect("autodoc-process-docstring", plain_text, priority=100)
    app.connect("autodoc-process-docstring", colons_again, priority=900)
    app.connect("source-read", outside_links)
