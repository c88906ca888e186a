"""Training data drawn anew every so many steps, of whichever kind the steps are."""

import dataclasses

import pytest
import torch
from every_kind import bits, context_at
from small_problems import noisy
from small_studies import first_order, hessian_free, study_of

from latephase.problems.sampling import Stream, generator
from latephase.study.config import ConfigError
from latephase.study.performing.train import train
from latephase.study.strategies import copied, start_strategy

KINDS = {
    "first_order": first_order(redraw=2),
    "whole": first_order(redraw=2, batch_size=96),
    "hessian_free": hessian_free(redraw=2),
    "gauss_newton": {"kind": "gauss_newton", "redraw": 2, "options": {"damping": 0.1}},
    "adamqlr": {"kind": "adamqlr", "redraw": 2, "batch_size": 48},
    "lbfgs": {"kind": "lbfgs", "redraw": 2, "options": {"max_iter": 2}},
    "self_scaled_broyden": {"kind": "self_scaled_broyden", "redraw": 2},
}
TABLES = [table | {"name": name.replace("_", "-"), "label": name} for name, table in KINDS.items()]


@pytest.fixture(scope="module")
def study():
    return study_of(*TABLES, seeds=[0])


@pytest.fixture(scope="module")
def trained(study, tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained")
    train(directory, study)
    return directory


def watched(context):
    """The training inputs that each batch is taken from, in order."""
    seen, make = [], context.problem.batch
    object.__setattr__(
        context.problem, "batch", lambda data, rows, random: (seen.append(data[0]), make(data, rows, random))[1]
    )
    return seen


@pytest.mark.filterwarnings("ignore:SelfScaledBroyden on parameters in torch.float32")
@pytest.mark.parametrize("number", range(len(TABLES)), ids=list(KINDS))
def test_every_second_step_has_data_of_its_own_of_whichever_kind(study, trained, number):
    context = context_at(study, trained)
    split, seen = context.splits.train, watched(context)
    strategy, batches = start_strategy(study.strategies[number], context), []
    for i in range(5):
        strategy.step(i / 5)
        batches.append(seen[-1])
        assert all(data is seen[-1] for data in seen[-(len(seen) // (i + 1)) :])
    fresh = [context.problem.redraw(generator(Stream.REDRAW, 7, step))[0] for step in (2, 4)]
    expected = [split[0], split[0], fresh[0], fresh[0], fresh[1]]
    assert [torch.equal(*pair) for pair in zip(batches, expected, strict=True)] == [True] * 5
    assert not torch.equal(*fresh)
    assert context.splits.train is split  # which the next start begins with
    assert strategy.context.work is context.work


def test_other_seeds_draw_other_data(study, trained):
    drawn = []
    for seed in (7, 7, 8):
        context = context_at(study, trained, seed=seed)
        context.redraw(2)
        drawn.append(context.splits.train[0])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_later_part_of_a_chain_begins_with_the_splits_data(trained):
    chain = {"kind": "chain", "name": "chain", "label": "chain"}
    chain["parts"] = [{"until": until, "strategy": first_order(redraw=1)} for until in (0.5, 1.0)]
    study = study_of(chain, seeds=[0])
    context = context_at(study, trained)
    split, seen = context.splits.train[0], watched(context)
    strategy = start_strategy(study.strategies[0], context)
    for share in (0.0, 0.25, 0.5, 0.75):
        strategy.step(share)
    assert [data is split for data in seen] == [True, False, True, False]
    assert not torch.equal(seen[1], seen[3])  # a part has a seed of its own
    assert study.strategies[0].warm_up_version().parts[0].strategy.redraw == 1


def test_before_its_first_turn_everything_is_as_without_it(study, trained):
    ends = []
    for table in (first_order("cosine"), first_order("cosine", redraw=100)):
        context = context_at(study, trained)
        strategy = start_strategy(study_of(table).strategies[0], context)
        for i in range(4):
            strategy.step(i / 4)
        ends.append(bits(copied(strategy.held())))
    assert ends[0] == ends[1]


def test_warming_up_draws_at_once_and_leaves_the_data_alone(study, trained):
    context = context_at(study, trained)
    split, seen = context.splits.train[0], watched(context)
    table = study.strategies[2].model_copy(update={"redraw": 1000})
    strategy = start_strategy(table.warm_up_version(), context)
    for _ in range(2):
        strategy.step(0.0)
    assert [data is split for data in seen] == [True, True, False, False]
    assert context.splits.train[0] is split


def test_a_problem_whose_data_is_fixed_is_named():
    with pytest.raises(
        ConfigError, match=r"strategy constant: redraw is 3, but the training data of small_problems:flat is fixed"
    ):
        study_of(first_order(redraw=3), problem="small_problems:flat", training={})
    part = {"until": 0.5, "strategy": hessian_free(redraw=1, batch_size=4, evaluation_batch_size=2)}
    chain = {"kind": "chain", "name": "c", "label": "c", "parts": [part, {"until": 1.0, "strategy": first_order()}]}
    with pytest.raises(ConfigError, match=r"strategy hf: redraw is 1"):
        study_of(chain, problem="small_problems:flat", training={})


@pytest.mark.parametrize(("redraw", "said"), [
    (None, "the training data of noisy is fixed"),
    (lambda random: (torch.zeros(5, 6), torch.zeros(5, dtype=torch.int64)), "gave 5 rows, .* split has 96"),
    (lambda random: (torch.zeros(96, 6),), "data of another form"),
    (lambda random: [(torch.zeros(96, 6), torch.zeros(96))], "data of another form"),
    (lambda random: (None, torch.zeros(96)), "data of another form"),
])  # fmt: skip
def test_data_of_another_form_is_refused(study, trained, redraw, said):
    context = context_at(study, trained)
    context.problem = dataclasses.replace(noisy(), redraw=redraw)
    with pytest.raises(ValueError, match=said):
        context.redraw(1)


def test_fresh_data_is_of_the_dtypes_of_the_former(study, trained):
    context = context_at(study, trained)
    scale = torch.tensor(0.5, dtype=torch.float64)
    part = {"points": torch.zeros(3, 2, dtype=torch.float64), "scale": scale}, torch.zeros(3, 1, dtype=torch.float64)
    fresh = {"points": torch.ones(3, 2), "scale": torch.tensor(0.25)}, torch.ones(3, 1)
    context.splits = dataclasses.replace(context.splits, train=[part, part])
    context.problem = dataclasses.replace(noisy(), redraw=lambda random: [fresh, fresh])
    context.redraw(1)
    (inputs, targets), _ = context.splits.train
    assert {inputs["points"].dtype, inputs["scale"].dtype, targets.dtype} == {torch.float64}
    assert inputs["points"].sum() == 6
    assert float(inputs["scale"]) == 0.25
