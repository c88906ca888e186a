"""States without options that came later, and dampings; damaged states: test_saved_states."""

import copy
import math

import pytest
import torch
from torch import nn

from latephase import CG, KFAC, SGDQLR, AdamQLR, DecreasingLoss, HessianFree, Objective, QuadraticLearningRate
from latephase.solve import levenberg_marquardt

X, Y = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3


def trained(make, steps: int = 3):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    optimizer = make(model.parameters())
    for _ in range(steps):
        optimizer.step(Objective(model, nn.CrossEntropyLoss(), (X, Y)))
    return model, optimizer


MAKERS = {
    "hessian_free": HessianFree,
    "nystrom": lambda params: HessianFree(params, solver=CG(preconditioner="nystrom")),
    "kfac": KFAC,
    "adam_qlr": AdamQLR,
    "sgd_qlr": SGDQLR,
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_state_from_before_an_option_existed_loads_and_goes_on_alike(name):
    model, optimizer = trained(MAKERS[name])
    saved = copy.deepcopy(optimizer.state_dict())
    saved.pop("version", None)
    for group in saved["param_groups"]:
        for option in ("debias", "solver", "exact_momentum", "factors", "lr_clip"):
            group.pop(option, None)
    other = copy.deepcopy(model)
    resumed = MAKERS[name](other.parameters())
    resumed.load_state_dict(saved)
    for one, its in ((model, optimizer), (other, resumed)):
        torch.manual_seed(1)
        for _ in range(2):
            its.step(Objective(one, nn.CrossEntropyLoss(), (X, Y)))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)  # float32; one is traced where the other is not


@pytest.mark.filterwarnings("ignore:Linear is not traced")
def test_dampings_stay_where_they_can_come_back_from():
    with pytest.raises(ValueError, match=r"LevenbergMarquardt.factors"):
        KFAC(nn.Linear(2, 2).parameters(), damping={"factors": (1e-200, math.inf)})
    torch.manual_seed(0)
    model = nn.Linear(4, 3)

    def rising(outputs, targets):  # every step makes it worse
        rising.calls += 1
        return outputs.square().mean() * 2.0**rising.calls

    rising.calls = 0
    optimizer = SGDQLR(model.parameters(), damping={"initial": 1e29, "factors": (0.5, 1e6)})
    for _ in range(6):
        optimizer.step(Objective(model, rising, (X, Y)))
        assert math.isfinite(optimizer.damping)


def test_a_value_needs_no_gradient_and_is_there_in_inference_mode():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    objective = Objective(model, nn.MSELoss(), (torch.randn(5, 3), torch.randn(5, 2)))
    with torch.inference_mode():
        inside = float(objective.value())
        with pytest.raises(RuntimeError, match="inference mode"):
            objective()
    assert inside == float(objective.value())


def test_a_damping_that_falls_stays_where_it_can_rise_again():
    assert levenberg_marquardt(1e-10, 1.0, factors=(1e-200, 1e200)) == 1e-30
    assert levenberg_marquardt(0.0, 1.0) == 0
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    base = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer = QuadraticLearningRate(base, damping=DecreasingLoss(1e-3, factors=(1e-200, 1e200)))
    for _ in range(4):
        optimizer.step(Objective(model, nn.CrossEntropyLoss(), (X, Y)))
        assert optimizer.damping > 0
