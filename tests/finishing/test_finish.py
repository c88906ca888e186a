"""`latephase.finish`: what it may be given, what it refuses in words, and what it leaves."""

import copy
import warnings

import pytest
import torch
from small_tasks import blobs, classifier, descent, held_out_loss, loader, noisy, plain, quick, tensors_of
from torch import nn

import latephase
from latephase import Contestant, Halving, Objective, Wants


def test_rows_in_memory_are_finished_and_the_loss_is_what_is_said():
    given = quick()
    before = held_out_loss(given)
    report = latephase.finish(**given)
    assert report.start == pytest.approx(before, rel=1e-6)  # of ten parts in float32
    assert report.loss == pytest.approx(held_out_loss(given), rel=1e-6)
    assert report.holder == report.winner == "fast"
    assert report.loss < before
    assert report.spent == 12
    assert [row.name for row in report.standings()] == ["fast", "slow"]
    assert "fast took the held-out loss" in str(report)
    assert report.given["Training rows"] == "200"
    assert report.given["Held-out rows"] == "100"


def test_a_loader_gives_what_the_rows_give():
    inputs, targets = blobs()
    given = quick(data=loader((inputs[:200], targets[:200])), held_out=loader((inputs[200:], targets[200:]), 40))
    report = latephase.finish(**given)
    whole = (inputs[200:], targets[200:])
    assert report.loss == pytest.approx(held_out_loss(given | {"held_out": whole}), rel=1e-6)
    assert report.holder == "fast"
    assert report.given["Training rows"] == "200"
    assert report.given["Rows of the base's steps"] == "50"


class Answer:
    """What models of a well-known library return: an object whose outputs are an attribute."""

    def __init__(self, logits):
        self.logits = logits


class Speaking(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, input_ids, attention_mask, labels=None):
        weights = attention_mask.float()[..., None]
        return Answer(self.head((self.table(input_ids) * weights).sum(1) / weights.sum(1)))


def words(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(7, (rows, 9), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones(rows, 9), "labels": ids[:, 0] % 3}


@pytest.mark.parametrize("form", ["rows", "batches"])
def test_dicts_with_labels_are_given_to_the_model_by_name(form):
    data, held_out = words(120, 1), words(60, 2)
    if form == "batches":
        data, held_out = (
            [{k: v[i : i + 30] for k, v in d.items()} for i in range(0, 60, 30)] for d in (data, held_out)
        )
    report = latephase.finish(
        Speaking(), nn.CrossEntropyLoss(), data, held_out=held_out, forward=lambda model, batch: model(**batch).logits,
        contestants=[descent("fast", 1.0, wants=Wants(30)), latephase_kind()], steps=16,
    )  # fmt: skip
    assert report.loss < report.start
    assert not [event for event in report.events if "Error" in str(event.get("reason"))]


def latephase_kind():
    return Contestant("hessian_free", latephase.HessianFree.late_phase, Wants(30, 15, 8))


def test_several_inputs_are_no_batches():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = plain()

        def forward(self, one, two):
            return self.head(one + two)

    inputs, targets = blobs()
    halves = (inputs / 2, inputs / 2)
    part = lambda rows: (tuple(each[rows] for each in halves), targets[rows])  # noqa: E731
    report = latephase.finish(**quick(model=Two(), data=part(slice(200)), held_out=part(slice(200, None))))
    assert report.given["Training rows"] == "200"
    assert report.loss == pytest.approx(latephase.finish(**quick()).loss, rel=1e-4)  # halves do not add up to the bit


def test_data_that_runs_dry_ends_it_with_the_best_that_was_held():
    inputs, targets = blobs()
    batches = ((inputs[i : i + 20], targets[i : i + 20]) for i in range(0, 200, 20))
    given = quick(data=batches, steps=100, contestants=[descent("only", 0.5, wants=Wants(20))])
    report = latephase.finish(**given)
    assert report.events[-1]["reason"] == "the data has run dry"
    assert report.standings()[0].steps == 9  # of ten batches the first is where it was looked who fits
    assert report.loss == pytest.approx(held_out_loss(given), rel=1e-6)
    assert report.loss < report.start


def test_held_out_rows_that_were_trained_on_are_noticed():
    inputs, targets = blobs()
    with pytest.warns(UserWarning, match="50 of the 150 held-out rows are training rows"):
        report = latephase.finish(**quick(data=(inputs[:200], targets[:200]), held_out=(inputs[150:], targets[150:])))
    assert any("50 of the 150" in remark for remark in report.remarks)


def test_without_held_out_data_a_tenth_is_held_out_and_said():
    report = latephase.finish(**quick(held_out=None))
    assert report.given["Held-out rows"] == "20"
    assert report.given["Training rows"] == "180"
    assert any("20 of the 200 training rows" in remark for remark in report.remarks)


def test_an_objective_alone_is_scored_by_itself():
    """Residuals of a line that is to be 2 x + 1, which the model can be."""
    model = nn.Linear(1, 1).double()
    points = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None]
    objective = Objective.from_residuals(model, {"line": (lambda m, x: m(x) - (2 * x + 1), points)})
    report = latephase.finish(objective, steps=60)
    assert report.loss == pytest.approx(float(objective.value()), rel=1e-12)
    assert report.loss < 1e-12
    assert float(model.weight.detach()) == pytest.approx(2.0, abs=1e-5)  # a loss of 1e-12 is an error of 1e-6 or so
    assert float(model.bias.detach()) == pytest.approx(1.0, abs=1e-5)
    assert any("scores are the training loss itself" in remark for remark in report.remarks)


def test_a_budget_shorter_than_a_step_is_one_step_and_no_time_for_others():
    report = latephase.finish(**quick(steps=1))
    assert report.spent == 1
    assert report.winner == "fast"
    assert any(event.get("reason") == "no time was left for a step of it" for event in report.events)


def test_seconds_are_kept():
    report = latephase.finish(**quick(steps=None, seconds=0.2))
    assert 0.2 <= report.spent < 30  # a step is begun while there is time; the machine may be slow
    assert report.unit == "seconds"
    assert sum(row.taken for row in report.standings()) <= report.spent


def never(parameters):
    raise RuntimeError("this optimizer is for other models")


class Falling(torch.optim.SGD):
    def step(self, closure=None):
        raise ValueError("a layer that it does not know")


def test_contestants_that_raise_are_named_and_others_go_on():
    broken = [Contestant("unmade", never), Contestant("falling", lambda p: Falling(list(p), lr=0.1), Wants(32))]
    report = latephase.finish(**quick(contestants=[*broken, descent("fast", 0.5)]))
    assert report.excluded["unmade"] == "its optimizer cannot be made: RuntimeError: this optimizer is for other models"
    assert "out: ValueError: a layer that it does not know" in {row.became for row in report.standings()}
    assert report.holder == "fast"
    with pytest.raises(ValueError, match="no contestant that could take part: unmade"):
        latephase.finish(**quick(contestants=broken[:1]))


def test_where_nobody_lowers_the_loss_the_model_is_as_it_was():
    given = quick(contestants=[descent("wild", 1e4), descent("wilder", 1e6)])
    before = tensors_of(given["model"])
    report = latephase.finish(**given)
    assert report.holder == "start"
    assert "Nobody lowered the held-out loss" in report.verdict
    assert all(torch.equal(a, b) for a, b in zip(before, tensors_of(given["model"]), strict=True))


def test_what_is_not_finished_is_left_as_it_was():
    given = noisy()
    model = given["model"]
    model.eval()
    model[3].train()  # a mode of its own
    frozen = model[0].bias.requires_grad_(False)
    given["base"] = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    modes, bias = [module.training for module in model.modules()], frozen.clone()
    data = copy.deepcopy((given["data"], given["held_out"]))
    filters = list(warnings.filters)
    latephase.finish(**given, steps=30)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(frozen, bias)
    assert [p.requires_grad for p in model.parameters()].count(False) == 1
    assert all(p.grad is None for p in model.parameters())
    for before, after in zip(sum(data, ()), (*given["data"], *given["held_out"]), strict=True):
        assert torch.equal(before, after)
    assert warnings.filters == filters


def test_where_it_is_interrupted_the_model_has_the_best_that_was_held():
    given = noisy()
    modes = [module.training for module in given["model"].modules()]
    best = []

    def stop(late):
        best.append(late.best[0])
        if late.spent > 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        latephase.finish(**given, steps=70, watch=stop)
    assert held_out_loss(given) == pytest.approx(best[-1], rel=1e-6)
    assert [module.training for module in given["model"].modules()] == modes


class Complaining(torch.optim.SGD):
    def step(self, closure=None):
        warnings.warn("the same at every step", UserWarning, stacklevel=1)
        return super().step(closure)


def test_warnings_of_steps_become_remarks_each_once():
    said = []
    contestant = Contestant("loud", lambda p: Complaining(list(p), lr=0.1), Wants(32))
    report = latephase.finish(**quick(contestants=[contestant]), say=said.append)
    assert report.remarks.count("UserWarning: the same at every step") == 1
    assert said.count("UserWarning: the same at every step") == 1
    assert said[0].startswith("setting up")
    assert not any("trace the model" in line for line in said)


def test_the_same_seed_gives_the_same_and_batch_norm_counts():
    runs, said = [], []
    for _ in range(2):
        given = noisy()
        torch.manual_seed(3)  # of dropout, whose masks are torch's generator's
        report = latephase.finish(**given, steps=20, say=said.append)
        runs.append((report, tensors_of(given["model"])))
    assert said.count("the first steps of hessian_free trace the model, once, which takes some seconds") == 2
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))
    assert runs[0][0].loss == pytest.approx(held_out_loss(given), rel=1e-6)


def test_a_negative_loss_is_told_by_its_difference():
    model = classifier()
    inputs, targets = blobs()
    report = latephase.finish(
        model, lambda outputs, labels: nn.functional.cross_entropy(outputs, labels) - 5.0,
        (inputs[:200], targets[:200]), held_out=(inputs[200:], targets[200:]), steps=10,
        contestants=[descent("fast", 0.5)], settings=Halving(),
    )  # fmt: skip
    assert f"lower by {report.start - report.loss:.2g}" in report.verdict
