"""A step that raises, wherever it does, leaves everything bit for bit, and the next try is as good as the first."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from latephase import (
    CG,
    KFAC,
    SGDQLR,
    AdamQLR,
    Direct,
    Fixed,
    GaussNewton,
    HessianFree,
    Objective,
    SelfScaledBroyden,
)
from latephase.curvature.tracing import cache as traces


class Interrupted(Exception):
    """Raised in the middle of a step."""


class Watched(nn.Module):
    """Dropout, batch norm, and an exception at a given pass, forward or backward."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x):
        Fault.count()
        h = self.dropout(torch.tanh(self.norm(self.first(x))))
        if h.requires_grad:
            h.register_hook(Fault.backward)
        return self.last(h)


class Fault:
    """Counts passes, and raises at one of them."""

    left: int | None = None
    kind: type[BaseException] = Interrupted
    passes = 0

    @classmethod
    def count(cls) -> None:
        cls.passes += 1
        if cls.left is not None:
            cls.left -= 1
            if cls.left < 0:
                raise cls.kind

    @classmethod
    def backward(cls, gradient):
        cls.count()
        return gradient


MAKERS = {
    "hessian_free": HessianFree,
    "fisher": lambda params: HessianFree(params, solver=CG(preconditioner="empirical_fisher")),
    "nystrom": lambda params: HessianFree(params, solver=CG(preconditioner="nystrom")),
    "blocks": lambda params: HessianFree(
        [{"params": [p]} for p in params], blocks=True, curvature="ggn", solver=CG(max_iter=5)
    ),
    "gauss_newton": GaussNewton,
    "spring": lambda params: GaussNewton(params, momentum=0.5, damping=Fixed(0.1), lr=0.1),
    "kfac": KFAC,
    "adam_qlr": AdamQLR,
    "sgd_qlr": SGDQLR,
    "self_scaled_broyden": SelfScaledBroyden,
}


def start(name):
    Fault.left = None
    torch.manual_seed(0)
    model = Watched().double()
    if name in ("gauss_newton", "spring"):  # the running statistics: those of a batch leave no rows
        model.norm.eval()
    optimizer = MAKERS[name](model.parameters())
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.arange(9) % 3
    return model, optimizer, lambda: Objective(model, nn.CrossEntropyLoss(), (x, y))


def everything(model, optimizer):
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    return (
        copy.deepcopy(model.state_dict()),
        copy.deepcopy(optimizer.state_dict()),
        grads,
        torch.get_rng_state(),
        optimizer.report,
        [module.training for module in model.modules()],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        len(traces._entries.get(model, {})),
    )


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(x, y) for x, y in zip(one, other, strict=True))
    return one == other


@pytest.mark.parametrize("kind", [Interrupted, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("begun", [0, 2])
@pytest.mark.parametrize("name", MAKERS)
def test_an_exception_at_any_pass_leaves_everything(name, begun, kind):
    model, optimizer, objective = start(name)
    for _ in range(begun):
        optimizer.step(objective())
    undisturbed = copy.deepcopy((model.state_dict(), optimizer.state_dict(), torch.get_rng_state()))
    before = everything(model, optimizer)
    Fault.kind, raised, k = kind, 0, 0
    while True:
        given = objective()  # one objective for both tries: its own seed must go back, too
        Fault.left = k
        try:
            optimizer.step(given)
        except kind:
            raised += 1
            Fault.left = None
            assert same(before, everything(model, optimizer)), f"pass {k}"
        else:
            break
        k += 1 if k < 6 else 5
        assert k < 400
    assert raised
    # The try that went through, after all those that did not, is the step that none of them had disturbed.
    after = everything(model, optimizer)
    other, its, its_objective = start(name)
    for _ in range(begun):
        its.step(its_objective())
    assert same(undisturbed, (other.state_dict(), its.state_dict(), torch.get_rng_state()))
    its.step(its_objective())
    assert same(after[:2], everything(other, its)[:2])
    assert same(after[3], torch.get_rng_state())


@pytest.mark.parametrize("name", [name for name in MAKERS if name not in ("gauss_newton", "spring")])
def test_a_buffer_that_cannot_be_written_is_named_and_nothing_moves(name):
    model, optimizer, objective = start(name)
    model.norm.running_mean = torch.zeros(1, dtype=torch.float64).expand(6)
    before = everything(model, optimizer)
    with pytest.raises((ValueError, RuntimeError)):
        optimizer.step(objective())
    assert same(before, everything(model, optimizer))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_below_the_rounding_of_the_parameters_is_none(dtype):
    torch.manual_seed(0)
    model = nn.Linear(4, 3).to(dtype)
    x, y = torch.randn(9, 4).to(dtype), torch.arange(9) % 3
    before = copy.deepcopy(model.state_dict())
    for optimizer in (
        HessianFree(model.parameters(), solver=CG(max_step_norm=1e-12)),
        GaussNewton(model.parameters(), solver=Direct(max_step_norm=1e-12)),
        AdamQLR(model.parameters(), lr_clip=1e-14),
        SGDQLR(model.parameters(), lr_clip=1e-14),
    ):
        optimizer.step(Objective(model, nn.CrossEntropyLoss(), (x, y)))
        report = optimizer.report
        assert (report.status, report.accepted, report.step_norm, report.lr) == ("stationary", False, 0.0, 0.0)
        assert same(before, model.state_dict())


def test_the_length_of_a_step_is_that_of_the_parameters_as_they_are_stored():
    torch.manual_seed(0)
    model = nn.Linear(4, 3).to(torch.bfloat16)
    x, y = torch.randn(9, 4).to(torch.bfloat16), torch.arange(9) % 3
    for optimizer in (HessianFree(model.parameters(), damping=300.0), SGDQLR(model.parameters(), damping=300.0)):
        before = torch.cat([p.detach().float().flatten() for p in model.parameters()])
        optimizer.step(Objective(model, nn.CrossEntropyLoss(), (x, y)))
        moved = torch.cat([p.detach().float().flatten() for p in model.parameters()]) - before
        assert optimizer.report.step_norm == pytest.approx(float(moved.norm()), rel=1e-5)


def test_a_base_that_only_sets_up_in_its_first_step_moves_in_its_second():
    class Late(torch.optim.SGD):
        """As optimizers do that estimate first and step afterwards."""

        def step(self, closure=None):
            for p in (p for group in self.param_groups for p in group["params"]):
                if "ready" in self.state[p]:
                    p.data.add_(p.grad, alpha=-self.param_groups[0]["lr"])
                self.state[p]["ready"] = True

    from latephase import QuadraticLearningRate

    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = QuadraticLearningRate(Late(model.parameters(), lr=1.0))
    objective = Objective(model, nn.CrossEntropyLoss(), (torch.randn(9, 4), torch.arange(9) % 3))
    optimizer.step(objective)
    assert optimizer.report.status == "stationary"
    optimizer.step(objective)
    assert optimizer.report.accepted


class Draws(nn.Module):
    """Draws from every generator that a model may have, and fails at its second call."""

    def __init__(self):
        super().__init__()
        self.inner, self.own, self.calls = nn.Linear(2, 2), torch.Generator().manual_seed(0), 0

    def forward(self, x):
        self.calls += 1
        torch.rand(1, generator=self.own)
        x = x + 0 * (random.random() + np.random.rand())  # noqa: NPY002
        if self.calls == 2:
            raise FloatingPointError
        return self.inner(x)


@pytest.mark.parametrize("optimizer", [HessianFree, GaussNewton, AdamQLR, SGDQLR])
def test_a_step_that_fails_leaves_all_generators(optimizer):
    model = Draws()
    objective = Objective(model, nn.MSELoss(), (torch.ones(3, 2), torch.zeros(3, 2)))
    before = random.getstate(), str(np.random.get_state()), model.own.get_state()  # noqa: NPY002
    with pytest.raises(FloatingPointError):
        optimizer(model.parameters()).step(objective)
    assert random.getstate() == before[0]
    assert str(np.random.get_state()) == before[1]  # noqa: NPY002
    assert torch.equal(model.own.get_state(), before[2])


OVERFLOWING = {
    "HessianFree": lambda model: HessianFree(
        model.parameters(), damping=0.0, line_search=False, solver=CG(candidates="last")
    ),
    "GaussNewton": lambda model: GaussNewton(model.parameters(), damping=Fixed(1e-9)),
    "KFAC": lambda model: KFAC(model.parameters(), lr=1.0, momentum=0.0, damping=Fixed(1e-6)),
    "SGDQLR": lambda model: SGDQLR(model.parameters(), damping=Fixed(0.0)),
}


@pytest.mark.parametrize("name", OVERFLOWING)
def test_a_step_that_does_not_fit_in_the_parameters_dtype_is_none(name, unchanged):
    model = nn.Linear(1, 1, bias=False).half()
    nn.init.ones_(model.weight)
    # The minimum is at 1e6, and float16 ends at 65,504.
    inputs, targets = torch.full((4, 1), 1e-2).half(), torch.full((4, 1), 1e4).half()
    optimizer = OVERFLOWING[name](model)
    with unchanged(model):
        optimizer.step(Objective(model, nn.MSELoss(), (inputs, targets)))
    assert str(optimizer.report.status) == "nonfinite"
    assert not optimizer.report.accepted
