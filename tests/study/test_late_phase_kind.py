"""The hand-over as a strategy: what it holds, what it trains on, and what it is told of the budget."""

import pytest
import torch
from every_kind import context_at
from small_studies import study_of
from strategy_contract import trained

from latephase import problems
from latephase.study.config import ConfigError
from latephase.study.performing.active_run import budget_of
from latephase.study.strategies import StrategyContext, start_strategy
from latephase.study.strategies.late_phase import OneList, OtherRows

__all__ = ["trained"]
TABLE = {"kind": "late_phase", "name": "hand-over", "label": "LatePhase", "held_out": 0.25}


@pytest.fixture
def started(trained):
    study = study_of(TABLE, seeds=[0])
    context = context_at(study, trained)
    context.budget = (40.0, "steps")
    return start_strategy(study.strategies[0], context), context


def test_what_is_held_has_the_lowest_held_out_loss_of_all_that_was_scored(started):
    strategy, _ = started
    while strategy._late.phase != "done":
        strategy.step(0.0)
    losses = [event["loss"] for event in strategy._late.events if event["loss"] is not None]
    strategy.model.load_state_dict(strategy.held())
    strategy.model.eval()
    shares = [chunk.rows for part in strategy._source.held_out for chunk in part.chunks]
    total = sum(float(part.value()) * n for part, n in zip(strategy._source.held_out, shares, strict=True)) / sum(
        shares
    )
    assert total == pytest.approx(min(losses), rel=1e-6)  # float32 sums of ten parts
    assert strategy.step(1.0) == {"phase": "done"}


def test_held_out_rows_are_trained_on_by_nobody(started):
    strategy, context = started
    source = strategy._source
    assert isinstance(source, OtherRows)
    held_out = torch.cat([part.chunks[0].targets for part in source.held_out])
    assert len(held_out) + source.rows == context.rows
    rows = set(source._rows.tolist())
    assert len(rows) == source.rows == round(0.75 * context.rows)


def test_a_list_of_batches_is_one_objective_scored_on_points_drawn_anew():
    problem = problems.get("pinn_convection", width=4, points=30)
    splits = problem.load()
    context = StrategyContext(problem, splits, problem.model(), problem.training, {}, 3, budget=(5.0, "steps"))
    source = OneList(context)
    (held_out,) = source.held_out
    one, other = source.draw(None, 1)[0].chunks[0].inputs["interior"], held_out.chunks[0].inputs["interior"]
    assert one.shape == other.shape == (30, 2)
    assert not torch.equal(one, other)
    assert source.deterministic


@pytest.mark.parametrize(
    ("unit", "clock", "told"),
    [
        ("seconds", "wall", (3.0, "seconds")),
        ("seconds", "process", (3.0, "processor_seconds")),
        ("steps", "wall", (3.0, "steps")),
        ("gradients", "wall", None),
    ],
)
def test_it_is_told_of_the_budget_in_units_that_it_can_count(unit, clock, told):
    study = study_of(TABLE, budget={"unit": unit, "amount": 3.0}, clock=clock)
    assert budget_of(study, 3.0) == told


def test_a_budget_in_gradients_is_refused(trained):
    study = study_of(TABLE, seeds=[0])
    context = context_at(study, trained)
    context.budget = None
    with pytest.raises(ValueError, match="seconds or in steps"):
        start_strategy(study.strategies[0], context)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"options": {"shares": 1}}, "Halving"), ({"options": {"share": 2.0}}, "share"), ({"held_out": 1.0}, "held_out")],
)
def test_what_will_not_do_is_refused_in_words(wrong, says):
    with pytest.raises(ConfigError, match=says):
        study_of(TABLE | wrong)


def test_it_is_no_part_of_a_chain():
    parts = [{"until": 0.5, "strategy": TABLE}, {"until": 1.0, "strategy": TABLE}]
    with pytest.raises(ConfigError, match="late_phase"):
        study_of({"kind": "chain", "name": "c", "label": "c", "parts": parts})
