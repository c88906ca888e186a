"""Many machines: parts of a study in processes of their own, Ray tasks, and processes that leave nothing behind."""

import os
import shutil
import subprocess
import sys
import threading
from multiprocessing import forkserver

import pytest
import torch
from small_studies import (
    DRIVER,
    HERE,
    custom,
    first_order,
    hessian_free,
    performed,
    rows_of,
    statuses_of,
    study_of,
    toml_of,
    training_rows_of,
)

from latephase.study.config import ConfigError
from latephase.study.performing import execute
from latephase.study.performing.execute import ExecutorError
from latephase.study.performing.processes import _device_of, in_process

STRATEGIES = (first_order(), hessian_free(), custom("Slow", "slow"))


@pytest.fixture(scope="module")
def study():
    return study_of(*STRATEGIES)


@pytest.fixture(scope="module")
def whole(study, tmp_path_factory):
    forkserver._forkserver._stop()  # of other tests, which knows nothing of the allocator of runs
    with pytest.MonkeyPatch.context() as patch:
        directory = tmp_path_factory.mktemp("whole") / "study"
        assert performed(study, directory, patch) == []
    return directory


def same(directory, whole):
    assert rows_of(directory) == rows_of(whole)
    assert training_rows_of(directory) == training_rows_of(whole)
    assert {status["status"] for status in statuses_of(directory).values()} == {"finished"}
    files = [{path.name for path in (folder / "runs").glob("*/*")} for folder in (directory, whole)]
    assert files[0] == files[1]


@pytest.mark.slow
def test_two_shards_at_once_make_the_study_of_one(study, whole, tmp_path, monkeypatch):
    """In one folder: one trains, the other waits for it; each performs its part."""
    directory, errors = tmp_path / "study", []

    def part(number):
        try:
            performed(study, directory, shard=(number, 2))
        except Exception as error:
            errors.append(error)

    monkeypatch.setattr(
        "latephase.study.performing.conducting.write_report", lambda directory: directory / "report.html"
    )
    threads = [threading.Thread(target=part, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    same(directory, whole)
    attempts = [path.read_text().count('"event": "start"') for path in directory.glob("runs/*/rows.jsonl")]
    assert attempts == [1] * 12
    assert (directory / "training" / "rows.jsonl").read_text().count('"event": "start"') == 1


@pytest.mark.slow
def test_two_processes_with_shards_make_the_study_of_one(whole, tmp_path):
    toml, directory = toml_of(tmp_path, *STRATEGIES), tmp_path / "study"
    command = [*DRIVER, "study", str(toml), "--out", str(directory), "--shard"]
    processes = [
        subprocess.Popen([*command, shard], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for shard in ("1/2", "2/2")
    ]
    outputs = [process.communicate()[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    same(directory, whole)


@pytest.mark.slow
def test_a_shard_alone_performs_its_part_only(study, whole, tmp_path, monkeypatch):
    directory = shutil.copytree(whole, tmp_path / "study")
    shutil.rmtree(directory / "runs")
    performed(study, directory, monkeypatch, shard=(2, 3))
    assert len(rows_of(directory)) == 4
    assert rows_of(directory).items() <= rows_of(whole).items()


def test_a_shard_beside_the_whole_study_is_refused(study, whole, tmp_path, monkeypatch):
    """Both would perform the same runs."""
    directory = shutil.copytree(whole, tmp_path / "study")
    entered, leave = threading.Event(), threading.Event()

    def waiting(runs):
        entered.set()
        leave.wait(60)
        yield from ()

    shutil.rmtree(directory / "runs")
    monkeypatch.setitem(execute.EXECUTORS, "local", waiting)
    monkeypatch.setattr(
        "latephase.study.performing.conducting.write_report", lambda directory: directory / "report.html"
    )
    for first, second in (((1, 2), (1, 1)), ((1, 1), (2, 2)), ((1, 2), (2, 3)), ((1, 2), (1, 2))):
        entered.clear()
        leave.clear()
        thread = threading.Thread(target=performed, args=(study, directory), kwargs={"shard": first})
        thread.start()
        assert entered.wait(60)
        with pytest.raises(ConfigError, match=f"another process works on .*{directory.name}"):
            performed(study, directory, shard=second)
        leave.set()
        thread.join()


def say(path):
    path.write_text(f"{torch.get_num_threads()} {os.environ['MALLOC_TRIM_THRESHOLD_']} {threading.active_count()}")


def test_a_process_has_its_threads_pinned_and_the_allocator_of_all_runs(whole, tmp_path):
    """After a study in this process, which sets the allocator for the server that workers are forked from."""
    worker = in_process(say, tmp_path / "said", threads=2)
    assert worker.ended() == ""
    assert (tmp_path / "said").read_text().split()[:2] == ["2", execute.ALLOCATOR["MALLOC_TRIM_THRESHOLD_"]]


def test_runs_see_one_gpu_each_by_turns(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert [_device_of(slot) for slot in range(3)] == ["3", "5", "3"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [_device_of(slot) for slot in range(3)] == ["0", "1", "0"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert _device_of(1) == ""


def test_ray_that_is_not_installed_is_named(study, whole, tmp_path, monkeypatch):
    directory = shutil.copytree(whole, tmp_path / "study")
    shutil.rmtree(directory / "runs")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ExecutorError, match=r"pip install 'latephase\[ray\]', or --executor local"):
        performed(study, directory, monkeypatch, executor="ray")


@pytest.mark.slow
def test_ray_tasks_make_the_same_folder_and_a_killed_one_costs_its_run_only(whole, tmp_path):
    """In a process of its own: Ray's threads and sockets outlive `ray.shutdown` in this one."""
    pytest.importorskip("ray", reason="Ray is not installed")
    until = tmp_path / "until"
    dies = custom("Dies", "dies", way="kill", until=str(until))
    toml, directory = toml_of(tmp_path, first_order(), dies, seeds=[0], checkpoints=[1]), tmp_path / "study"
    command = [*DRIVER, "study", str(toml), "--out", str(directory), "--executor", "ray"]
    environment = os.environ | {"REPORT": "no", "PYTHONPATH": str(HERE)}
    first = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=500)
    statuses = {name.split("_")[1]: status["status"] for name, status in statuses_of(directory).items()}
    assert statuses == {"constant": "finished", "dies": "failed"}, first.stdout + first.stderr
    assert first.returncode == 1
    assert "checkpoint-0001_dies_seed-0 failed: its worker was lost (WorkerCrashedError)" in first.stderr
    until.touch()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=500)
    assert again.returncode == 0, again.stdout + again.stderr
    assert {status["status"] for status in statuses_of(directory).values()} == {"finished"}
    name = "checkpoint-0001_constant_seed-0"
    assert rows_of(directory)[name] == rows_of(whole)[name]
    assert {path.name for path in (directory / "runs" / name).iterdir()} == {
        path.name for path in (whole / "runs" / name).iterdir()
    }
