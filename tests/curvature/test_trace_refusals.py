"""What cannot be traced is not, and is computed otherwise."""

import random
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from dense_oracle import relative
from product_cases import REALS, TIGHT, VECTORS, randn, seeded
from torch import Tensor, nn
from trace_cases import OTHER, Calling, calling, compare, mlp, right, squared

from latephase import Objective
from latephase.curvature import linearize
from latephase.curvature.tracing import cache

pytestmark = pytest.mark.usefixtures("same_numbers")


UNTRACEABLE: dict[str, Callable[[Calling, Tensor], Tensor]] = {
    "branch": lambda self, h: torch.tanh(h) if h.sum() > 0 else torch.sin(h),
    "item": lambda self, h: h * h.detach().abs().max().item(),
    "float": lambda self, h: h * float(h.detach().mean()),
    "tolist": lambda self, h: h * h.detach().abs().amax(1).tolist()[0],
    "tolist_of_a_scalar": lambda self, h: h * h.detach().abs().amax().tolist(),
    "numpy": lambda self, h: h * float(h.detach().numpy().max()),
    "asarray": lambda self, h: h * float(np.asarray(h.detach()).max()),
    "from_numpy": lambda self, h: h * torch.from_numpy(np.abs(h.detach().numpy())),
    "boolean_mask": lambda self, h: h + h[h > 0].pow(2).sum(),
    "nonzero": lambda self, h: h + h[(h > 0).nonzero()[:, 0]].pow(2).sum(),
    "unique": lambda self, h: h * len(torch.unique(h.detach().round())),
    "python_random": lambda self, h: h * (1.0 + random.random()),
    "numpy_random": lambda self, h: h * (1.0 + np.random.rand()),  # noqa: NPY002
}


@pytest.mark.parametrize("name", UNTRACEABLE)
def test_what_cannot_be_traced_is_not(name):
    model = calling(UNTRACEABLE[name])
    reproducible = "random" not in name
    for step in range(5):
        inputs = randn(11, 4, seed=80 + step)
        objective = squared(model, inputs)
        random.seed(step)
        np.random.seed(step)  # noqa: NPY002
        one = linearize(objective)
        assert one.method != "traced"
        random.seed(step)
        np.random.seed(step)  # noqa: NPY002
        other = linearize(objective, method="double_backward")
        # The pass that looks whether it can be traced draws too, so that only the others can be compared.
        if reproducible or step != 1:
            compare(one, other)
    assert one.reason
    assert "first time" not in one.reason
    with pytest.raises(RuntimeError, match="traced"):
        linearize(objective, method="traced")


def test_an_objective_from_forward_is_never_traced():
    model = mlp()
    inputs = VECTORS

    def forward() -> tuple[Tensor, Tensor]:
        outputs = model(inputs)
        return (outputs - REALS).pow(2).mean(), outputs

    objective = Objective.from_forward(model, forward)
    for batch in (VECTORS, VECTORS, OTHER, VECTORS):
        inputs = batch
        linearization = right(objective)
        assert linearization.method != "traced"
    assert "from_forward" in str(linearization.reason)


def test_what_no_grad_made_is_a_constant():
    # torch's forward mode goes through no_grad, reverse mode does not; the Jacobian is that of reverse mode.
    def gated(self: Calling, h: Tensor) -> Tensor:
        with torch.no_grad():
            gate = torch.sigmoid(h)
        return h * gate

    model = calling(gated)
    for _ in range(4):
        right(squared(model))
    right(squared(calling(lambda self, h: h * torch.sigmoid(h).detach())))
    v = torch.ones(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    expected = linearize(squared(model), method="double_backward").matvec(v)
    for method in ("linearize", "traced"):
        try:
            product = linearize(squared(model), method=method).matvec(v)
        except RuntimeError:
            continue
        assert relative(product, expected) < TIGHT


def test_no_grad_where_tracing_pays_at_once(monkeypatch):
    # There the second method must not be one with the same error.
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.head = nn.Conv1d(1, 2, 3, padding=1), nn.Linear(8, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            h = self.convolution(inputs[:, None])
            with torch.no_grad():
                gate = torch.sigmoid(h)
            return self.head((h * gate).flatten(1))

    monkeypatch.setattr("latephase.curvature.eager.tangents.TRACE_PAYS", 1)
    objective = squared(seeded(Gated))
    for _ in range(3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            linearization = linearize(objective)
        compare(linearization, linearize(objective, method="double_backward"))


def test_an_attempt_that_fails_is_not_repeated_at_every_step(monkeypatch):
    tried = []

    def refuses(task):
        tried.append(len(tried))
        raise cache.CannotTrace("too much")

    described = cache.signature
    monkeypatch.setattr(cache, "signature", refuses)
    objective = squared(mlp())
    for uses, attempts in ((1, 1), (1, 1), (1, 2), (12, 4)):  # number 1, 3, 7 and 15
        for _ in range(uses):
            assert right(objective).reason == "too much"
        assert len(tried) == attempts
    with pytest.raises(RuntimeError, match="too much"):  # who asks for it is told what is so now
        linearize(objective, method="traced")
    assert len(tried) == 5
    other = Objective(objective.model, nn.L1Loss(), (VECTORS, REALS))
    assert linearize(other).reason == "too much"
    assert len(tried) == 6
    monkeypatch.setattr(cache, "signature", described)
    methods = [right(objective).method for _ in range(40)]
    assert methods[-1] == "traced"  # what was mended is found out
    assert methods.count("traced") > 5
