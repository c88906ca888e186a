"""The report as a reader sees it: in headless Chromium, at the width of a desktop and of a phone."""

import json

import pytest
from headless_browser import NAMES, browse, find_browser

pytestmark = pytest.mark.skipif(find_browser() is None, reason=f"no browser: none of {', '.join(NAMES)} is installed")

CLICK = """
(() => {
  const table = document.querySelector("#checkpoint-10 table");
  const heading = table.tHead.rows[0].cells[%d];
  heading.querySelector("button").click();
  return {
    order: [...table.tBodies[0].rows].map(row => row.cells[0].textContent.trim()),
    sort: [...table.tHead.rows[0].cells].map(cell => cell.getAttribute("aria-sort")),
  };
})()
"""
STRATEGIES = ["the checkpoint itself", "SGD, constant", "SGD, cosine", "HF, m = 64"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browse(find_browser(), tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(params=[1280, 390])
def opened(page, reported, request):
    page.open(reported / "report.html", request.param)
    return page


def test_every_figure_is_shown_and_nothing_overflows(opened):
    images = opened.evaluate(
        "[...document.images].map(i => [i.complete, i.naturalWidth, i.clientWidth, i.getBoundingClientRect().right])"
    )
    width = opened.evaluate("innerWidth")
    assert len(images) == 11
    for complete, natural, shown, right in images:
        assert complete
        assert natural > 0
        assert shown > 300  # large enough to read on a phone of 390
        assert right <= width
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_narrow_pages_have_narrow_figures(opened):
    shares = opened.evaluate("[...document.images].map(i => i.naturalWidth / i.naturalHeight)")
    phone = opened.evaluate("innerWidth") == 390
    assert all((share < 1.1) == phone for share in shares)


def test_tables_sort_both_ways_by_their_numbers(opened):
    # train loss of epoch 10: the checkpoint 1.0, constant 0.92, cosine 0.52, Hessian-free 0.61
    rising = [STRATEGIES[place] for place in (2, 3, 1, 0)]
    assert opened.evaluate(CLICK % 1) == {"order": rising, "sort": [None, "ascending", None, None]}
    assert opened.evaluate(CLICK % 1) == {"order": rising[::-1], "sort": [None, "descending", None, None]}


def test_tables_sort_by_their_words_and_forget_the_other_column(opened):
    opened.evaluate(CLICK % 1)
    found = opened.evaluate(CLICK % 0)
    assert found["order"] == sorted(STRATEGIES, key=str.lower)
    assert found["sort"] == ["ascending", None, None, None]


def test_every_heading_of_every_table_is_a_button_that_sorts(opened):
    tables = opened.evaluate(
        """[...document.querySelectorAll("table")].filter(table => table.tHead).map(table => {
          const cells = [...table.tHead.rows[0].cells];
          const count = table.tBodies[0].rows.length;
          const sorted = cells.map(cell => { cell.querySelector("button").click(); return cell.ariaSort; });
          return [cells.length, sorted, count === table.tBodies[0].rows.length];
        })"""
    )
    assert len(tables) == 2 + 2 * 5
    for columns, sorted_by, whole in tables:
        assert sorted_by == ["ascending"] * columns
        assert whole


def test_what_is_not_known_is_sorted_last(opened):
    click = """(() => {
      const table = document.querySelector("#overview table");
      table.tHead.rows[0].cells[3].querySelector("button").click();
      return [...table.tBodies[0].rows].map(row => row.cells[3].textContent);
    })()"""
    for _ in range(2):
        found = opened.evaluate(click)
        assert found == sorted(found, key="–".__eq__)
        assert "–" in found


def test_the_page_works_without_its_script(page, reported):
    page.open(reported / "report.html", 390, script=False)
    found = json.loads(
        page.evaluate(
            "JSON.stringify([document.querySelectorAll('button').length, document.images.length, "
            "document.documentElement.scrollWidth <= innerWidth, document.querySelectorAll('tbody tr').length > 20])"
        )
    )
    assert found == [0, 11, True, True]


def test_the_page_fetches_nothing(opened):
    assert (
        opened.evaluate("performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length") == 0
    )
