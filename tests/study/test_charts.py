"""What a page carries inside: figures' data against the scores, colours' contrast in both themes, sizes, the policy."""

import base64
import hashlib
import html
import itertools
import json
import math
import re
from dataclasses import dataclass

import matplotlib.figure
import numpy as np
import pytest
from test_style import DEFICIENCIES, lab

from latephase.records import house_style, panels
from latephase.study.page import Look, Mark, chart_of, remember, styles_of
from latephase.study.page.assets import script, style
from latephase.study.page.charts import MOST, thinned
from latephase.study.page.colours import LEAST, PAGES, class_of, contrast, inks, legible
from latephase.study.page.page import named
from latephase.study.page.style import Style
from latephase.study.results.load import load_results
from latephase.study.results.score import score_results

TEXT = 4.5
"""What WCAG 2.2 asks of text (1.4.3, level AA)."""
LOOK = Look("a", "A", Style("#0072B2", "-", "o", True))


@dataclass(frozen=True)
class Named:
    name: str
    is_second_order: bool


def charts(page):
    found = re.findall(r'data-alt="([^"]*)" data-chart="([^"]*)"', page)
    return {html.unescape(alt): json.loads(html.unescape(data)) for alt, data in found}


def chart(page, start):
    (found,) = [data for alt, data in charts(page).items() if alt.startswith(start)]
    return found


def themes():
    """The properties of each theme as the style sheet sets them; what a dark one leaves out is as in the light one."""
    rules = re.findall(r":root(\S*) \{ color-scheme: (\w+);([^}]*)\}", style([]))
    return [(which or "light", dict(re.findall(r"--(\w+): (#\w{6})", body))) for which, _, body in rules]


@pytest.fixture(scope="module")
def page(reported):
    return (reported / "report.html").read_text(encoding="utf-8")


def test_figures_show_the_means_and_quartiles_of_the_runs(page, reported):
    results = load_results(reported)
    data = chart(page, "Losses and test metrics over the budget from epoch 10")
    names = [key["key"] for key in data["keys"]]
    assert [panel["title"] for panel in data["panels"]] == ["Train loss", "Test loss", "Test accuracy"]
    for panel, measure in zip(data["panels"], results.measures, strict=True):
        assert panel["x"]["label"] == "seconds of the budget"
        assert panel["y"].get("percent", False) == measure.is_share
        assert len(panel["marks"]) == 3
        for mark in panel["marks"]:
            runs = results.concluded(10, results.plan.strategy(names[mark["of"]]))
            values = np.array([[row[measure.key] for row in run.evaluations] for run in runs])
            assert mark["x"] == [row["spent"] for row in runs[0].evaluations]
            assert mark["y"] == pytest.approx(values.mean(axis=0), rel=1e-5)  # six digits are kept
            assert mark["low"] == pytest.approx(np.quantile(values, 0.25, axis=0), rel=1e-5)
            assert mark["high"] == pytest.approx(np.quantile(values, 0.75, axis=0), rel=1e-5)


def test_figures_show_the_scores(page, reported):
    scores = score_results(load_results(reported))
    data = chart(page, "Relative best performance of every run")
    loss = data["panels"][0]
    shown = {}
    for mark in loss["marks"]:
        if mark.get("drawn") == "dots":
            name = data["keys"][mark["of"]]["key"]
            for x, y, note in zip(mark["x"], mark["y"], mark["notes"], strict=True):
                shown[name, round(x), note] = y
    places = {10: 0, 20: 1}
    expected = {(s.strategy, places[s.checkpoint_epoch], f"seed {s.seed}"): s.relative_train_loss for s in scores}
    assert shown == pytest.approx(expected, rel=1e-5)
    assert loss["x"]["ticks"] == [[0.0, "10"], [1.0, "20"]]
    bars = chart(page, "Bars of the median time to the target of each strategy from epoch 10")["panels"]
    for panel, column in zip(bars, ("time_to_target_train_loss", "time_to_target_test"), strict=True):
        assert [text for _, text in panel["y"]["ticks"]] == ["SGD, constant", "SGD, cosine", "HF, m = 64"]
        for place, name in enumerate(("constant", "cosine", "hf-64")):
            times = [s.number(column) for s in scores if (s.strategy, s.checkpoint_epoch) == (name, 10)]
            (mark,) = [mark for mark in panel["marks"] if mark["y"] == [place]]
            assert mark["x"] == [pytest.approx(min(float(np.median(times)), 2.0), rel=1e-5)]
            missed = sum(map(math.isinf, times))
            assert mark.get("notes", [""]) == [f"missed by {missed} of 3 runs" if missed else ""]


def test_every_figure_but_paths_has_its_data(page):
    assert page.count("<figure>") == len(charts(page)) == 11


def test_long_lines_are_thinned_and_what_is_not_finite_is_a_gap():
    with house_style():
        figure, (axes,) = panels(1, narrow=False)
        axes.plot([0, 1], [0, 1])
        x = np.arange(10_000.0)
        y = x.copy()
        y[-1] = math.nan
        remember(axes, Mark(LOOK, x.tolist(), y.tolist()))
    shown = chart_of(figure)
    (mark,) = json.loads(shown.data)["panels"][0]["marks"]
    assert len(mark["x"]) == MOST
    assert (mark["x"][0], mark["x"][-1]) == (0, 9999)
    assert mark["y"][:-1] == mark["x"][:-1]
    assert mark["y"][-1] is None
    assert shown.inks == (LOOK.style.inks,)
    assert thinned(MOST) == list(range(MOST))
    assert chart_of(matplotlib.figure.Figure()) is None


def test_text_has_enough_contrast_in_both_themes():
    found = themes()
    assert [which for which, _ in found] == ["light", '[data-theme="dark"]', ':not([data-theme="light"])']
    assert found[1][1] == found[2][1]  # by the button as by the system
    for (which, colours), ground in zip(found[:2], PAGES.values(), strict=True):
        assert colours["page"] == ground
        for back, front in itertools.product(("page", "tint", "note"), ("ink", "soft", "accent")):
            assert contrast(colours[front], colours[back]) >= TEXT, (which, front, back)
        for edge in ("edge", "accent"):
            assert contrast(colours[edge], colours["page"]) >= LEAST, (which, edge)


def test_inks_of_strategies_have_enough_contrast_and_stay_apart():
    # 2.3 is just noticeable side by side; dashes and markers differ as well
    for first, second, least in ((6, 2, 9), (3, 3, 9), (2, 6, 6), (2, 8, 6)):
        looks = styles_of([Named(f"{n}", n >= first) for n in range(first + second)]).values()
        for place, ground in enumerate(PAGES.values()):
            colours = [look.inks[place] for look in looks]
            assert min(contrast(colour, ground) for colour in colours) >= LEAST
            for deficiency in DEFICIENCIES:
                seen = [lab(colour, deficiency) for colour in colours]
                assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > least


def test_contrast_is_that_of_wcag():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # WebAIM's example of what just fails
    assert legible("#777777", "#ffffff", 3) == "#777777"
    assert contrast(legible("#E69F00".lower(), "#ffffff", 3), "#ffffff") >= 3
    assert inks("#000000")[0] == "#000000"


def test_every_ink_of_a_page_has_its_rule(page):
    used = set(re.findall(r'class="swatch (ink-[\w-]+)"', page))
    for data in charts(page).values():
        used |= {key["ink"] for key in data["keys"]}
        assert all(class_of(tuple(key["inks"])) == key["ink"] for key in data["keys"])
    assert used
    for name in used:
        assert page.count(f".{name}{{--own:") == 3


def test_a_page_is_small_and_names_no_address(page):
    assert len(page.encode()) < 1_000_000
    assert len((script() + style([])).encode()) < 100_000
    assert not re.search(r"https?:|[\"'(]//|@import|url\(", page)
    assert "Copyright (c) 2022 Leon Sorokin" in page
    assert "</script" not in script()
    assert "innerHTML = `" not in script()


def test_the_policy_names_the_style_sheet_and_the_script_of_the_page_and_nothing_else(page):
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    for directive, tag in (("style-src", "style"), ("script-src", "script")):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
        sum_ = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive} 'sha256-{sum_}';" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    assert not re.search(r'<[^>]*\s(style|on\w+)="', re.sub(r"<script>.*</script>", "", page, flags=re.DOTALL))


def test_names_are_set_off_by_type_and_stay_letters():
    assert named("“A & <b>” leads “B”.") == ('<b class="name">A &amp; &lt;b&gt;</b> leads <b class="name">B</b>.')
    assert named("“a“b”") == '“a<b class="name">b</b>'
