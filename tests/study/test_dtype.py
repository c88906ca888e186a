"""The dtype of a study: rows against a plain loop in it, identities, and problems that do not follow."""

import json

import pytest
import torch
from rich.console import Console
from small_problems import smooth
from small_studies import custom, performed, rows_of, study_of, table
from torch import nn

from latephase.problems import get
from latephase.study.config import ConfigError, parse_study
from latephase.study.performing import StudyProgress
from latephase.study.performing.dtypes import called_in_dtype, in_dtype
from latephase.study.performing.identity import identity_of, training_identity

STEPS = 8


def study(**changes):
    settings = {"problem": "small_problems:smooth", "checkpoints": [0], "training": {"epochs": 1}, "seeds": [3]}
    return study_of(custom("Plain", lr=0.1), **(settings | changes))


def plain_loop(dtype):
    """Test and train loss at every second step of SGD, in nothing but torch."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        torch.manual_seed(0)  # of the training, whose initialisation the runs start from
        model = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1))
        splits = smooth().load()
        (x, y), (x_test, y_test) = ([t.to(dtype) for t in part] for part in (splits.train, splits.test))
        optimizer, loss, found = torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), []
        for step in range(STEPS + 1):
            if step % 2 == 0:
                found.append((loss(model(x), y).item(), loss(model(x_test), y_test).item()))
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
        return found
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-6)])
def test_rows_are_those_of_a_plain_loop_in_the_dtype(dtype, tolerance, tmp_path, monkeypatch):
    assert performed(study(dtype=dtype), tmp_path / "study", monkeypatch) == []
    expected = plain_loop(getattr(torch, dtype))
    rows = rows_of(tmp_path / "study")
    found = [
        (r["train_loss"], r["test_loss"]) for r in rows["checkpoint-0000_own_seed-3"] if r["event"] == "evaluation"
    ]
    assert found == [pytest.approx(pair, rel=tolerance, abs=0.0) for pair in expected]
    state = torch.load(tmp_path / "study" / "training" / "checkpoints" / "epoch-0000.pt", weights_only=True)
    assert {tensor.dtype for tensor in state["model"].values()} == {getattr(torch, dtype)}
    assert json.loads((tmp_path / "study" / "problem.json").read_text())["parameters"] == 21


def test_a_dtype_other_than_the_usual_one_is_part_of_identities_and_the_usual_one_is_not():
    old, same, other = study(), study(dtype="float32"), study(dtype="float64")
    assert training_identity(old) == training_identity(same) != training_identity(other)
    runs = [identity_of(each, each.strategies[0], 0, 3, 8.0) for each in (old, same, other)]
    assert runs[0] == runs[1] != runs[2]


def test_the_default_dtype_is_put_back_whatever_happens():
    wide = study(dtype="float64")
    assert called_in_dtype(wide, torch.get_default_dtype) == torch.float64
    with pytest.raises(ArithmeticError), in_dtype(wide):
        raise ArithmeticError
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("name", ["digits", "rosenbrock", "quadratic_deep", "rnn_xor", "rnn_addition"])
def test_data_and_models_of_our_problems_follow_the_dtype(name):
    problem = get(name)
    wide = study(dtype="float64")
    splits = called_in_dtype(wide, problem.load)
    model = called_in_dtype(wide, problem.model)
    with in_dtype(wide):
        loss = problem.objective(model, problem.batch(splits.train, slice(0, 4)))()
    assert loss.dtype == torch.float64


def test_bytes_become_float64_at_its_full_precision():
    from latephase.problems.augmentation import to_unit

    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(called_in_dtype(study(dtype="float64"), to_unit, pixels), torch.arange(256.0).double() / 255)
    assert torch.equal(to_unit(pixels), pixels.float() / 255)


def test_a_problem_that_does_not_follow_is_named():
    with pytest.raises(ConfigError, match=r"problem small_problems:smooth makes the parameter 0\.weight in float32"):
        study(dtype="float64", problem_options={"dtype": "float32"})
    study(problem_options={"dtype": "float32"})


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ConfigError, match=r"dtype: .*'float32' or 'float64'"):
        parse_study(study().model_dump() | {"dtype": "float16"}, "small")


@pytest.mark.slow
def test_trials_of_a_tuning_are_in_the_dtype_as_well(tmp_path):
    pytest.importorskip("optuna")
    from latephase.study.tune.conduct import tune
    from latephase.study.tune.config import parse_tuning

    search = {"search": {"options.lr": {"low": 0.01, "high": 0.5, "log": True}}}
    given = table(custom("Plain") | search, problem="small_problems:smooth", training={"epochs": 3}, dtype="float64")
    given["tune"] = {"trials": 2, "halving": {"rungs": 0}, "budget": {"unit": "steps", "amount": 4}}
    with StudyProgress(Console(quiet=True)) as progress:
        found = tune(parse_tuning(given, "small"), tmp_path, progress)
    values = [outcome.value for outcome in found]
    assert [outcome.outcome for outcome in found] == ["finished"] * 2
    assert not any(torch.tensor(value, dtype=torch.float32).double().item() == value for value in values)
