"""What K-FAC does with what is not finite, with bad arguments, and how its state is saved."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn

from latephase import DecreasingLoss, Fixed, KroneckerFactors, Objective
from latephase.optim import StepStatus
from latephase.optim.kfac import KFAC


@pytest.fixture(autouse=True)
def seeded():
    """K-FAC's signs come from torch's generator."""
    torch.manual_seed(0)


def cross_entropy(model, data, **options):
    return Objective(model, nn.CrossEntropyLoss(), data, **options)


def fields(optimizer):
    return optimizer.report.as_dict() | {"seconds": 0}


def barrier(function, start):
    """Least at 1, and not a number below 0."""
    return function(lambda x: ((x - x.log()).sum(), x), start)


def without_damping(state):
    """The state but for the damping, which a rejected step raises."""
    return {p: {key: value for key, value in entry.items() if key != "damping"} for p, entry in state.items()}


def test_a_step_to_a_loss_that_is_not_finite_is_refused(function, unchanged):
    point, objective = barrier(function, 3.0)
    optimizer = KFAC(point.parameters(), damping=1e-3, adapt_period=1)
    for _ in range(3):
        with unchanged(point):
            optimizer.step(objective)
        report = optimizer.report
        assert (report.status, report.accepted) == (StepStatus.NONFINITE, False)
        assert (report.lr, report.step_norm, report.new_loss) == (0.0, 0.0, report.loss)
        assert report.reduction_ratio == -math.inf
        assert optimizer.damping == pytest.approx(report.damping * 20 / 19, rel=1e-12)
    assert without_damping(optimizer.state) == {point.x: {}}
    optimizer.damping = 10.0
    optimizer.step(objective)
    assert optimizer.report.accepted
    assert float(point.x.detach()) > 0


def test_a_refused_step_keeps_what_was_carried(toy, unchanged):
    model, data = toy.network(), toy.batch()
    model.append(nn.BatchNorm1d(3).double())
    optimizer = KFAC(model.parameters(), adapt_period=2)
    for _ in range(3):
        optimizer.step(cross_entropy(model, data))
    before = copy.deepcopy(without_damping(optimizer.state_dict()["state"]))

    class Broken(nn.CrossEntropyLoss):
        """Not a number once the parameters have moved."""

        def forward(self, outputs, targets):
            moved = not torch.equal(outputs.detach(), self.outputs)
            return super().forward(outputs, targets) + (math.nan if moved else 0.0)

    loss = Broken()
    loss.outputs = copy.deepcopy(model)(data[0]).detach()
    with unchanged(model):
        optimizer.step(cross_entropy(model, data), evaluation=Objective(model, loss, data))
    assert optimizer.report.status == StepStatus.NONFINITE
    assert optimizer.report.step_norm == 0
    torch.testing.assert_close(without_damping(optimizer.state_dict()["state"]), before, rtol=0, atol=0)
    optimizer.step(cross_entropy(model, data))
    assert optimizer.report.accepted


@pytest.mark.parametrize("damping", [1.0, Fixed(1.0)], ids=["adapted", "fixed"])
def test_a_loss_that_is_not_finite_changes_nothing(damping, function, unchanged):
    point, objective = function(lambda x: (x.log().sum(), x), -1.0)
    optimizer = KFAC(point.parameters(), damping=damping)
    with unchanged(point):
        optimizer.step(objective)
    assert optimizer.report.status == StepStatus.NONFINITE
    assert optimizer.damping == pytest.approx((20 / 19) ** (5 if damping == 1.0 else 0))
    assert optimizer.report.diagonal_layers == ()


def test_a_loss_of_derivatives_that_knows_nothing_of_a_bias():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1)).double()

    def slope(model, x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(model(x).sum(), x, create_graph=True)[0]

    points = torch.linspace(-1, 1, 20, dtype=torch.float64)[:, None]
    objective = Objective(model, nn.MSELoss(), (points, points.cos()), forward=slope)
    optimizer = KFAC(model.parameters(), damping=0.1)
    with pytest.warns(UserWarning, match=r"layers '0', '2' are rough: derivatives"):
        losses = [float(optimizer.step(objective))]
    losses += [float(optimizer.step(objective)) for _ in range(4)]  # of which nothing more is said
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float16, 1e4), (torch.float32, 1e25)])
def test_factors_that_overflow_change_nothing(dtype, scale, unchanged):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)
    inputs = (scale * torch.randn(2, 3)).to(dtype)  # whose squares do not fit
    objective = Objective(model, nn.MSELoss(), (inputs, torch.randn(2, 2).to(dtype)))
    optimizer = KFAC(model.parameters(), damping=1.0)
    with unchanged(model):
        optimizer.step(objective)
    assert optimizer.report.status == StepStatus.NONFINITE


def test_a_stationary_point_is_left_alone(function, unchanged):
    point, objective = barrier(function, 1.0)
    optimizer = KFAC(point.parameters(), adapt_period=1)
    with unchanged(point):
        optimizer.step(objective)
    assert (optimizer.report.status, optimizer.damping) == (StepStatus.STATIONARY, 1.0)


def test_unknown_losses_are_refused(toy):
    model, (x, _) = toy.network(), toy.batch()
    optimizer = KFAC(model.parameters())
    with pytest.raises(ValueError, match=r"got L1Loss; use HessianFree"):
        optimizer.step(Objective(model, nn.L1Loss(), (x, x)))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(ValueError, match="from_forward"):
        optimizer.step(Objective.from_forward(model, lambda: ((z := model(x)).square().mean(), z)))


@pytest.mark.parametrize(
    "option",
    [
        {"lr": -1.0},
        {"lr": math.nan},
        {"momentum": -0.1},
        {"momentum": "exact"},
        {"damping": -1.0},
        {"damping": math.inf},
        {"momentum": math.nan},
        {"adapt_period": 0},
        {"adapt_period": -1},
        {"adapt_period": 2.0},
        {"damping": {"factors": (0.0, 2.0)}},
        {"damping": {"range": (2.0, 3.0)}},
        {"damping": DecreasingLoss()},
        {"factors": 3},
        {"factors": {"period": 0}},
    ],
    ids=str,
)
def test_bad_options_are_named(option, toy):
    name, value = next(iter(option.items()))
    said = next(iter(value)) if isinstance(value, dict) else name
    with pytest.raises(ValueError, match=rf"must be.*{said}|{said}.* must be"):
        KFAC(toy.network().parameters(), **option)


@pytest.mark.parametrize("option", ["lr", "momentum", "damping"])
def test_a_number_that_is_none_is_told_before_groups_are_compared(option, toy):
    """Not a number is not even the same as itself."""
    groups = [{"params": [p]} for p in toy.network().parameters()]
    with pytest.raises(ValueError, match=r"must be a finite number >= 0, got nan"):
        KFAC(groups, **{option: math.nan})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("period", 0), ("inverse_period", True), ("decay", 1.0), ("decay", -0.1), ("decay", math.nan), ("probes", 0),
        ("weight_sharing", "none"),
    ],
)  # fmt: skip
def test_bad_fields_of_the_factors_are_named(field, value):
    with pytest.raises(ValueError, match=rf"KroneckerFactors\.{field} must be"):
        KroneckerFactors(**{field: value})


@pytest.mark.parametrize(
    ("option", "now"),
    [
        ({"damping_decay": 0.9}, r'damping={"factors": \(x, 1 / x\)} with x = 0.9 \*\* adapt_period'),
        ({"damping_range": (0.1, 2.0)}, r'damping={"range": \(0.1, 2.0\)}, .* damping=LevenbergMarquardt\(range'),
        ({"reduction_ratio": "damped"}, r'damping={"model": \'damped\'}'),
        ({"factor_period": 2}, r"factors=KroneckerFactors\(period=2\)"),
        ({"probes": 3}, r"factors=KroneckerFactors\(probes=3\)"),
        ({"inverse_periods": 3}, "has no option 'inverse_periods'; there are lr, momentum, damping"),
    ],
    ids=str,
)
def test_options_of_a_former_release_are_errors_that_name_the_part(option, now, toy):
    parameters = list(toy.network().parameters())
    for make in (KFAC, KFAC.adaptive):
        with pytest.raises(TypeError, match=now):
            make(parameters, **option)
    if "inverse_periods" not in option:
        with pytest.raises(TypeError, match=f"param group 1 of KFAC: .*{now}"):
            KFAC(parameters[:1]).add_param_group({"params": parameters[1:], **option})


def through_a_file(optimizer, model):
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    fresh = KFAC(model.parameters(), damping=7.0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


def through_state_dict(optimizer, model):
    fresh = KFAC(model.parameters())
    fresh.load_state_dict(optimizer.state_dict())
    return fresh


@pytest.mark.parametrize("how", ["state_dict", "file", "deepcopy", "pickle"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_copy_continues_bit_for_bit(how, dtype, toy, flat):
    model, data = toy.network(dtype=dtype), toy.batch(dtype=dtype)
    model.insert(1, nn.LayerNorm(4, dtype=dtype))
    optimizer = KFAC(model.parameters(), damping=0.1, adapt_period=1)
    torch.manual_seed(0)
    for _ in range(4):
        optimizer.step(cross_entropy(model, data))
    if how == "deepcopy":
        twin, other = copy.deepcopy((model, optimizer))
    elif how == "pickle":
        twin, other = pickle.loads(pickle.dumps((model, optimizer)))
    else:
        twin = copy.deepcopy(model)
        other = (through_state_dict if how == "state_dict" else through_a_file)(optimizer, twin)
    assert other.damping == optimizer.damping != 0.1
    for seed in range(4):
        torch.manual_seed(seed)
        expected = optimizer.step(cross_entropy(model, data))
        torch.manual_seed(seed)
        assert torch.equal(other.step(cross_entropy(twin, data)), expected)
        assert torch.equal(flat(twin), flat(model))
        assert fields(other) == fields(optimizer)
    wide = torch.promote_types(dtype, torch.float32)
    assert {other.state[p]["update"].dtype for p in twin.parameters()} == {wide}
    first, second = (o.state[next(m.parameters())]["factors"] for o, m in ((optimizer, model), (other, twin)))
    assert second["moments"]["layers"].dtype == torch.int64
    assert first["moments"]["0.inputs"].data_ptr() != second["moments"]["0.inputs"].data_ptr()


def test_a_group_may_be_added_midway(toy):
    model, data = toy.network(), toy.batch()
    optimizer = KFAC(model[0].parameters(), damping=0.1)
    losses = [float(optimizer.step(cross_entropy(model, data))) for _ in range(4)]
    head = copy.deepcopy(model[2].state_dict())
    optimizer.add_param_group({"params": list(model[2].parameters()), "lr": 0.5})
    losses += [float(optimizer.step(cross_entropy(model, data))) for _ in range(12)]
    assert losses[-1] < 0.7 * losses[4]  # 0.35 to 0.55 with twelve seeds
    assert all(not torch.equal(head[name], p) for name, p in model[2].named_parameters())
    sizes = {name: len(each) for name, each in optimizer.state[model[0].weight]["factors"]["moments"].items()}
    assert sizes == {"diagonal": 31, "layers": 2, "0.inputs": 4, "0.slopes": 4, "1.inputs": 5, "1.slopes": 3}


def test_a_scheduler_drives_the_rate(toy):
    model, data = toy.network(), toy.batch()
    for options, first in (({}, 1.0), ({"lr": 0.2, "momentum": 0.0}, 0.2)):
        optimizer = KFAC(model.parameters(), **options)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for step in range(3):
            optimizer.step(cross_entropy(model, data))
            assert optimizer.param_groups[0]["lr"] == pytest.approx(first * 0.5**step)
            assert options == {} or optimizer.report.lr == pytest.approx(0.2 * 0.5**step)
            scheduler.step()
