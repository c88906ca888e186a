"""`latephase check`: what it prints, what it refuses, and with which exit status."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from latephase.cli import app

PROBLEM = """
import torch
from torch import nn
import torch.nn.functional as F
from latephase import Objective


class Doubtful(nn.Module):
    reduction = "mean"

    def forward(self, outputs, targets):
        return F.cross_entropy(outputs, targets, reduction="sum")


def parts():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), (torch.randn(30, 4), torch.randint(3, (30,)))


def good():
    model, batch = parts()
    return model, nn.CrossEntropyLoss(), batch


def bad():
    model, batch = parts()
    return model, Doubtful(), batch


def ready():
    return Objective(*good())


def pair():
    return parts()


def number():
    return 3


def mistaken():
    return undefined_name


def mismatched():
    model, (inputs, targets) = parts()
    return model, nn.CrossEntropyLoss(), (inputs, targets[:5])
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command in a folder with the problem's file; what it imports is forgotten afterwards."""
    (tmp_path / "own_problem.py").write_text(PROBLEM, encoding="utf-8")
    (tmp_path / "broken_problem.py").write_text("import no_such_package_anywhere\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield lambda *arguments: CliRunner().invoke(app, ["check", *map(str, arguments)])
    for name in ("own_problem", "broken_problem"):
        sys.modules.pop(name, None)


def said(result) -> str:
    return " ".join(result.output.split())


@pytest.mark.parametrize("factory", ["good", "ready"])
def test_a_problem_without_a_defect_ends_with_status_0(run, factory):
    result = run(f"own_problem:{factory}")
    assert result.exit_code == 0, result.output
    assert "symmetry" in result.output
    assert "Ready for second-order steps." in result.output
    assert max(map(len, result.output.splitlines())) <= 80


def test_a_defect_ends_with_status_1(run):
    result = run("own_problem:bad")
    assert result.exit_code == 1
    assert "Doubtful says 'mean'" in said(result)
    assert "Not ready for second-order steps: 1 defect (reduction)." in said(result)


@pytest.mark.parametrize(("factory", "status"), [("good", 0), ("bad", 1)])
def test_json_is_all_of_the_report(run, factory, status):
    result = run(f"own_problem:{factory}", "--json")
    assert result.exit_code == status
    found = json.loads(result.stdout)
    assert found["ok"] is (status == 0)
    assert found["parameters"] == 67
    assert {finding["severity"] for finding in found["findings"]} <= {"ok", "note", "warning", "defect"}
    assert any(finding["severity"] == "defect" for finding in found["findings"]) is (status == 1)


def test_a_batch_whose_examples_cannot_be_counted_is_said_to_be_one(run):
    result = run("own_problem:mismatched")
    assert result.exit_code == 1
    assert "30 rows of inputs but 5 of targets" in said(result)


def test_chunks_and_device_are_options(run):
    result = run("own_problem:good", "--microbatch-size", 10, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "30 examples in 3 chunks" in said(result)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["own_problem"], "not of the form PACKAGE.MODULE:FACTORY"),
        (["own_problem:good()"], "not of the form PACKAGE.MODULE:FACTORY"),
        (["no_such_problem:good"], "there is no module 'no_such_problem'"),
        (["own_problem.inner:good"], "there is no module 'own_problem.inner'"),
        (["broken_problem:good"], "importing broken_problem fails: ModuleNotFoundError: No module named 'no_such_p"),
        (["own_problem:god"], "own_problem has no function 'god'; it has Doubtful, parts, good"),
        (["own_problem:pair"], "must return (model, loss, batch) or an Objective, got tuple of 2"),
        (["own_problem:number"], "must return (model, loss, batch) or an Objective, got int"),
        (["own_problem:mistaken"], "own_problem:mistaken fails: NameError: name 'undefined_name' is not defined"),
        (["own_problem:ready", "--device", "cpu"], "returns an Objective, which is checked as it is"),
        (["own_problem:good", "--device", "nowhere"], "nothing can be moved to 'nowhere'"),
    ],
)
def test_what_cannot_be_checked_ends_with_status_2_and_one_line(run, arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert message in said(result)
    assert len(result.output.strip().splitlines()) == 1
    assert "Traceback" not in result.output


def test_help_shows_how_to_say_what_the_problem_is(run):
    result = run("--help")
    assert result.exit_code == 0
    assert "def make():" in result.output
    assert "latephase check problem:make" in said(result)


def test_the_command_runs_by_itself_and_needs_torch_only_to_check(tmp_path):
    (tmp_path / "own_problem.py").write_text(PROBLEM, encoding="utf-8")

    def python(code: str, factory: str):
        code = "import sys; from latephase.cli import app\n" + code
        command = [sys.executable, "-c", code, "check", factory]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    whole = python("app()", "own_problem:bad")
    assert whole.returncode == 1, whole.stderr
    assert "reduction" in whole.stdout
    assert whole.stderr == ""
    told = "try: app()\nexcept SystemExit as end: print(end.code, 'torch' in sys.modules)"
    missing = python(told, "nothing_here:make")
    assert missing.stdout.split() == ["2", "False"]
    assert "there is no module 'nothing_here'" in missing.stderr
