import base64
import re
import shutil
from html.parser import HTMLParser

import pytest

from latephase.study.page.page import Picture, render_page, write_report
from latephase.study.results.ending import ending_headline
from latephase.study.results.findings import Reading
from latephase.study.results.load import load_results, run_id
from latephase.study.results.measures import number_text
from latephase.study.results.score import score, score_results, write_scores
from latephase.study.results.steps import summarize_steps

EVERY = tuple((e, s, seed) for e in (10, 20) for s in ("constant", "cosine", "hf-64") for seed in range(3))
NAMES = ["training", "relative", "relative-second-order", "learning-rates", "profile", "overfitting"]
NAMES += [f"{name}-{epoch}" for epoch in ("0010", "0020") for name in ("budget", "time-to-target", "steps")]


class Page(HTMLParser):
    """Elements, attributes and text of a page; fails on an element that is closed out of order."""

    VOID = ("meta", "img", "source", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.elements, self.words, self.open = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def read(root):
    results = load_results(root)
    return Reading(results, score_results(results))


def texts(findings):
    return {finding.title: finding.text.replace("\u00a0", " ") for finding in findings}


@pytest.fixture
def html(reported):
    return (reported / "report.html").read_text(encoding="utf-8")


def render(root):
    """The page with figures of one byte each, as drawing takes seconds."""
    results = load_results(root)
    return render_page(results, score_results(results), {name: Picture("data:,", "data:,", 1, 1) for name in NAMES})


def edit(root, *pairs):
    text = (root / "study.toml").read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    (root / "study.toml").write_text(text)
    return root


def test_report_writes_tables_and_figures_beside_the_page(reported):
    write_scores(score(reported), reported / "again.csv")
    assert (reported / "scores.csv").read_bytes() == (reported / "again.csv").read_bytes()
    assert (reported / "scores.parquet").is_file()
    assert (reported / "rows.parquet").is_file()
    assert len(list((reported / "figures").glob("*.pdf"))) == 11


def test_page_is_self_contained(html):
    page = Page(html)
    assert not {tag for tag, _ in page.elements} & {"link", "iframe", "object"}
    assert [attrs for tag, attrs in page.elements if tag == "script"] == [{}]
    assert not re.search(r"https?:|[\"'(]//", html)
    images = [a for tag, a in page.elements if tag == "img"]
    sources = [a["srcset"] for tag, a in page.elements if tag == "source"]
    assert len(images) == len(sources) == 11
    for address in [image["src"] for image in images] + sources:
        head, data = address.split(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(data).startswith(b"\x89PNG")
    assert all(len(image["alt"]) > 20 and int(image["width"]) > 0 for image in images)


def test_links_within_the_page_lead_somewhere(html):
    page = Page(html)
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    links = [a["href"] for tag, a in page.elements if tag == "a"]
    assert len(links) >= 8
    assert {link.removeprefix("#") for link in links} <= set(ids)


def test_page_fits_a_phone(html):
    page = Page(html)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.elements
    for part in html.split("<table>")[:-1]:
        assert part.rstrip().rpartition("<div")[2].startswith(' class="scroll" tabindex="0" role="region" aria-label=')


def test_the_same_results_give_the_same_page(write_study):
    root = write_study()
    assert render(root) == render(root)


def test_text_of_the_study_is_escaped(write_study, break_run):
    root = write_study()
    break_run(root)
    text = render(root)
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "known answers &amp; &lt;angles&gt;" in text


def test_page_says_what_was_run(html):
    text = Page(html).text
    assert "The problem toy (version 3: A toy, 1,234 parameters, 640 training rows) was trained with SGD" in text
    assert "learning rate 0.1, batch size 32, for 20 epochs (20 steps). That took 20.0 s" in text
    assert "At its end: train loss 0.8000, test loss 1.000, test accuracy 60.00%." in text
    assert "2.00 s: 10% of what the training took" in text
    assert "That is 18 runs. The baseline of the tests is SGD, constant ." in text
    assert "None: all 18 runs finished" in text
    assert 'description = "A study with known answers & <angles>."' in text
    assert "A processor" in text
    assert "Scaled down" not in text


def test_a_study_of_a_smaller_scale_says_so_before_all_else(write_study):
    text = Page(render(write_study(scale=0.25))).text
    said = text.index("Scaled down. This study was shrunk to 25% of its full size ( --scale 0.25 )")
    assert said < text.index("Verdict From epoch 20")


@pytest.mark.parametrize(
    ("unit", "budget"),
    [("steps", "the same budget of 2 steps"), ("gradients", "the same budget of 2 gradient-equivalents")],
)
def test_other_budgets_are_in_their_own_unit(write_study, unit, budget):
    text = Page(render(write_study(unit=unit))).text
    assert budget in text
    assert "does not depend on the machine" in text


def test_page_tells_of_both_clocks(html):
    text = Page(html).text
    assert "The cold clock adds the warm-up" in text
    section = html[html.index("What it took") : html.index("What the second-order steps did")]
    (cosine,) = [row for row in section.split("<tr>") if "SGD, cosine</th>" in row]
    cells = [part.partition("<")[0].replace("\u00a0", " ") for part in cosine.split(">")]
    assert [c for c in cells if c.strip()] == [
        *("SGD, cosine", "11", "352", "11", "7", "2.25 s", "3.25 s", "0.50 s", "0.30 s", "0.25 s")
    ]


def test_page_reports_failed_diverged_missing_and_damaged_runs(write_study, break_run):
    root = write_study(skip=((20, "constant", 1),))
    break_run(root)
    (root / "runs" / run_id(20, "cosine", 0) / "rows.jsonl").write_text("{\n{}\n")
    text = Page(render(root)).text
    assert "Of 18 planned runs, 15 finished, 1 failed, 1 had not started, 1 has a damaged file." in text
    assert "checkpoint-0010_cosine_seed-2 failed ValueError: <script>alert(1)</script>" in text
    assert "checkpoint-0010_hf-64_seed-1 diverged The train loss is not finite from 2.00 s of the budget on." in text
    assert "runs/checkpoint-0020_cosine_seed-0/rows.jsonl cannot be read: line 1: not JSON" in text
    assert "run the same study command again, and it is set aside and run anew" in text
    assert "checkpoint-0020_constant_seed-1 : not started" in text
    assert str(root) not in text


def test_page_of_a_study_without_any_run(write_study):
    text = Page(render(write_study(skip=EVERY))).text
    assert "No run has come to its end yet." in text
    assert "Of 18 planned runs, none finished, 18 had not started." in text


def test_page_of_one_seed_tells_no_interval(write_study):
    html = render(edit(write_study(), ("[0, 1, 2]", "[0]")))
    section = html[html.index("<h3>Against the baseline") : html.index("At the end of the budget</h3>")]
    assert '<td class="num" data-value="">–</td>' in section
    assert "at a single checkpoint nothing can be decided" in " ".join(section.split())


def test_report_of_a_study_without_any_run_is_written(write_study):
    page = write_report(write_study(skip=EVERY))
    assert len([1 for tag, _ in Page(page.read_text()).elements if tag == "img"]) == 3


def test_a_problem_without_accuracy_is_read_by_its_loss_and_metric(write_study):
    root = write_study(metric="rmse")
    assert list(texts(read(root).headlines()))[:3] == [
        *("Lowest mean train loss", "Lowest mean test loss", "Lowest mean test RMSE")
    ]
    text = Page(render(root)).text
    assert "Test RMSE" in text
    assert "accuracy" not in text


def test_steps_that_report_little_are_summarised_as_far_as_they_do(write_study):
    root = write_study()
    path = root / "runs" / run_id(10, "cosine", 0) / "rows.jsonl"
    path.write_text(path.read_text() + '{"event": "step", "spent": 0.5, "step": 1, "loss": 0.4}\n')
    results = load_results(root)
    found = summarize_steps(results.plan.strategies[1], results.concluded(10, results.plan.strategies[1]))
    assert (found.accepted, found.cg_iterations, found.damping, found.stopped_by) == (None, None, None, "")
    render(root)


def test_table_marks_the_best_of_each_column(html):
    section = html[html.index('id="checkpoint-10"') : html.index('id="checkpoint-20"')]
    best, end = section.split("At the end of the budget")
    assert next(row.count('class="num best"') for row in end.split("<tr>") if "SGD, cosine</th>" in row) == 4
    rows = best[: best.index("<h3>Against the baseline")].split("<tr>")
    (cosine,) = [row for row in rows if "SGD, cosine</th>" in row]
    (constant,) = [row for row in rows if "SGD, constant</th>" in row]
    assert cosine.count('class="num best"') == 3
    assert 'class="num best"' not in constant
    assert "0.5200" in cosine
    assert "0.5000 to 0.5400" in cosine


def test_the_end_of_the_budget_is_told_beside_the_best_moment(html, write_study):
    text = Page(html).text
    assert "Train loss without the L2 term" in text
    # At epoch 20 "HF, m = 64" ends lowest: the means of the finals, a quarter of each being the L2 term.
    assert number_text(0.75 * (0.41 + 0.01)) in text
    results = load_results(write_study())
    (found,) = ending_headline(results, score_results(results))
    assert found.text == (
        "Best mean train loss, train loss without the L2 term, test loss and test accuracy: “SGD, cosine” (epoch 10); "
        "“HF, m = 64” (epoch 20)."
    )


def test_parts_of_a_chain_are_written_in_words(write_study):
    chain = 'name = "cosine"\nparts = [{ until = 0.5, strategy = { kind = "first_order", lr = 0.1 } }, '
    chain += '{ until = 1.0, strategy = { kind = "lbfgs", options = { history_size = 5 } } }]\n'
    root = edit(write_study(), ('name = "cosine"\n', chain))
    text = Page(render(root)).text
    assert "until 50% of the budget: kind = first_order, lr = 0.1; until 100% of the budget: kind = lbfgs" in text


def test_the_report_does_not_depend_on_earlier_output(write_study, reported):
    root = write_study()
    shutil.copytree(reported / "figures", root / "figures")
    (root / "scores.csv").write_text("old")
    results = load_results(root)
    assert [run.status for run in results.runs] == ["finished"] * 18
