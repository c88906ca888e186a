"""The pages: their code runs as printed, every option and public name has its place, and links lead somewhere."""

import inspect
import re
from pathlib import Path

import pytest
import torch

import latephase
from latephase import (
    CG,
    GGN,
    Armijo,
    Blocks,
    Direct,
    GaussNewton,
    HessianFree,
    LevenbergMarquardt,
    NonMonotone,
    TargetRatio,
)

DOCS = Path(__file__).parent.parent / "docs"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))}
PARTS = (CG, Direct, GGN, LevenbergMarquardt, NonMonotone, TargetRatio, Armijo, Blocks)
FENCE = re.compile(r"^```python *([^\n]*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


def code_of(page: str) -> list[tuple[int, str]]:
    """Line number and text of each fence that is to be run; "```python not run" is how one says that it is not.

    "```python needs lightning" is run by `tests/integrations`, where that package is.
    """
    found = []
    for fence in FENCE.finditer(PAGES[page]):
        assert fence[1] in ("", "not run") or fence[1].startswith("needs "), f"{page}: python {fence[1]}"
        if not fence[1]:
            found.append((PAGES[page].count("\n", 0, fence.start(2)), fence[2]))
    return found


@pytest.fixture
def own_dtype():
    """A page may set torch's default dtype, as a reader's script does; the next page begins with torch's own."""
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("own_dtype")
@pytest.mark.parametrize("page", [page for page in PAGES if code_of(page)])
def test_the_code_of_a_page_runs_as_printed(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    with torch.random.fork_rng(devices=[]):
        for line, code in code_of(page):
            exec(compile("\n" * line + code, str(DOCS / f"{page}.md"), "exec"), namespace)


def test_there_is_code_to_run():
    counts = {page: len(code_of(page)) for page in PAGES}
    for page in ("guide", "options", "damping", "preconditioners", "recurrent", "logging", "check"):
        assert counts[page] > 0, page
    assert sum(text.count("```python") for text in PAGES.values()) == sum(
        len(FENCE.findall(text)) for text in PAGES.values()
    )


def options_of(made):
    """Options with their defaults."""
    parameters = inspect.signature(made).parameters.values()
    return {p.name: p.default for p in parameters if p.name != "params" and p.kind is not p.VAR_KEYWORD}


def test_every_option_has_its_place():
    headings = set(re.findall(r"^### `(\w+)`$", PAGES["options"], flags=re.MULTILINE))
    assert headings == {*options_of(HessianFree), *options_of(GaussNewton), "damping_scale", "tolerance"}
    fields = set(re.findall(r"^####? `(\w+\.\w+)`$", PAGES["options"], flags=re.MULTILINE))
    assert fields == {f"{part.__name__}.{name}" for part in PARTS for name in options_of(part)}


def test_defaults_are_those_of_the_code():
    found = r"^####? `([\w.]+)`\n\n.*?\*\*Default\s+`?([^`*]+?)`?\*\*"
    stated = dict(re.findall(found, PAGES["options"], re.DOTALL | re.MULTILINE))
    for made in (HessianFree, *PARTS):
        for name, default in options_of(made).items():
            heading = name if made is HessianFree else f"{made.__name__}.{name}"
            assert eval(stated[heading], {"CG": CG}) == default, heading


@pytest.mark.parametrize("name", latephase.__all__)
def test_every_public_name_is_in_the_reference(name):
    assert re.search(rf"^\.\. auto(class|function):: {name}$", PAGES["api"], flags=re.MULTILINE)


def test_every_page_is_in_the_table_of_contents():
    listed = re.findall(
        r"^(\w+)$", "".join(re.findall(r"```{toctree}(.*?)```", PAGES["index"], re.DOTALL)), re.MULTILINE
    )
    assert sorted(listed) == sorted({*PAGES} - {"index"})


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = FENCE.sub("", PAGES[page])
    for target in re.findall(r"\]\((?!https?:)([^)#]*)(?:#[^)]*)?\)", text):
        assert not target or (DOCS / target).exists(), target
