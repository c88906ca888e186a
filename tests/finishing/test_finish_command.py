"""`latephase finish`: what it prints, what it refuses, and with which exit status."""

import json
import re

import pytest
import torch
from typer.testing import CliRunner

from latephase.cli import app

TASKS = """
import torch
from small_tasks import quick
from torch import nn
from latephase import Objective


def good():
    given = quick()
    del given["steps"]
    return given


def parts():
    given = quick()
    return given["model"], given["loss"], given["data"]


def ready():
    return Objective(*parts())


def mistaken():
    return good() | {"modle": 1}


def timed():
    return good() | {"seconds": 3}


def headless():
    given = good()
    del given["model"]
    return given


def pair():
    return parts()[:2]


def number():
    return 3


def broken():
    raise RuntimeError("no such file")


def spoilt():
    given = good()
    with torch.no_grad():
        given["model"][0].weight.fill_(float("nan"))
    return given
"""


@pytest.fixture
def finish(tmp_path, monkeypatch):
    name = f"tasks_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(TASKS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(factory, *options, out="run", steps="12"):
        chosen = ["--steps", steps] if steps else []
        return CliRunner().invoke(app, ["finish", f"{name}:{factory}", "--out", out, *chosen, *options])

    return run


def test_a_dict_of_arguments_is_finished_and_said_in_lines(finish, tmp_path):
    result = finish("good")
    assert result.exit_code == 0, result.output
    lines = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in result.output.splitlines()]
    assert lines[0] == "setting up: the held-out loss as it is, and who can take part"
    assert "these take part: fast, slow" in lines
    assert "slow is out: others had a lower held-out loss" in lines
    assert "fast goes on" in lines
    assert any(line.startswith("fast took the held-out loss from") for line in lines)
    assert "The model's state is run/best.pt, the page run/index.html." in lines
    assert (tmp_path / "run" / "index.html").is_file()
    again = finish("good")
    assert again.exit_code == 0
    assert "run is finished; no step is taken" in again.output
    assert again.output.splitlines()[2:] == result.output.splitlines()[-len(again.output.splitlines()) + 2 :]


@pytest.mark.parametrize(("factory", "rows"), [("parts", "180"), ("ready", "200")])
def test_a_tuple_or_an_objective_will_do(finish, factory, rows, tmp_path):
    result = finish(factory, "--json", steps="3")
    assert result.exit_code == 0, result.output
    assert "these take part: base" in result.stderr
    found = json.loads(result.stdout)
    assert found["loss"] <= found["start"]
    assert (found["unit"], found["spent"], found["folder"]) == ("steps", 3, "run")
    assert found["verdict"]
    assert json.loads((tmp_path / "run" / "events.json").read_text())["phase"] == "done"
    assert torch.load(tmp_path / "run" / "best.pt").keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}


REFUSED = {
    "mistaken": "gives 'modle', which finish does not take; it takes model, loss, data",
    "timed": "gives 'seconds', which the command line says: leave it out of the dict",
    "headless": "gives no 'model'",
    "pair": "must return a dict of the arguments of latephase.finish, (model, loss, data) or an Objective; got tuple",
    "number": "got int",
    "broken": "fails: RuntimeError: no such file",
    "absent": "has no function 'absent'; it has",
    "spoilt": "held-out loss of the model is nan, not all values of 0.weight are finite",
}


@pytest.mark.parametrize("factory", REFUSED)
def test_what_will_not_do_has_status_2_and_a_line(finish, factory, tmp_path):
    result = finish(factory)
    assert result.exit_code == 2
    assert REFUSED[factory] in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "run" / "best.pt").exists()


def test_both_budgets_are_refused(finish):
    result = finish("good", "--seconds", "3")
    assert result.exit_code == 2
    assert "give seconds or steps, not both" in result.output


def test_another_budget_in_the_folder_is_refused(finish):
    assert finish("good").exit_code == 0
    result = finish("good", steps="13")
    assert result.exit_code == 2
    assert "its budget: 12 steps there, 13 steps here" in result.output


def test_a_folder_that_cannot_be_made_has_status_1(finish, tmp_path):
    (tmp_path / "file").write_text("")
    result = finish("good", out="file/run")
    assert result.exit_code == 1
    assert "file/run" in result.output


def test_the_bar_says_who_is_at_work_the_loss_and_what_is_left():
    import io

    from rich.console import Console
    from small_tasks import quick

    import latephase
    from latephase.finishing import FinishProgress

    console = Console(file=io.StringIO(), force_terminal=True, width=140)
    with FinishProgress(console) as shown:
        latephase.finish(**quick(steps=40), say=shown.say, watch=shown.watch)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())
    assert "these take part: fast, slow" in text
    assert re.search(r"done: fast .*held-out loss 0\.\d+ \(fast\)", text)
