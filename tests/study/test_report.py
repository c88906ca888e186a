import base64
from html.parser import HTMLParser

import pytest

from latephase.study.reading import METRICS, Reading, constant_strategy, duration_text, loss_text, summarize_steps
from latephase.study.report import Picture, render_page
from latephase.study.results import load_results, run_id
from latephase.study.score import score, score_results, write_scores

LOSS, TEST_LOSS, ACCURACY = METRICS


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
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def read(root):
    results = load_results(root)
    return Reading(results, score_results(results))


def texts(findings):
    return {finding.title: finding.text for finding in findings}


@pytest.fixture
def html(reported):
    return (reported / "report.html").read_text(encoding="utf-8")


def render(root):
    """The page with figures of one byte each, as drawing takes seconds."""
    results = load_results(root)
    names = ["training", "relative", "learning_rates", *(f"budget-{epoch:04d}" for epoch in results.plan.checkpoints)]
    return render_page(results, score_results(results), {name: Picture("data:,", "data:,", 1, 1) for name in names})


def test_report_writes_scores_and_figures_beside_the_page(reported):
    write_scores(score(reported), reported / "again.csv")
    assert (reported / "scores.csv").read_bytes() == (reported / "again.csv").read_bytes()
    assert len(list((reported / "figures").glob("*.pdf"))) == 5


def test_page_is_self_contained(html):
    page = Page(html)
    assert not {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object"}
    images = [a for tag, a in page.elements if tag == "img"]
    sources = [a["srcset"] for tag, a in page.elements if tag == "source"]
    assert len(images) == len(sources) == 5
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
        assert part.rstrip().rpartition("<div")[2].startswith(' class="scroll"')


def test_the_same_results_give_the_same_page(write_study):
    root = write_study()
    assert render(root) == render(root)


def test_text_of_the_study_is_escaped(write_study, break_run):
    root = write_study()
    break_run(root)
    text = render(root)
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "known answers &amp; &lt;angles&gt;" in text


def test_page_says_what_was_run(html):
    text = Page(html).text
    assert "learning rate 0.1, batch size 32, for 20 epochs (80 steps). That took 20.0 s" in text
    assert "10% of the time that the training took" in text
    assert "That is 18 runs." in text
    assert "“SGD, constant” keeps the learning rate of the training" in text
    assert "None: all 18 runs finished" in text
    assert 'description = "A study with known answers & <angles>."' in text
    assert "A processor" in text


def test_page_reports_failed_diverged_and_missing_runs(write_study, break_run):
    root = write_study(skip=((20, "constant", 1),))
    break_run(root)
    text = Page(render(root)).text
    assert "Not complete. Of 18 planned runs, 16 finished, 1 failed, 1 had not started." in text
    assert "checkpoint-0010_cosine_seed-2 failed ValueError: <script>alert(1)</script>" in text
    assert "checkpoint-0010_hf-64_seed-1 diverged The train loss is not finite from second 2 of the budget on." in text
    assert "checkpoint-0020_constant_seed-1 : not started" in text


def test_page_of_a_study_without_any_run(write_study):
    every = tuple((e, s, seed) for e in (10, 20) for s in ("constant", "cosine", "hf-64") for seed in range(3))
    text = Page(render(write_study(skip=every))).text
    assert "No run has come to its end yet." in text
    assert "Of 18 planned runs, none finished, 18 had not started." in text


def test_headlines_name_the_leaders(write_study):
    found = texts(read(write_study()).headlines())
    assert found["Lowest mean train loss"] == "“SGD, cosine” (epoch 10); “HF, m = 64” (epoch 20)."
    assert found["Highest mean test accuracy"] == "“SGD, cosine” (epoch 10); “HF, m = 64” (epoch 20)."
    # epoch 20: train loss 0.41 against 0.42 within the spread of 0.04, test loss 0.51 against 0.63 beyond it
    assert found["Hessian-free against the best first-order strategy"] == (
        "the best Hessian-free strategy is ahead in train loss at 1 of 2 checkpoints (clearly at none), in test loss "
        "at 1 of 2 checkpoints (clearly at 1) and in test accuracy at 1 of 2 checkpoints (clearly at 1)."
    )
    against_constant = found["Hessian-free against the unchanged learning rate (“SGD, constant”)"]
    assert "ahead in train loss at 2 of 2" in against_constant


def test_comparison_says_how_far_ahead_and_whether_it_is_settled(write_study):
    reading = read(write_study())
    early, late = texts(reading.compare(10)), texts(reading.compare(20))
    assert early["Lowest mean train loss"] == (
        "“SGD, cosine”, 0.5200 (the checkpoint itself: 1.000). Next: “HF, m = 64”, clearly behind, by 0.090 "
        "(spread 0.040). The unchanged learning rate (“SGD, constant”) is clearly behind, by 0.40 (spread 0.040)."
    )
    assert late["Lowest mean train loss"] == (
        "“HF, m = 64”, 0.4100 (the checkpoint itself: 0.8000). Next: “SGD, cosine”, behind by 0.010, within the spread "
        "(0.040). The unchanged learning rate (“SGD, constant”) is clearly behind, by 0.39 (spread 0.040)."
    )
    assert (
        "“SGD, cosine”, clearly behind, by 6.00 percentage points (spread 2.00)" in late["Highest mean test accuracy"]
    )


def test_comparison_names_the_best_hessian_free_where_it_is_neither_first_nor_second(write_study):
    root = write_study()
    text = (root / "study.toml").read_text().replace('"hf-64"\nkind = "hessian_free"', '"hf-64"\nkind = "other"')
    text = text.replace('"constant"\nkind = "sgd"', '"constant"\nkind = "hessian_free"')
    (root / "study.toml").write_text(text)
    found = texts(read(root).compare(10))["Lowest mean train loss"]
    assert found.endswith("The best Hessian-free strategy, “SGD, constant”, is clearly behind, by 0.40 (spread 0.040).")


def test_one_seed_gives_no_spread(write_study):
    root = write_study()
    (root / "study.toml").write_text((root / "study.toml").read_text().replace("[0, 1, 2]", "[0]"))
    reading = read(root)
    assert "behind by 0.10 (one seed, so no spread is known)" in texts(reading.compare(10))["Lowest mean train loss"]
    assert "clearly at none" in texts(reading.headlines())["Hessian-free against the best first-order strategy"]


def test_no_improvement_is_said(write_study):
    root = write_study()
    text = (root / "study.toml").read_text()
    (root / "study.toml").write_text(text[: text.index('\n[[strategies]]\nname = "cosine"')])
    assert texts(read(root).compare(20))["Lowest mean train loss"].endswith("No strategy improved on the checkpoint.")


def test_constant_strategy_is_found_by_its_learning_rates(write_study):
    root = write_study()
    results = load_results(root)
    found = constant_strategy(results)
    assert found is not None
    assert found.name == "constant"
    path = root / "runs" / run_id(10, "constant", 0) / "rows.jsonl"
    path.write_text(path.read_text().replace('"lr": 0.1', '"lr": 0.09'))
    assert constant_strategy(load_results(root)) is None


def test_step_summary_has_known_numbers(write_study):
    results = load_results(write_study())
    strategy = results.plan.strategies[2]
    found = summarize_steps(strategy, results.concluded(10, strategy))
    assert (found.steps, found.accepted, found.damping) == (2.0, 0.5, (1.0, 1.5))
    assert found.cg_iterations == 14.5  # the longest block of each step: 9 and 20
    assert found.stopped_by == "progress 75%, max iterations 25%"


def test_table_marks_the_best_of_each_column(html):
    section = html[html.index('id="checkpoint-10"') : html.index('id="checkpoint-20"')]
    best, end = section.split("At the end of the budget")
    assert [row.count('class="num best"') for row in end.split("<tr>") if "SGD, cosine</th>" in row] == [4]
    rows = best.split("<tr>")
    (cosine,) = [row for row in rows if "SGD, cosine</th>" in row]
    (constant,) = [row for row in rows if "SGD, constant</th>" in row]
    assert cosine.count('class="num best"') == 3
    assert 'class="num best"' not in constant
    assert "0.5200" in cosine
    assert "0.5000 to 0.5400" in cosine
    assert "0.50\u00a0s" in cosine
    assert "0.25\u00a0s" in cosine


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.5, "0.50 s"), (15.32, "15.3 s"), (153.2, "2 min 33 s"), (7260.0, "2 h 1 min")]
)
def test_durations_read_well(seconds, text):
    assert duration_text(seconds).replace("\u00a0", " ") == text


@pytest.mark.parametrize(
    ("loss", "text"), [(0.5, "0.5000"), (12.0, "12.00"), (1234.4, "1234"), (0.00123456, "0.001235")]
)
def test_losses_have_four_significant_digits(loss, text):
    assert loss_text(loss) == text


@pytest.mark.parametrize(
    ("metric", "difference", "text"),
    [(LOSS, -0.03, "0.030"), (TEST_LOSS, 0.0, "0"), (LOSS, 250.4, "250"), (ACCURACY, 0.01, "1.00")],
)
def test_differences_have_two_significant_digits(metric, difference, text):
    assert metric.difference(difference) == text


def test_the_end_of_the_budget_is_told_beside_the_best_moment(reported):
    page = Page((reported / "report.html").read_text(encoding="utf-8"))
    assert "Train loss without the L2 term" in page.text
    # At epoch 20 "HF, m = 64" ends lowest: the means of the finals, a quarter of each being the L2 term.
    assert loss_text(0.75 * (0.41 + 0.01)) in page.text
    leaders = "Lowest mean train loss without the L2 term: “SGD, cosine” (epoch 10); “HF, m = 64” (epoch 20)"
    assert leaders in page.text
