"""Writers read back: strict JSON and TensorBoard's own reader, resumed, torn, killed and pickled."""

import copy
import json
import math
import pickle
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from latephase import HessianFree, Objective, StepStatus, layerwise
from latephase.solve import CGStatus
from latephase.writers import JSONLinesWriter, TensorBoardWriter


def problem(blocks=1):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    data = torch.randn(20, 3), torch.randint(3, (20,))
    params = model.parameters() if blocks == 1 else layerwise(model)
    optimizer = HessianFree(params, damping=0.1, block_diagonal=blocks > 1)
    return optimizer, Objective(model, nn.CrossEntropyLoss(), data)


def diverged():
    """An optimizer whose next step meets a loss that is not a number."""
    point = nn.ParameterList([torch.tensor([-1.0])])
    return HessianFree(point.parameters()), Objective.from_forward(point, lambda: (point[0].log().sum(), point[0]))


def lines(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = path.read_bytes().decode()
    assert not text or text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


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


# JSON lines


def test_a_line_holds_the_report_its_number_and_the_time(tmp_path):
    optimizer, objective = problem()
    reports = []
    with JSONLinesWriter(tmp_path / "logs" / "steps.jsonl") as writer:
        optimizer.register_step_post_hook(writer)
        before = time.time()
        for _ in range(3):
            optimizer.step(objective)
            reports.append(optimizer.report.as_dict())
    rows = lines(tmp_path / "logs" / "steps.jsonl")
    assert [row.pop("step") for row in rows] == [1, 2, 3]
    times = [row.pop("time") for row in rows]
    assert before <= times[0] <= times[1] <= times[2] <= time.time()
    assert rows == reports


def test_every_line_is_there_before_the_file_is_closed(tmp_path):
    optimizer, objective = problem()
    optimizer.register_step_post_hook(JSONLinesWriter(tmp_path / "steps.jsonl"))
    for step in range(1, 4):
        optimizer.step(objective)
        assert len(lines(tmp_path / "steps.jsonl")) == step


def test_a_process_that_dies_without_farewell_loses_no_line(tmp_path):
    program = """
        import os, sys
        sys.path.insert(0, sys.argv[2])
        from test_writers import problem
        from latephase.writers import JSONLinesWriter
        optimizer, objective = problem()
        optimizer.register_step_post_hook(JSONLinesWriter(sys.argv[1]))
        for _ in range(2):
            optimizer.step(objective)
        os._exit(9)
    """
    path = tmp_path / "steps.jsonl"
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program), path, here], timeout=120)
    assert done.returncode == 9
    assert [row["step"] for row in lines(path)] == [1, 2]


def test_numbers_that_are_not_finite_become_null(tmp_path):
    optimizer, objective = diverged()
    optimizer.register_step_post_hook(JSONLinesWriter(tmp_path / "steps.jsonl"))
    optimizer.step(objective)
    assert math.isnan(optimizer.report.loss)
    assert optimizer.report.reduction_ratio == -math.inf
    (row,) = lines(tmp_path / "steps.jsonl")
    assert row["loss"] is None
    assert row["reduction_ratio"] is None
    assert row["accepted"] is False
    assert row["cg_status"] == ["nonfinite"]


@pytest.mark.parametrize(
    ("tail", "kept"),
    [
        (b"", 2),
        (b'{"step": 3, "time": 1.0, "lo', 2),
        (b'{"step": 3, "time": 1.0, "method": "tr\xc3', 2),
        (b'{"step": 3, "time": 1.0}', 3),  # whole but for its end
    ],
)
def test_a_resumed_run_goes_on_and_loses_no_whole_line(tail, kept, tmp_path):
    path = tmp_path / "steps.jsonl"
    optimizer, objective = problem()
    with JSONLinesWriter(path) as writer:
        handle = optimizer.register_step_post_hook(writer)
        for _ in range(2):
            optimizer.step(objective)
    handle.remove()
    first = path.read_bytes()
    path.write_bytes(first + tail)
    with JSONLinesWriter(path) as writer:
        assert writer.step == kept
        optimizer.register_step_post_hook(writer)
        optimizer.step(objective)
    assert path.read_bytes().startswith(first)
    assert [row["step"] for row in lines(path)] == list(range(1, kept + 2))


@pytest.mark.parametrize("content", [b"", b"{", b'{"ste', b'{"step": 1, "ti'])
def test_a_file_that_died_within_its_first_line_begins_anew(content, tmp_path):
    path = tmp_path / "steps.jsonl"
    path.write_bytes(content)
    optimizer, objective = problem()
    optimizer.register_step_post_hook(JSONLinesWriter(path))
    optimizer.step(objective)
    assert [row["step"] for row in lines(path)] == [1]


@pytest.mark.parametrize(
    "content", [b"my notes\n", b"my notes", b'{"epoch": 3}\n', b"[1]\n", b"3\n", b'{"epoch": 3', b"notes\n{"]
)
def test_a_file_of_something_else_is_refused_and_left_as_it_is(content, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"notes\.txt holds something else"):
        JSONLinesWriter(path)
    assert path.read_bytes() == content


def test_training_from_an_older_checkpoint_keeps_its_own_count(tmp_path):
    path = tmp_path / "steps.jsonl"
    optimizer, objective = problem()
    handle = optimizer.register_step_post_hook(JSONLinesWriter(path))
    for _ in range(3):
        optimizer.step(objective)
    handle.remove()
    optimizer.register_step_post_hook(JSONLinesWriter(path, step=1))
    optimizer.step(objective)
    assert [row["step"] for row in lines(path)] == [1, 2, 3, 2]


def test_a_pickled_or_copied_writer_goes_on_from_its_own_count(tmp_path):
    path = tmp_path / "steps.jsonl"
    optimizer, objective = problem()
    writer = JSONLinesWriter(path)
    handle = optimizer.register_step_post_hook(writer)
    optimizer.step(objective)
    handle.remove()
    for twin in (pickle.loads(pickle.dumps(writer)), copy.deepcopy(writer)):
        optimizer.register_step_post_hook(twin)
    optimizer.step(objective)
    assert [row["step"] for row in lines(path)] == [1, 2, 2]


# TensorBoard


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
    optimizer, objective = problem()
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
    scalars, _ = events(tmp_path)
    assert [step for step, _ in scalars["loss/loss"]] == [1, 2]


def test_without_tensorboard_the_error_names_the_extra(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match=r'pip install "latephase\[tensorboard\]"'):
        TensorBoardWriter(tmp_path)


# Both


@pytest.fixture(params=[JSONLinesWriter, TensorBoardWriter])
def writer(request, tmp_path):
    return request.param(tmp_path / "log")


def test_before_the_first_step_there_is_nothing_to_write(writer):
    optimizer, _ = problem()
    writer(optimizer, (), {})
    assert writer.step == 0


def test_an_optimizer_without_reports_is_refused(writer):
    with pytest.raises(TypeError, match=r"needs an optimizer with a `report`, got SGD"):
        writer(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1), (), {})


def test_a_step_after_the_end_is_an_error(writer):
    optimizer, objective = problem()
    with writer:
        optimizer.register_step_post_hook(writer)
        optimizer.step(objective)
    with pytest.raises(ValueError, match="was closed"):
        optimizer.step(objective)
    writer.close()  # again: harmless
    assert writer.step == 1


def test_something_else_than_a_folder_is_refused():
    with pytest.raises(TypeError, match="must be a folder or a SummaryWriter, got int"):
        TensorBoardWriter(3)
