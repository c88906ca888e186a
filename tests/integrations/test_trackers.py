"""MLflow and Weights & Biases have each step's report, read back from what they keep on the disk."""

import json
import math
import pickle
import struct
import time

import pytest

from latephase import MLflowWriter, WandbWriter
from reported_steps import diverged, problem

pytestmark = pytest.mark.filterwarnings("ignore")  # the packages' own
NAMES = {"loss/loss": "loss", "damping/damping": "damping", "cg/products": "products", "step/accepted": "accepted"}


def taken(writer, steps=3):
    """Reports of some steps that a writer has seen."""
    optimizer, objective = problem()
    handle, reports = optimizer.register_step_post_hook(writer), []
    for _ in range(steps):
        optimizer.step(objective)
        reports.append(optimizer.report)
    handle.remove()
    return reports


# MLflow


@pytest.fixture
def mlflow(tmp_path):
    mlflow = pytest.importorskip("mlflow", exc_type=ImportError)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/runs.db")
    yield mlflow
    mlflow.end_run()
    mlflow.set_tracking_uri(before)


def history(mlflow, run_id, tag):
    return [(each.step, each.value) for each in mlflow.MlflowClient().get_metric_history(run_id, tag)]


def test_mlflow_has_every_number_of_every_step(mlflow):
    with MLflowWriter() as writer:
        reports = taken(writer)
        assert mlflow.active_run().info.run_id == writer.run_id
    assert mlflow.active_run() is None
    for tag, name in NAMES.items():
        expected = [(i, float(getattr(report, name))) for i, report in enumerate(reports, 1)]
        assert history(mlflow, writer.run_id, tag) == expected
    run = mlflow.get_run(writer.run_id)
    assert run.data.tags["cg/method"] == reports[-1].method
    assert run.info.status == "FINISHED"


def test_mlflow_goes_on_in_a_run_of_ones_own(mlflow):
    with mlflow.start_run() as run:
        writer = MLflowWriter(step=40)
        taken(writer, 1)
        twin = pickle.loads(pickle.dumps(writer))
        writer.close()
        assert mlflow.active_run() is not None
    taken(twin, 1)
    taken(MLflowWriter(run.info.run_id, step=42), 1)
    assert [step for step, _ in history(mlflow, run.info.run_id, "loss/loss")] == [41, 42, 43]


def test_mlflow_gets_no_number_that_is_not_finite(mlflow):
    optimizer, objective = diverged()
    with MLflowWriter() as writer:
        optimizer.register_step_post_hook(writer)
        optimizer.step(objective)
    metrics = mlflow.get_run(writer.run_id).data.metrics
    assert {"damping/reduction_ratio", "loss/loss"}.isdisjoint(metrics)
    assert metrics["cg/status/nonfinite"] == 1.0
    assert all(map(math.isfinite, metrics.values()))


# Weights & Biases


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", exc_type=ImportError)
    for name, value in {"MODE": "offline", "DIR": tmp_path, "SILENT": "true", "DATA_DIR": tmp_path}.items():
        monkeypatch.setenv(f"WANDB_{name}", str(value))
    yield wandb
    wandb.finish()
    wandb.teardown()  # its settings are read once


def records(folder):
    """What is in a run's file, which is a log in LevelDB's form: pieces in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.rglob("*.wandb")
    data, place, whole, found = path.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            found.append(Record.FromString(whole))
            whole = b""
    return found


def rows(folder):
    """The rows that were logged, as dicts."""
    deadline, found = time.monotonic() + 60, records(folder)
    while not any(record.WhichOneof("record_type") == "exit" for record in found):
        assert time.monotonic() < deadline  # another process writes the file, and not at once
        time.sleep(0.1)
        found = records(folder)
    logged = [record.history.item for record in found if record.WhichOneof("record_type") == "history"]
    return [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items} for items in logged]


def test_wandb_has_every_number_of_every_step(wandb, tmp_path):
    with WandbWriter() as writer:
        reports = taken(writer)
        assert wandb.run is writer.run
    assert wandb.run is None
    found = rows(tmp_path)
    assert [row["steps"] for row in found] == [1, 2, 3]
    for tag, name in NAMES.items():
        assert [row[tag] for row in found] == pytest.approx([float(getattr(report, name)) for report in reports])
    assert found[0]["cg/method"] == reports[0].method


def test_wandb_goes_on_in_a_run_of_ones_own(wandb, tmp_path):
    with wandb.init() as run:
        run.log({"mine": 1})
        with WandbWriter(run, step=40) as writer:
            taken(writer, 1)
        run.log({"mine": 2})  # the run is still open
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(writer)
    found = rows(tmp_path)
    assert [row["mine"] for row in found if "mine" in row] == [1, 2]
    assert [row["steps"] for row in found if "steps" in row] == [41]


def test_something_else_than_a_run_is_refused():
    with pytest.raises(TypeError, match=r"run must be what wandb\.init\(\) returns, got int"):
        WandbWriter(3)
