"""Studies whose strategies start from the initialisation, and Hessian-free with several blocks."""

import pytest
import torch
from small_problems import noisy
from small_studies import first_order, hessian_free, performed, rows_of, statuses_of, study_of
from test_config import MINIMAL

from latephase.records.drawing import house_style
from latephase.study.config import ConfigError, parse_study, read_study, scaled, with_seconds
from latephase.study.page.figures import build
from latephase.study.performing.checkpoint import checkpoint_path, load_checkpoint
from latephase.study.results.load import load_results

STRATEGIES = (
    first_order(),
    hessian_free(name="layers", blocks="layerwise"),
    hessian_free(name="fixed", blocks="layerwise", preset="fixed_rate", options={"lr": 0.1, "solver": {"max_iter": 4}}),
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    study = study_of(*STRATEGIES, checkpoints=[0, 1], budget={"unit": "gradients", "amount": 20}, seeds=[0])
    with pytest.MonkeyPatch.context() as patch:
        directory = tmp_path_factory.mktemp("initial") / "study"
        assert performed(study, directory, patch) == []
    return directory


def test_checkpoint_zero_is_the_initialisation(directory):
    state = load_checkpoint(checkpoint_path(directory, 0))
    torch.manual_seed(study_of(*STRATEGIES).training.seed)
    fresh = noisy().model()
    assert (state["epoch"], state["steps"], state["seconds"]) == (0, 0, 0.0)
    assert all(torch.equal(state["model"][name], tensor) for name, tensor in fresh.state_dict().items())


def test_all_strategies_start_there(directory):
    rows = {name: rows for name, rows in rows_of(directory).items() if name.startswith("checkpoint-0000")}
    assert len(rows) == 3
    starts = [next(row for row in run if row["event"] == "evaluation") for run in rows.values()]
    assert len({row["train_loss"] for row in starts}) == 1
    assert {status["status"] for status in statuses_of(directory).values()} == {"finished"}


def test_a_lost_initialisation_is_made_again(directory, monkeypatch):
    path = checkpoint_path(directory, 0)
    before = load_checkpoint(path)["model"]
    path.unlink()
    study = study_of(*STRATEGIES, checkpoints=[0, 1], budget={"unit": "gradients", "amount": 20}, seeds=[0])
    assert performed(study, directory, monkeypatch) == []
    after = load_checkpoint(path)["model"]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_blocks_are_reported_and_drawn_over_updates(directory):
    results = load_results(directory)
    steps = [run.steps for run in results.runs if run.strategy.name == "layers"]
    assert steps
    assert all(len(step["block_methods"]) > 1 for run in steps for step in run)
    with house_style():
        names = [name for name, _ in build(results)]
    assert {"updates-0000", "updates-0001", "budget-0000"} <= set(names)


def test_submodules_can_be_blocks():
    blocks = ["encoder", "decoder"]
    strategies = [strategy for strategy in read_study("block-autoencoder").strategies if strategy.name == "halves-8"]
    assert [strategy.blocks for strategy in strategies] == [blocks]


def test_scaling_keeps_the_initialisation():
    table = MINIMAL | {"training": {"epochs": 100}, "checkpoints": [0, 50, 100]}
    assert scaled(parse_study(table, "minimal"), 0.1).checkpoints == [0, 10]
    assert scaled(parse_study(table | {"checkpoints": [0]}, "minimal"), 0.1).checkpoints == [0]


def test_seconds_take_the_place_of_the_budget():
    study = with_seconds(parse_study(MINIMAL, "minimal"), 2.5)
    assert (study.budget.unit, study.budget.amount, study.budget.share) == ("seconds", 2.5, None)
    with pytest.raises(ConfigError, match="seconds must be a finite number above 0, got -1"):
        with_seconds(study, -1)
