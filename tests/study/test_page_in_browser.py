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


FIGURES = 11
PANELS = """[...document.querySelectorAll(".panel")].map(panel => {
  const box = panel.querySelector("canvas").getBoundingClientRect();
  return [box.width, box.height, box.right];
})"""
STILLS = """[...document.images].filter(image => image.clientWidth)
  .map(image => [image.clientWidth, image.naturalWidth / image.naturalHeight])"""


def test_every_figure_is_drawn_from_its_data_and_nothing_overflows(opened):
    assert opened.evaluate("document.querySelectorAll('figure.drawn').length") == FIGURES
    assert opened.evaluate(STILLS) == []
    panels, width = opened.evaluate(PANELS), opened.evaluate("innerWidth")
    assert len(panels) == 24
    for shown, height, right in panels:
        assert shown > 280  # large enough to read on a phone of 390
        assert height > 140
        assert right <= width
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_pictures_stand_in_print_and_where_no_script_runs(opened, reported):
    phone = opened.evaluate("innerWidth") == 390
    opened.media(media="print")
    assert len(opened.evaluate(STILLS)) == FIGURES
    assert opened.evaluate("[...document.querySelectorAll('.live')].every(live => !live.clientWidth)")
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    opened.media()
    opened.open(reported / "report.html", 390 if phone else 1280, script=False)
    shown = opened.evaluate(STILLS)
    assert len(shown) == FIGURES
    assert all(size > 300 and (share < 1.1) == phone for size, share in shown)


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
    assert len(tables) == 1 + 2 + 2 * 5
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
    assert found == [0, FIGURES, True, True]


CANVAS = "document.querySelector('#checkpoint-10 .panel canvas').toDataURL()"
PRESS = """(text => [...document.querySelector("#checkpoint-10 figure").querySelectorAll("button")]
  .find(button => button.textContent === text).click())(%s)"""
HOVER = """(async () => {
  const panel = document.querySelector("#checkpoint-10 .panel"), over = panel.querySelector(".u-over");
  over.scrollIntoView();
  const box = over.getBoundingClientRect();
  const at = {bubbles: true, clientX: box.left + box.width / 2, clientY: box.top + box.height / 2};
  for (const name of ["mouseenter", "mousemove"]) over.dispatchEvent(new MouseEvent(name, at));
  await new Promise(done => setTimeout(done, 100));
  return [...panel.querySelectorAll(".tip:not([hidden]) > div")].map(row => row.textContent);
})()"""


def wait(page):
    """Until the next two frames: figures are drawn anew between them."""
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_a_strategy_is_hidden_in_all_figures_and_shown_again(opened):
    before = opened.evaluate(CANVAS)
    opened.evaluate(PRESS % '"SGD, cosine"')
    wait(opened)
    assert opened.evaluate(CANVAS) != before
    pressed = """[...document.querySelectorAll(".legend button")]
      .filter(button => button.textContent === "SGD, cosine").map(button => button.ariaPressed)"""
    states = opened.evaluate(pressed)
    assert len(states) > 5
    assert set(states) == {"false"}
    assert not any("cosine" in row for row in opened.evaluate(HOVER))
    opened.evaluate(PRESS % '"Show all"')
    opened.evaluate("document.querySelector('#checkpoint-10 .u-over').dispatchEvent(new MouseEvent('mouseleave'))")
    wait(opened)
    assert set(opened.evaluate(pressed)) == {"true"}
    assert opened.evaluate(CANVAS) == before


def test_a_figure_says_the_values_under_the_pointer(opened):
    # halfway, train loss: means of three seeds, with their quartiles
    assert opened.evaluate(HOVER) == [
        "1 seconds of the budget",
        "SGD, constant: 0.92 (0.91 to 0.93)",
        "HF, m = 64: 0.61 (0.605 to 0.615)",
        "SGD, cosine: 0.52 (0.51 to 0.53)",
    ]


def test_figures_are_zoomed_and_read_by_keys_and_buttons(opened):
    before = opened.evaluate(CANVAS)
    opened.evaluate(PRESS % '"Zoom in"')
    wait(opened)
    assert opened.evaluate(CANVAS) != before
    key = """(key => { const panel = document.querySelector("#checkpoint-10 .panel"); panel.focus();
      panel.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true})); })(%s)"""
    opened.evaluate(key % '"0"')
    wait(opened)
    assert opened.evaluate(CANVAS) == before
    opened.evaluate(key % '"ArrowRight"')
    wait(opened)
    spoken = opened.evaluate("document.querySelector('#checkpoint-10 [aria-live]').textContent")
    assert spoken.startswith("0 seconds of the budget: ")
    assert spoken.count("1 (1 to 1)") == 3
    assert opened.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"


def test_numbers_of_a_figure_are_a_table(opened):
    opened.evaluate("document.querySelector('#checkpoint-10 .numbers').open = true")
    wait(opened)
    rows = opened.evaluate(
        """[...document.querySelector("#checkpoint-10 .numbers table").rows]
        .map(row => [...row.cells].map(cell => cell.textContent))"""
    )
    assert len(rows) == 1 + 3 * 3
    assert ["SGD, cosine", "1", "0.52", "0.51 to 0.53", ""] in rows


def test_a_page_is_dark_where_the_system_is_and_the_button_turns_it(page, reported):
    ground = "getComputedStyle(document.body).backgroundColor"
    for scheme, colours in (("dark", ["rgb(21, 23, 27)", "rgb(255, 255, 255)"]), ("light", None)):
        page.media(features=[{"name": "prefers-color-scheme", "value": scheme}])
        page.open(reported / "report.html", 1280)
        found = [page.evaluate(ground)]
        canvas = page.evaluate(CANVAS)
        page.evaluate("document.querySelector('.theme').click()")
        wait(page)
        found.append(page.evaluate(ground))
        assert page.evaluate(CANVAS) != canvas  # the lines' colours are others
        assert found == (colours or ["rgb(255, 255, 255)", "rgb(21, 23, 27)"])
    page.media()


def test_nothing_that_the_page_does_is_against_its_policy(page, reported):
    page.watch()
    page.open(reported / "report.html", 1280)
    page.evaluate(HOVER)
    assert page.evaluate("seen") == []
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title = 1\">')")
    wait(page)
    assert "script-src-attr" in {line.split()[0] for line in page.evaluate("seen")}
    assert page.evaluate("document.title") != "1"


def test_the_page_fetches_nothing(opened):
    assert (
        opened.evaluate("performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length") == 0
    )
