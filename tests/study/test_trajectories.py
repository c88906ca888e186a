"""Neither warm-up nor evaluation touches what a strategy does, and all start from the same bits."""

import functools

import pytest
import torch
from every_kind import TABLES, bits, context_at, run_states, strategy_named
from small_studies import study_of

from latephase.problems import get
from latephase.records.files import read_journal, read_json
from latephase.study.performing import active_run
from latephase.study.performing.checkpoint import checkpoint_path, load_checkpoint
from latephase.study.performing.evaluate import Evaluator
from latephase.study.performing.train import train
from latephase.study.strategies import copied, start_strategy


@pytest.fixture(scope="module")
def study():
    return study_of(*TABLES, seeds=[0])


@pytest.fixture(scope="module")
def trained(study, tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained")
    train(directory, study)
    return directory


@pytest.fixture(scope="module")
def context_of(study, trained):
    return functools.partial(context_at, study, trained)


SAME_CODE = ("own-batch", "layers", "late", "all-rows", "lbfgs-all", "sgdqlr", "tenth")
"""Strategies that differ from others in what an optimizer is given."""
CURVED = ("hf", "part", "adamqlr", "chain")


@pytest.mark.parametrize("name", [table["name"] for table in TABLES if table["name"] not in SAME_CODE])
def test_neither_warm_up_nor_evaluation_changes_a_trajectory_bit_for_bit(study, trained, tmp_path, monkeypatch, name):
    strategy = strategy_named(study, name)
    checkpoint = load_checkpoint(checkpoint_path(trained, 3))
    seldom, rows = run_states(study, trained, tmp_path, strategy, monkeypatch, 2)
    often, more_rows = run_states(study, trained, tmp_path, strategy, monkeypatch, 8)
    assert seldom[0] == bits(checkpoint["model"])
    assert seldom == {step: often[step] for step in seldom}
    assert rows == [row for row in more_rows if row["step"] in seldom]
    assert often[8] != often[0]
    # Without any, curvature would be traced later, and rounded otherwise until then.
    monkeypatch.setattr(active_run, "WARM_UP_STEPS", 6 if name in CURVED else 0)
    assert run_states(study, trained, tmp_path, strategy, monkeypatch, 2)[0] == seldom


@pytest.mark.parametrize("name", [table["name"] for table in TABLES])
def test_a_strategy_starts_from_the_same_bits_whatever_ran_before(study, context_of, name):
    strategy, context = strategy_named(study, name), context_of()
    saved = bits(context.checkpoint)
    seen = []
    for _ in range(2):
        started = start_strategy(strategy, context)
        optimizer = getattr(started, "_optimizer", None)
        seen.append(
            (
                bits(copied(started.held())),
                bits(torch.get_rng_state()),
                bits(optimizer.state_dict()["state"]) if optimizer is not None else None,
                [module.training for module in context.model.modules()],
                [p.grad for p in context.model.parameters()],
            )
        )
        for share in (0.0, 0.3, 0.6, 0.6):
            started.step(share)
    assert seen[0] == seen[1]
    assert seen[0][0] == saved["model"]
    assert bits(context.checkpoint) == saved  # momentum buffers are changed in place


def test_evaluation_with_random_numbers_leaves_the_generator_alone_and_repeats_itself():
    problem = get("small_problems:draws_in_eval")
    model = problem.model()
    evaluate = Evaluator(problem, model, problem.load())
    before = torch.get_rng_state()
    assert evaluate(model.state_dict()) == evaluate(model.state_dict())
    assert torch.equal(torch.get_rng_state(), before)


def test_what_a_run_says_of_itself(study, trained, tmp_path, monkeypatch):
    run_states(study, trained, tmp_path, strategy_named(study, "hf"), monkeypatch, 4)
    (folder,) = tmp_path.glob("hf-*/runs/*")
    run, status = read_json(folder / "run.json"), read_json(folder / "status.json")
    assert run["kind"] == "hessian_free"
    assert (run["unit"], run["budget"], run["seed"], run["checkpoint_epoch"]) == ("steps", 8, 0, 3)
    assert status["cold_seconds"] == pytest.approx(status["scored_seconds"] + status["warmup_seconds"])
    assert status["warmup_seconds"] > 0
    assert (status["steps"], status["spent"], status["overshoot"]) == (8, 8.0, 0.0)
    clocks = read_journal(folder / "clocks.jsonl")
    rows = [row for row in read_journal(folder / "rows.jsonl") if row["event"] == "evaluation"]
    assert [(c["spent"], c["step"]) for c in clocks] == [(r["spent"], r["step"]) for r in rows]
    assert clocks[-1]["scored_seconds"] == status["scored_seconds"]
