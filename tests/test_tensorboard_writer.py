"""TensorBoard's scalars read back by its own reader."""

import math
import pickle
import sys

import pytest
import torch
from torch import nn

from latephase import Objective, StepStatus
from latephase.records.step_writers import TensorBoardWriter
from latephase.solve import CGStatus
from reported_steps import diverged, problem


def events(folder):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator = reader.EventAccumulator(str(folder))
    accumulator.Reload()
    tags = accumulator.Tags()
    scalars = {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in tags["scalars"]}
    texts = {
        tag: [(e.step, e.tensor_proto.string_val[0].decode()) for e in accumulator.Tensors(tag)]
        for tag in tags["tensors"]
    }
    return scalars, texts


def test_scalars_come_back_from_the_event_file(tmp_path):
    optimizer, objective = problem()
    model, data = objective.model, (torch.randn(10, 3), torch.randint(3, (10,)))
    held_out = Objective(model, nn.CrossEntropyLoss(), data)
    reports = []
    with TensorBoardWriter(tmp_path) as writer:
        optimizer.register_step_post_hook(writer)
        for evaluation in (None, held_out, None):
            optimizer.step(objective, evaluation)
            reports.append(optimizer.report)
    scalars, texts = events(tmp_path)
    for tag, name in {
        "loss/loss": "loss",
        "loss/evaluation_loss": "evaluation_loss",
        "loss/new_evaluation_loss": "new_evaluation_loss",
        "damping/damping": "damping",
        "damping/predicted_change": "predicted_change",
        "damping/reduction_ratio": "reduction_ratio",
        "step/gradient_norm": "gradient_norm",
        "step/step_norm": "step_norm",
        "step/lr": "lr",
        "step/accepted": "accepted",
        "step/seconds": "seconds",
        "cg/chosen": "cg_chosen",
        "cg/products": "products",
        "cg/recomputed": "recomputed",
    }.items():
        expected = [
            (i, pytest.approx(float(getattr(r, name)), rel=1e-6)) for i, r in enumerate(reports, 1)
        ]  # kept in float32
        assert scalars[tag] == expected, tag
    assert [step for step, _ in scalars["loss/new_loss"]] == [1, 3]  # step 2 was judged elsewhere
    assert scalars["cg/iterations"] == [(i, r.cg_iterations[0]) for i, r in enumerate(reports, 1)]
    for status in CGStatus:
        expected = [(i, float(r.cg_status[0] == status)) for i, r in enumerate(reports, 1)]
        assert scalars[f"cg/status/{status}"] == expected
    for status in StepStatus:
        assert scalars[f"step/status/{status}"] == [(i, float(r.status == status)) for i, r in enumerate(reports, 1)]
    methods = [(i, r.method) for i, r in enumerate(reports, 1)]
    changes = [pair for pair, before in zip(methods, [(0, None), *methods], strict=False) if pair[1] != before[1]]
    assert texts == {"cg/method/text_summary": changes}


def test_every_number_of_the_report_has_a_tag(tmp_path):
    optimizer, objective = problem(blocks=2)  # with one there are no methods of blocks
    with TensorBoardWriter(tmp_path) as writer:
        optimizer.register_step_post_hook(writer)
        optimizer.step(objective)
    scalars, texts = events(tmp_path)
    written = {tag.split("/")[1] for tag in (*scalars, *texts)}
    assert written == {name.removeprefix("cg_") for name in optimizer.report.as_dict()}


def test_blocks_are_summed_up(tmp_path):
    optimizer, objective = problem(blocks=2)
    optimizer.register_step_post_hook(TensorBoardWriter(tmp_path))
    optimizer.step(objective)
    scalars, _ = events(tmp_path)
    assert len(set(optimizer.report.cg_iterations)) == 2  # or the largest would not be told from the others
    assert scalars["cg/iterations"] == [(1, max(optimizer.report.cg_iterations))]
    for status in CGStatus:
        assert scalars[f"cg/status/{status}"] == [(1, optimizer.report.cg_status.count(status) / 2)]


def test_numbers_that_are_not_finite_are_left_out(tmp_path):
    optimizer, objective = diverged()
    optimizer.register_step_post_hook(TensorBoardWriter(tmp_path))
    optimizer.step(objective)
    scalars, _ = events(tmp_path)
    assert {"damping/reduction_ratio", "loss/loss"}.isdisjoint(scalars)
    assert scalars["cg/status/nonfinite"] == [(1, 1.0)]
    assert all(math.isfinite(value) for values in scalars.values() for _, value in values)


def test_a_summary_writer_of_ones_own_stays_open(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    optimizer, objective = problem()
    with SummaryWriter(str(tmp_path)) as own:
        with TensorBoardWriter(own, step=40) as writer:
            optimizer.register_step_post_hook(writer)
            optimizer.step(objective)
        own.add_scalar("accuracy", 0.5, 41)
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(writer)
    scalars, _ = events(tmp_path)
    assert [step for step, _ in scalars["loss/loss"]] == [41]
    assert scalars["accuracy"] == [(41, 0.5)]


def test_a_pickled_writer_goes_on_in_its_folder(tmp_path):
    optimizer, objective = problem()
    writer = TensorBoardWriter(tmp_path)
    handle = optimizer.register_step_post_hook(writer)
    optimizer.step(objective)
    handle.remove()
    optimizer.register_step_post_hook(pickle.loads(pickle.dumps(writer)))
    optimizer.step(objective)
    # File by file: within one second the names of a process's 9th and 10th are in the wrong order for the reader.
    found = [step for file in tmp_path.iterdir() for step, _ in events(file)[0]["loss/loss"]]
    assert sorted(found) == [1, 2]


def test_without_tensorboard_the_error_names_the_extra(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match=r'pip install "latephase\[tensorboard\]"'):
        TensorBoardWriter(tmp_path)


def test_something_else_than_a_folder_is_refused():
    with pytest.raises(TypeError, match="must be a folder or a SummaryWriter, got int"):
        TensorBoardWriter(3)


def test_numbers_of_ones_own_have_tags_of_their_own(tmp_path):
    optimizer, objective = problem()
    with TensorBoardWriter(tmp_path, extra=lambda: {"held_out/interior": 0.5, "n/a": math.inf, "loss": 2}) as writer:
        optimizer.register_step_post_hook(writer)
        optimizer.step(objective)
    scalars, _ = events(tmp_path)
    assert scalars["extra/held_out/interior"] == [(1, 0.5)]
    assert scalars["extra/loss"] == [(1, 2.0)]
    assert "extra/n/a" not in scalars
