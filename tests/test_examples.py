"""The example scripts run, resume, and compare what they say they compare."""

import copy
import gzip
import importlib
import itertools
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from latephase import Objective
from latephase.curvature import linearize

SCRIPT = Path(__file__).parent.parent / "examples" / "autoencoder.py"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module("autoencoder")


@pytest.fixture
def timed_runs(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module("timed_runs")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with images that an autoencoder can learn: bright squares at one of 16 places."""
    pixels = torch.zeros(64, 28, 28, dtype=torch.uint8)
    for row in range(64):
        top, left = 7 * (row % 4), 7 * (row // 4 % 4)
        pixels[row, top : top + 7, left : left + 7] = 255
    file = bytes([0, 0, 8, 3]) + struct.pack(">3I", *pixels.shape) + pixels.numpy().tobytes()
    place = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"  # as torchvision lays it out
    place.parent.mkdir(parents=True)
    place.write_bytes(gzip.compress(file))
    return tmp_path


def run(*arguments: str | Path, data: Path | str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "LATEPHASE_DATA"}
    if data is not None:
        environment["LATEPHASE_DATA"] = str(data)
    command = [sys.executable, "-W", "error", SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def errors(path: Path) -> list[float]:
    return [line["error"] for line in lines(path) if "error" in line]


@pytest.mark.slow
def test_the_methods_lower_the_error_on_real_images(tmp_path):
    data = os.environ.get("LATEPHASE_DATA")
    if not data:
        pytest.skip("LATEPHASE_DATA is not set: it names the folder that holds MNIST")
    done = run("--out", tmp_path, "--images", "200", "--time-limit", "6", "--adam-rates", "1e-3", data=data)
    assert done.returncode == 0, done.stderr
    methods = ["adam-0.001", "hessian_free", "hessian_free_growing", "lbfgs"]
    files = sorted(["autoencoder.png", *(f"{name}.jsonl" for name in methods)])
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    starts = set()
    for name in methods:
        found = lines(tmp_path / f"{name}.jsonl")
        assert found[0]["settings"]["images"] == 200
        assert found[-1] == {"finished": True}
        assert found[-2]["seconds"] >= 6
        starts.add(found[1]["error"])
    assert len(starts) == 1  # the same initial parameters
    # The start is above 200; the error of the mean image, 53, is reached in a few steps.
    start = starts.pop()
    assert errors(tmp_path / "hessian_free.jsonl")[-1] < 0.5 * start
    assert errors(tmp_path / "hessian_free_growing.jsonl")[-1] < 0.5 * start


@pytest.mark.slow
def test_a_run_writes_results_and_picture_and_is_not_repeated(folder, tmp_path):
    out = tmp_path / "out"
    arguments = ["--out", out, "--images", "64", "--time-limit", "0.5", "--adam-rates", "1e-3"]
    arguments += ["--methods", "adam", "hessian_free"]
    done = run(*arguments, data=folder)
    assert done.returncode == 0, done.stderr
    assert (out / "autoencoder.png").read_bytes().startswith(b"\x89PNG")
    found = errors(out / "hessian_free.jsonl")
    assert found[-1] < found[0]
    before = {path.name: path.read_bytes() for path in out.glob("*.jsonl")}
    # adam was interrupted while it wrote a line: it starts anew, and what it wrote stays
    cut_off = before["adam-0.001.jsonl"].removesuffix(b'{"finished": true}\n') + b'{"seconds": 0.3, "err'
    (out / "adam-0.001.jsonl").write_bytes(cut_off)
    done = run(*arguments, "--data", folder)
    assert done.returncode == 0, done.stderr
    assert "hessian_free" not in done.stdout
    assert (out / "hessian_free.jsonl").read_bytes() == before["hessian_free.jsonl"]
    again = (out / "adam-0.001.jsonl").read_bytes()
    assert again.startswith(cut_off)
    assert again.endswith(b'{"finished": true}\n')


def test_finished_runs_of_other_settings_are_not_mixed_in(timed_runs, tmp_path):
    settings = {"images": 64, "time_limit": 0.0, "clock": "wall", "threads": 1}
    timed_runs.run("adam", tmp_path, settings, lambda: (lambda: {}, lambda: 1.0))
    with pytest.raises(SystemExit, match=r"adam has finished with \{'images': 64"):
        timed_runs.run("adam", tmp_path, settings | {"images": 32}, pytest.fail)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --data, or set LATEPHASE_DATA"),
        (["--data", "nowhere"], "MNIST's training images are at none of nowhere/MNIST/train-images-idx3-ubyte.gz"),
        (["--data", "nowhere", "--clock", "process", "--threads", "2"], "needs --threads 1"),
    ],
)
def test_what_is_missing_is_said(example, arguments, message, monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("LATEPHASE_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", ["autoencoder.py", *arguments, "--out", str(tmp_path)])
    with pytest.raises((SystemExit, FileNotFoundError)) as raised:
        example.main()
    assert message in capsys.readouterr().err + str(raised.value)


def test_lines_of_an_earlier_attempt_do_not_count(timed_runs, tmp_path):
    first = [{"settings": {"images": 1}}, {"seconds": 0.0, "error": 9.0}]
    second = [{"settings": {"images": 2}}, {"seconds": 0.0, "error": 8.0}, {"finished": True}]
    text = "".join(json.dumps(line) + "\n" for line in first) + '{"seconds": 5, "er\n'
    text += "".join(json.dumps(line) + "\n" for line in second)
    (tmp_path / "lbfgs.jsonl").write_text(text, encoding="utf-8")
    assert timed_runs.read_runs(tmp_path) == {"lbfgs": second}


def test_marks_rise(timed_runs):
    found = list(itertools.islice(timed_runs.marks(), 60))
    assert found == sorted(set(found))
    assert {0, 100, 300, 600, 900} <= set(found)


@pytest.fixture
def small() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.Sigmoid(), nn.Linear(4, 6)), torch.rand(40, 6)


def test_l_bfgs_in_single_steps_is_l_bfgs_and_computes_no_gradient_twice(example, small, monkeypatch):
    model, data = small
    reference = copy.deepcopy(model)
    calls = []

    def counted(model, data):
        objective = whole(model, data)

        def closure():
            calls.append(1)
            return objective()

        return closure

    whole = example.objective_on
    monkeypatch.setattr(example, "objective_on", counted)
    step = example.lbfgs(model, data)
    for _ in range(10):
        step()
    optimizer = torch.optim.LBFGS(reference.parameters(), max_iter=10, max_eval=1000, line_search_fn="strong_wolfe")
    optimizer.step(whole(reference, data))
    for p, other in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(p, other)
    assert len(calls) == optimizer.state[next(iter(reference.parameters()))]["func_evals"]


def test_the_error_is_the_squared_error_summed_over_pixels(example, small):
    model, data = small
    with torch.no_grad():
        by_hand = sum(float((1 / (1 + torch.exp(-model(row))) - row).square().sum()) for row in data) / 40
    # float32 forward passes of single rows and of the batch: rounding of some 1e-7 each
    assert example.reconstruction_error(model, data) == pytest.approx(by_hand, rel=1e-5)


def test_the_loss_is_summed_over_pixels_and_averaged_over_rows(example, small):
    model, data = small
    logits = model(data)
    entropy = -(data * logits.sigmoid().log() + (1 - data) * (1 - logits.sigmoid()).log()).sum(dim=1).mean()
    assert float(example.summed_loss(data)(logits, data).detach()) == pytest.approx(float(entropy.detach()), rel=1e-5)


def test_the_process_clock_stands_still_while_the_error_is_measured(timed_runs, monkeypatch):
    lines, now = [], [100.0]
    monkeypatch.setitem(timed_runs.CLOCKS, "process", lambda: now[0])

    def takes(seconds: float, result: object) -> Callable[[], Any]:
        def called() -> object:
            now[0] += seconds
            return result

        return called

    timed_runs.train(takes(0.0625, {}), takes(1.0, 1.0), 0.25, "process", lines.append)
    assert [(line["steps"], line["seconds"]) for line in lines] == [(0, 0.0), (4, 0.25)]


def test_a_step_that_diverges_ends_the_run(timed_runs):
    lines = []
    timed_runs.train(lambda: {}, lambda: float("nan"), 10.0, "wall", lines.append)
    assert len(lines) == 1


def test_a_diverged_method_leaves_a_file_of_plain_json(timed_runs, tmp_path):
    settings = {"time_limit": 10.0, "clock": "wall", "threads": 1}
    measured = iter([2.0, float("nan")])
    step = {"reduction_ratio": float("-inf"), "status": "nonfinite"}

    def late() -> dict:
        time.sleep(2.01)  # past the second mark
        return step

    timed_runs.run("adam", tmp_path, settings, lambda: (late, lambda: next(measured)))
    text = (tmp_path / "adam.jsonl").read_text(encoding="utf-8")
    found = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert found[2]["step"] == {"reduction_ratio": None, "status": "nonfinite"}
    assert found[-1] == {"finished": True}
    assert [line["error"] for line in timed_runs.errors(tmp_path)["adam"]] == [2.0]


def test_chain_kfac_is_the_inverse_of_its_kronecker_product(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    kronecker = importlib.import_module("kronecker")
    torch.manual_seed(0)
    a, b = (lambda root: root @ root.T)(torch.randn(4, 4)), (lambda root: root @ root.T)(torch.randn(3, 3))
    ridge = 0.5
    estimate = {"0.inputs": a, "0.slopes": b, "decay": torch.tensor(0.1)}
    apply = kronecker.ChainKFAC(dtype=torch.float32).inverse(estimate, ridge - 0.1, [15])
    pi = (a.trace() / 4 / (b.trace() / 3)).sqrt()
    joint = torch.kron(b + ridge**0.5 / pi * torch.eye(3), a + pi * ridge**0.5 * torch.eye(4))  # rows of [weight, bias]
    weight, bias = torch.randn(3, 3), torch.randn(3)
    solved = torch.linalg.solve(joint, torch.cat([weight, bias[:, None]], dim=1).reshape(-1)).view(3, 4)
    found = apply(torch.cat([weight.reshape(-1), bias]))
    # float32 inverses of matrices whose condition is below 1e3
    assert torch.allclose(found, torch.cat([solved[:, :3].reshape(-1), solved[:, 3]]), rtol=1e-3, atol=1e-4)


def test_chain_kfac_estimates_the_fisher_factors(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    kronecker = importlib.import_module("kronecker")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Sigmoid(), nn.Linear(2, 3))
    x = torch.rand(20_000, 3)
    objective = Objective(model, nn.BCEWithLogitsLoss(weight=torch.tensor(3.0)), (x, x), microbatch_size=7_000)
    estimate = kronecker.ChainKFAC().estimate(linearize(objective), [objective.space().size])
    with torch.no_grad():
        hidden = model[:2](x)
        ones = torch.ones(len(x), 1)
        p = model(x).sigmoid()
    inputs = [torch.cat([x, ones], dim=1), torch.cat([hidden, ones], dim=1)]
    for layer, rows in enumerate(inputs):
        # one sum in three parts and in one: rounding
        assert torch.allclose(estimate[f"{layer}.inputs"], rows.T @ rows / len(x), rtol=1e-4, atol=1e-5)
    # Of logits the Fisher information is diag(p (1 - p)), of hidden units its pull-back; drawn targets estimate both
    # within some 1 / sqrt(20,000).
    exact = torch.diag((p * (1 - p)).mean(dim=0))
    assert torch.allclose(estimate["1.slopes"], exact, atol=0.01)
    pulled = (hidden * (1 - hidden))[:, :, None] * model[2].weight.detach().T
    first = torch.einsum("nij,nj,nkj->ik", pulled, p * (1 - p), pulled) / len(x)
    assert torch.allclose(estimate["0.slopes"], first, rtol=0.1, atol=0.002)
