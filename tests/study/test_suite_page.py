"""The verdict, the tables and the page of a suite, from scores written by hand with known answers."""

import math
import re
from statistics import median

import numpy as np
import pytest
from headless_browser import NAMES, browse, find_browser
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from small_suites import case, scores_with

from latephase.records import DamagedFile, ResultsError
from latephase.study.results import Measure
from latephase.study.suite import draw_suite, read_scores
from latephase.study.suite.guide import LOST, alike_of, choices_of, sentence_of
from latephase.study.suite.page import cell_of, context_of, multiple_text, number_text
from latephase.study.suite.scores import write_scores
from latephase.study.suite.verdicts import best_of, groups, ratios, ratios_of, standings, verdict, within_spread

THREE = {
    "wave": {"sgd": [4.0, 5.0, 6.0], "newton": [0.1, 0.2, 0.3], "lbfgs": [0.25, 0.5, 9.0]},
    "heat": {"sgd": [1.0, 1.0, 1.0], "newton": [0.5, 0.5, 0.5], "lbfgs": [0.4, 0.4, "failed"]},
    "burgers": {"sgd": [3.0, "diverged", "failed"], "newton": [0.01, 0.01, "diverged"], "lbfgs": [1.0, 2.0, 3.0]},
}


def known(**changes):
    kinds = {"wave": "hyperbolic", "heat": "parabolic", "burgers": "parabolic"}
    return scores_with(*(case(name, rows, kind=kinds[name]) for name, rows in THREE.items()), **changes)


def test_the_best_is_by_the_median_and_a_failed_run_is_infinitely_bad():
    wave, heat, burgers = known().cases
    assert [best_of(each) for each in (wave, heat, burgers)] == [["newton"], ["lbfgs"], ["newton"]]
    assert (heat.median("lbfgs"), burgers.median("sgd")) == (0.4, math.inf)
    assert within_spread(case("w", {"a": [1.0, 2.0, 5.0], "b": [3.0, 3.0, 3.0], "c": [6.0] * 3})) == ["b"]
    assert within_spread(wave) == []


def test_distances_are_medians_in_multiples_of_the_best():
    found = ratios(known())
    assert found["newton"] == pytest.approx([1, 1.25, 1])
    assert found["sgd"] == pytest.approx([25, 2.5, math.inf])
    share = case("share", {"a": [0.99], "b": [0.9]}, measure="test_accuracy", higher_is_better=True)
    assert ratios_of(share) == pytest.approx({"a": 1, "b": 10})
    assert ratios_of(case("zero", {"a": [0.0], "b": [0.9]})) == {"a": 1.0, "b": math.inf}
    assert ratios_of(case("negative", {"a": [-1.0], "b": [0.9]})) == {}
    score = case("score", {"a": [2.0], "b": [0.9]}, measure="test_r2", higher_is_better=True)
    assert (best_of(score), ratios_of(score)) == (["a"], {})


def test_the_verdict_says_who_wins_where_and_how_far_ahead():
    assert verdict(known()) == [
        "On 2 of 3 problems “NEWTON” has the lowest median test loss; on 2 it is at least ten times below “SGD”.",
        "It is furthest behind on heat: 1.25 times the best.",
        "Best elsewhere: “LBFGS” on 1.",
    ]
    assert "; on 1 it is at least ten times below “LBFGS”." in verdict(known(baseline="newton"))[0]


def test_the_guide_has_a_first_choice_for_all_for_each_kind_and_for_each_size():
    choices = choices_of(known())
    assert [(c.about, c.group, c.cases, c.first, c.best_on) for c in choices] == [
        ("all", "all problems", 3, "newton", 2),
        ("kind", "hyperbolic", 1, "newton", 1),
        ("kind", "parabolic", 2, "newton", 1),
    ]  # fmt: skip
    whole = choices[0]
    assert whole.behind == pytest.approx(1.25 ** (1 / 3))  # medians in multiples of the best: 1, 1.25, 1
    # of SGD 25, 2.5, and lost; of L-BFGS 2.5, 1, 200; a pair for each problem
    logs = np.log([25 / 1, 2.5 / 1.25, LOST / 1])
    assert whole.table.place("sgd").behind == pytest.approx(np.exp(logs.mean()))
    expected = stats.ttest_1samp(logs, 0).confidence_interval(1 - 0.05 / 2)
    assert whole.table.place("sgd").interval == pytest.approx(tuple(np.exp(expected)))
    assert sentence_of(choices, known()) == (
        "“NEWTON” is the first choice for the three problems together: in the geometric mean 1.077 times the best of "
        "each, and best on 2, but cannot be told apart from “LBFGS” and “SGD”."
    )
    labels = {name: name.upper() for name in ("sgd", "newton", "lbfgs")}
    assert alike_of(choices[1].table, labels) == ["LBFGS"]  # of one problem: a pair for each seed
    assert alike_of(choices[2].table, labels) == ["not known"]  # two problems


def test_the_guide_tells_sizes_apart_where_there_are_several_and_whoever_cannot_be_told_apart():
    rows = {"x": [1.0, 1.1, 0.9], "y": [5.0, 5.2, 4.9]}
    turned = {"x": rows["y"], "y": rows["x"]}
    small = [case(f"a{n}", rows, parameters=500, kind="easy") for n in range(3)]
    large = [case(f"b{n}", turned, parameters=20_000, kind="hard") for n in range(3)]
    choices = choices_of(scores_with(*small, *large))
    assert [(c.group, c.first) for c in choices[1:]] == [
        ("easy", "x"), ("hard", "y"), ("fewer than 1,000 parameters", "x"), ("10,000 to 99,999 parameters", "y")
    ]  # fmt: skip
    said = sentence_of(choices, scores_with(*small, *large))
    assert said.endswith("but cannot be told apart from “Y”; by kind: easy “X”, hard “Y”.")
    alone = scores_with(small[0])
    assert sentence_of(choices_of(alone), alone) == (
        "“X” is the first choice for the one problem, and is told apart from the other."
    )
    unknown = scores_with(case("negative", {"x": [-1.0], "y": [0.9]}))
    assert (choices_of(unknown), sentence_of([], unknown)) == ([], "")


@pytest.mark.parametrize(("cases", "text"), [
    ([case("a", {"x": [1.0], "y": [2.0]}), case("b", {"x": [2.0], "y": [1.0]})],
     "On 1 of 2 problems each, “X” and “Y” have the lowest median test loss."),
    ([case("a", {"x": [1.0], "y": [0.9]}), case("b", {"x": [2.0], "y": [1.8]})],
     "On 2 of 2 problems “Y” has the lowest median test loss; on 2 it is ahead of “X”, nowhere twice."),
    ([case("a", {"x": [0.5, 0.5], "y": [0.9, 0.96]}, measure="test_accuracy", higher_is_better=True)],
     "On 1 of 1 problem “Y” has the highest median test accuracy; on 1 its share of errors is at least two times below "
     "“X”."),
    ([case("a", {"x": ["failed"], "y": ["missing"]})], "No run has come to a finite end yet."),
    ([case("a", {"x": [1.0], "y": [9.0]}), case("b", {"x": [1.0], "y": [9.0]}, measure="test_rmse")],
     "On 2 of 2 problems “X” has the best median score; on 2 it is at least two times below “Y”."),
    ([case("a", {"x": [1.0], "y": [9.0]}, epoch=1), case("a", {"x": [1.0], "y": [9.0]}, epoch=5)],
     "On 2 of 2 checkpoints “X” has the lowest median test loss; on 2 it is at least two times below “Y”."),
])  # fmt: skip
def test_other_outcomes_have_words_of_their_own(cases, text):
    assert verdict(scores_with(*cases))[0] == text


def test_wins_are_counted_by_kind_as_well():
    found = [(group.kind, group.cases, group.wins) for group in groups(known())]
    assert found == [("hyperbolic", 1, [("NEWTON", 1)]), ("parabolic", 2, [("NEWTON", 1), ("LBFGS", 1)])]
    assert groups(scores_with(case("a", {"x": [1.0]}))) == []
    rows = {row.name: (row.wins, row.failed, row.diverged, row.ended) for row in standings(known())}
    assert rows == {"newton": (2, 0, 1, 9), "lbfgs": (1, 1, 0, 9), "sgd": (0, 1, 1, 9)}


def test_a_cell_says_median_spread_and_what_went_wrong():
    wave, _, burgers = known().cases
    cell = cell_of(wave, "newton", "best")
    assert (cell.text, cell.spread, cell.note, cell.mark) == ("0.200", "0.10 to 0.30", "", "best")
    cell = cell_of(burgers, "sgd")
    assert (cell.text, cell.number, cell.note) == ("diverged", math.inf, "1 of 3 diverged, 1 of 3 failed")
    cell = cell_of(case("half", {"x": [1.0, "missing", "running"]}), "x")
    assert (cell.text, cell.spread, cell.note) == ("1.00", "", "1 of 3 runs")
    assert cell_of(case("none", {"x": ["missing"]}), "x").text == "–"


@pytest.mark.parametrize(("number", "text"), [
    (0.0, "0.000"), (0.12345, "0.123"), (0.001, "0.00100"), (0.00099, "9.90e−4"), (-2.0, "-2.00"), (123.4, "123"),
    (1234.5, "1,234"), (12345.0, "1.23e4"), (2.5e-17, "2.50e−17"),
])  # fmt: skip
def test_numbers_have_few_digits(number, text):
    assert number_text(Measure("test_loss", False), number) == text


def test_multiples_of_the_best_are_plain_numbers():
    assert [multiple_text(ratio) for ratio in (1.0, 1.234, 999.0, 12345.6, 2.5e9, math.inf)] == [
        "1", "1.23", "999", "12,346", "2.5e+09", "failed"
    ]  # fmt: skip


def test_the_page_is_drawn_from_the_kept_scores_alone(tmp_path):
    scores = known(troubles={"heat-2": "not begun <yet>"})
    write_scores(scores, tmp_path / "scores.json")
    assert read_scores(tmp_path / "scores.json") == scores
    assert (tmp_path / "scores.json").stat().st_size < 20_000
    page = draw_suite(read_scores(tmp_path / "scores.json"), tmp_path / "page")
    again = draw_suite(scores, tmp_path / "again").read_text(encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    assert text == again
    for part in ("Known &amp; &lt;answers&gt;.", "not begun &lt;yet&gt;", "0.10 to 0.30", "hyperbolic",
                 "60.0\u00a0s", "within 10 times", "3 of 3", "data:image/png", "(seed 1)", "float64"):  # fmt: skip
        assert part in text, part
    assert 'href="../' not in text
    assert {path.name for path in (tmp_path / "page").iterdir()} == {
        "index.html", "profile.png", "profile.pdf", "distance.png", "distance.pdf"
    }  # fmt: skip
    cells = re.findall(r'<td class="num best"[^>]*>([^<\s]+)', text)
    assert cells == ["0.200", "0.400", "0.0100"]


def test_scores_that_were_changed_are_refused(tmp_path):
    path = tmp_path / "scores.json"
    with pytest.raises(ResultsError, match="is missing; latephase report DIR writes it"):
        read_scores(path)
    write_scores(known(), path)
    path.write_text(path.read_text(encoding="utf-8").replace("0.25", "0.05"), encoding="utf-8")
    with pytest.raises(DamagedFile, match="its checksum is another"):
        read_scores(path)
    path.write_text('{"name": "known"}', encoding="utf-8")
    with pytest.raises(DamagedFile, match="not what a suite writes"):
        read_scores(path)


ENDS = st.one_of(st.floats(0, 1e6), st.sampled_from(["failed", "diverged", "missing", "running", "damaged"]))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.lists(ENDS, min_size=1, max_size=3), min_size=3, max_size=3), min_size=1, max_size=4))
def test_whatever_runs_come_to_the_page_has_words_and_wins_are_those_of_a_plain_count(rows):
    cases = [case(f"p{n}", dict(zip("xyz", row, strict=True))) for n, row in enumerate(rows)]
    scores = scores_with(*cases)
    context = context_of(scores, {})
    assert context["verdict"][0]
    wins = dict.fromkeys("xyz", 0)
    for row in rows:
        middles = {}
        for name, ends in zip("xyz", row, strict=True):
            numbers = [math.inf if end in ("failed", "diverged") else end for end in ends
                       if end not in ("missing", "running", "damaged")]  # fmt: skip
            middles[name] = median(numbers) if numbers else math.inf
        least = min(middles.values())
        for name in "xyz":
            wins[name] += math.isfinite(least) and middles[name] == least
    assert {row.name: row.wins for row in context["standings"]} == wins


@pytest.mark.slow
@pytest.mark.skipif(find_browser() is None, reason=f"no browser: none of {', '.join(NAMES)} is installed")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_large_suite_fits_a_desktop_and_a_phone_and_sorts(width, tmp_path):
    strategies = [f"a strategy with a long name, number {n}" for n in range(10)]
    values = [{name: [10.0 ** (m - n), "failed", "failed"][: 1 + n % 3] for n, name in enumerate(strategies)}
              for m in range(13)]  # fmt: skip
    scores = scores_with(*(case(f"a_differential_equation_{m}", row) for m, row in enumerate(values)))
    file = draw_suite(scores, tmp_path)
    with browse(find_browser(), tmp_path / "profile") as page:
        page.open(file, width)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        shown = page.evaluate("[...document.querySelectorAll('.panel canvas')].map(canvas => canvas.clientWidth)")
        assert len(shown) == 2
        assert all(300 < size <= width for size in shown)
        order = page.evaluate("""(() => {
          const table = document.querySelector("#medians table");
          table.tHead.rows[0].cells[1].querySelector("button").click();
          table.tHead.rows[0].cells[1].querySelector("button").click();
          return [...table.tBodies[0].rows].map(row => Number(row.cells[1].dataset.value));
        })()""")
        assert order == sorted(order, reverse=True)
        assert len(set(order)) == 13
