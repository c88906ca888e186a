"""First-order optimizers beyond SGD and Adam: those of torch and of other packages, as they are by hand."""

import sys

import pytest
import torch
from every_kind import bits, context_at
from small_studies import first_order, study_of

from latephase.optim.fresh_optimizers import MuonAndAdamW
from latephase.study.config import ConfigError
from latephase.study.performing.train import train
from latephase.study.strategies import copied, start_strategy


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained")
    train(directory, study_of(first_order(), seeds=[0]))
    return directory


def adamw(parameters, lr, **options):
    return [torch.optim.AdamW(parameters, lr=lr, **options)]


def muon(parameters, lr, adamw=None, **options):
    shared, parameters = {"lr": lr, "weight_decay": 0.1}, list(parameters)
    matrices = [p for p in parameters if p.dim() == 2]
    others = [p for p in parameters if p.dim() != 2]
    found = torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **(shared | options))
    return [found, torch.optim.AdamW(others, **(shared | (adamw or {})))]


def soap(parameters, lr, **options):
    return [sys.modules["pytorch_optimizer"].SOAP(parameters, lr=lr, **options)]


def schedule_free(parameters, lr, **options):
    found = sys.modules["schedulefree"].AdamWScheduleFree(parameters, lr=lr, **options)
    found.train()
    return [found]


@pytest.mark.parametrize(("make", "package", "lr", "published", "options"), [
    (adamw, "torch", None, 1e-3, {"weight_decay": 0.3, "betas": [0.8, 0.9]}),
    (muon, "torch", 0.02, 1e-3, {"momentum": 0.8, "adamw": {"weight_decay": 0.0, "eps": 1e-6}}),
    (muon, "torch", None, 1e-3, {}),
    (soap, "pytorch_optimizer", None, 3e-3, {"precondition_frequency": 2, "weight_decay": 0.0}),
    (schedule_free, "schedulefree", None, 2.5e-3, {"warmup_steps": 2}),
])  # fmt: skip
def test_it_is_the_optimizer_by_hand_at_its_published_rate(trained, make, package, lr, published, options):
    pytest.importorskip(package, reason="of an optional package")
    given = {"options": options} | ({} if lr is None else {"lr": lr})
    study = study_of(first_order(name="own", optimizer=make.__name__, **given), seeds=[0])
    context, by_hand = (context_at(study, trained) for _ in range(2))
    strategy = start_strategy(study.strategies[0], context)
    assert strategy.lr == (lr or published)
    for i in range(5):
        strategy.step(i / 5)
    by_hand.model.load_state_dict(by_hand.checkpoint["model"])
    torch.manual_seed(by_hand.seed)
    optimizers = make(by_hand.model.train().parameters(), lr or published, **options)
    batches = by_hand.epochs()
    for _ in range(5):
        next(batches)[0]()
        for optimizer in optimizers:
            optimizer.step()
    assert bits(copied(context.model.state_dict())) == bits(copied(by_hand.model.state_dict()))
    assert context.work.gradients == 5 * 24


def test_a_schedule_moves_the_rate_of_muon_and_of_adamw(trained):
    study = study_of(first_order("linear", optimizer="muon", lr=0.02), seeds=[0])
    strategy = start_strategy(study.strategies[0], context_at(study, trained))
    strategy.step(0.25)
    assert [group["lr"] for each in strategy._optimizer._both for group in each.param_groups] == [0.015, 0.015]


def test_a_model_may_have_no_matrix_or_nothing_else():
    matrix, vector = (torch.ones(shape, requires_grad=True) for shape in ((2, 2), (2,)))
    for only in (matrix, vector):
        optimizer = MuonAndAdamW([only], weight_decay=0.0)
        only.grad = torch.ones_like(only)
        assert optimizer.step() is None
        assert bool((only < 1).all())


@pytest.mark.parametrize(("changes", "said"), [
    ({"optimizer": "muon", "options": {"momentun": 0.9}}, "did you mean 'momentum'"),
    ({"optimizer": "muon", "options": {"adamw": {"lr": 0.1}}}, "there is one rate for both"),
    ({"optimizer": "muon", "options": {"adamw": {"betas": 0.1}}}, "options: MuonAndAdamW does not take them"),
    ({"optimizer": "muon", "options": {"adjust_lr_fn": "mine"}}, "mine"),
    ({"optimizer": "adamw", "options": {"lr": 0.1}}, "give lr beside the options"),
    ({"optimizer": "adamw", "options": {"momentum": 0.1}}, "'momentum' is no option of AdamW"),
    ({"optimizer": "schedule_free", "schedule": "cosine"}, 'goes with schedule = "constant", got "cosine"'),
    ({"optimizer": "sopa"}, "did you mean 'soap'"),
])  # fmt: skip
def test_what_is_wrong_is_named(changes, said):
    if changes["optimizer"] == "schedule_free":
        pytest.importorskip("schedulefree", reason="of an optional package")
    with pytest.raises(ConfigError, match=said):
        study_of(first_order(**changes))


@pytest.mark.parametrize(("optimizer", "module", "package"), [
    ("soap", "pytorch_optimizer", "pytorch-optimizer"),
    ("schedule_free", "schedulefree", "schedulefree"),
])  # fmt: skip
def test_a_package_that_is_not_there_is_named_with_what_brings_it(monkeypatch, optimizer, module, package):
    monkeypatch.setitem(sys.modules, module, None)  # as Python marks a module that cannot be imported
    with pytest.raises(ConfigError, match=rf'{package}, which cannot be imported .*"latephase\[contestants\]"'):
        study_of(first_order(optimizer=optimizer))
