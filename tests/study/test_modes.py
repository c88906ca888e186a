"""The mode of a strategy's model: whether dropout draws and statistics move; contestants of the hand-over by name."""

import pytest
import torch
from every_kind import bits, context_at
from small_studies import first_order, hessian_free, study_of

from latephase.study.config import ConfigError
from latephase.study.performing.train import train
from latephase.study.strategies import copied, start_strategy

HAND_OVER = {"kind": "late_phase", "name": "hand-over", "label": "LatePhase", "held_out": 0.25}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained")
    train(directory, study_of(first_order(), seeds=[0]))
    return directory


def walked(trained, strategy, steps=3):
    """The state dict after some steps, the statistics before them, and whether torch's generator moved."""
    study = study_of(strategy, seeds=[0])
    context = context_at(study, trained)
    started = start_strategy(study.strategies[0], context)
    before, random = copied(context.model.state_dict()), torch.get_rng_state()
    for step in range(steps):
        started.step(step / steps)
    after = copied(context.model.state_dict())
    moved = any(bits(before[name]) != bits(after[name]) for name in after if "running" in name)
    return after, moved, not torch.equal(random, torch.get_rng_state())


def test_a_schedule_in_eval_mode_is_the_optimizer_by_hand_on_a_frozen_model(trained):
    after, moved, drawn = walked(
        trained, first_order("constant", mode="eval", optimizer="sgd", options={"momentum": 0.5})
    )
    assert not moved
    assert not drawn
    study = study_of(first_order(), seeds=[0])
    context = context_at(study, trained)
    context.model.load_state_dict(context.checkpoint["model"])
    optimizer = torch.optim.SGD(context.model.eval().parameters(), lr=study.training.lr, momentum=0.5)
    batches = context.epochs()
    for _ in range(3):
        optimizer.step(next(batches)[0])
    assert bits(after) == bits(copied(context.model.state_dict()))
    assert walked(trained, first_order())[1]


def test_second_order_steps_in_training_mode_move_statistics(trained):
    frozen, moved, _ = walked(trained, hessian_free())
    assert not moved
    training, moved, _ = walked(trained, hessian_free(mode="train"))
    assert moved
    assert bits(frozen["0.weight"]) != bits(training["0.weight"])


def test_contestants_of_the_hand_over_are_named(trained):
    study = study_of(HAND_OVER | {"contestants": ["cosine", "ema"]}, seeds=[0])
    context = context_at(study, trained)
    context.budget = (20.0, "steps")
    strategy = start_strategy(study.strategies[0], context)
    while strategy.step(0.0).get("phase") != "done":
        pass
    assert [each.name for each in strategy._late.contestants] == ["cosine", "ema"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (HAND_OVER | {"contestants": ["lbgfs"]}, "did you mean 'lbfgs'"),
        (HAND_OVER | {"contestants": ["ema", "ema"]}, "named twice"),
        (HAND_OVER | {"contestants": []}, "contestants"),
        (first_order(mode="evaluation"), "mode"),
    ],
)
def test_what_will_not_do_is_refused_in_words(changes, said):
    with pytest.raises(ConfigError, match=said):
        study_of(changes)
