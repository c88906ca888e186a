"""Writers read back: strict JSON, resumed, torn, killed and pickled; and what both writers have in common."""

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

from latephase.records.step_writers import JSONLinesWriter, TensorBoardWriter
from reported_steps import diverged, problem


def lines(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = path.read_bytes().decode()
    assert not text or text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


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
        from reported_steps import problem
        from latephase.records.step_writers import JSONLinesWriter
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


def test_numbers_of_ones_own_are_written_beside_the_report(tmp_path):
    optimizer, objective = problem()
    given = [{"error": 0.5, "n/a": math.nan}, {}, {"error": 2}]
    with JSONLinesWriter(tmp_path / "steps.jsonl", extra=lambda: given[writer.step]) as writer:
        optimizer.register_step_post_hook(writer)
        for _ in given:
            optimizer.step(objective)
    rows = lines(tmp_path / "steps.jsonl")
    assert [(row.get("error"), row.get("n/a", 0)) for row in rows] == [(0.5, None), (None, 0), (2.0, 0)]
    assert rows[0].keys() - {"n/a", "error"} == rows[1].keys()


@pytest.mark.parametrize(
    ("extra", "kind", "words"),
    [
        (lambda: {"loss": 1.0}, ValueError, "extra gives loss, which the line of a step has itself"),
        (lambda: None, TypeError, "extra of a JSONLinesWriter must return a dict of numbers by name, got None"),
        (lambda: {"a": "b"}, TypeError, "dict of numbers by name"),
        (lambda: {"a": True}, TypeError, "dict of numbers by name"),
        (lambda: {"a": torch.tensor(1.0)}, TypeError, "dict of numbers by name"),
        (lambda: {1: 1.0}, TypeError, "dict of numbers by name"),
    ],
)
def test_what_is_no_number_of_ones_own_is_refused(extra, kind, words, tmp_path):
    optimizer, objective = problem()
    optimizer.register_step_post_hook(JSONLinesWriter(tmp_path / "steps.jsonl", extra=extra))
    with pytest.raises(kind, match=words):
        optimizer.step(objective)
    assert lines(tmp_path / "steps.jsonl") == []


@pytest.mark.parametrize("made", [JSONLinesWriter, TensorBoardWriter])
def test_a_writer_with_numbers_of_ones_own_is_not_copied(made, tmp_path):
    with pytest.raises(TypeError, match="extra must be a callable"):
        made(tmp_path / "log", extra={"error": 1.0})
    writer = made(tmp_path / "log", extra=dict)
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="with extra cannot be copied or pickled"):
            copied(writer)


def test_a_step_after_the_end_is_an_error(writer):
    optimizer, objective = problem()
    with writer:
        optimizer.register_step_post_hook(writer)
        optimizer.step(objective)
    with pytest.raises(ValueError, match="was closed"):
        optimizer.step(objective)
    writer.close()  # again: harmless
    assert writer.step == 1
