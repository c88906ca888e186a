"""Any options together: documented errors and warnings only, finite parameters, true reports, states that continue."""

import copy
import io
import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from torch import nn

from flat_parts import parts
from latephase import HessianFree, Objective, WithHidden, layerwise
from latephase.curvature.preconditioners import EmpiricalFisher, GGNDiagonal, Kronecker, Nystrom
from latephase.optim.parts.report import StepStatus

ROWS, FEATURES, CLASSES = 13, 4, 3


class Scaled:
    """r -> r / s with a fixed s, as a user's own preconditioner."""

    def __call__(self, r: torch.Tensor) -> torch.Tensor:
        return r / torch.linspace(0.5, 2.0, len(r), dtype=r.dtype)


PRECONDITIONERS: dict[str, Any] = {
    "none": None,
    "empirical_fisher": "empirical_fisher",
    "ggn_diagonal": "ggn_diagonal",
    "nystrom": "nystrom",
    "fisher_every_2": EmpiricalFisher(every=2, exponent=1.0),
    "ggn_every_3": GGNDiagonal(probes=2, every=3),
    "nystrom_rank_3": Nystrom(rank=3, every=2),
    "own": Scaled(),
    "kfac": "kfac",
    "kfac_exact": Kronecker(every=2, probes=2, damping="exact"),
}
DOCUMENTED = ["the damping has arrived", "example by example"]
"""Parts of the warnings that a step may give."""
DROPPED = "is not traced: its products differ"
"""Given where rounding is large: float32 or narrower, at inputs that are far too large or at wildly long steps."""


class Recurrent(nn.Module):
    """Over the features as if they were time steps."""

    def __init__(self):
        super().__init__()
        self.input, self.hidden, self.output = nn.Linear(1, 3), nn.Linear(3, 3, bias=False), nn.Linear(3, CLASSES)

    def forward(self, inputs):
        state, hidden = inputs.new_zeros(len(inputs), 3), []
        for column in inputs.unbind(dim=1):
            hidden.append(self.input(column[:, None]) + self.hidden(state))
            state = torch.tanh(hidden[-1])
        return WithHidden(self.output(state), tuple(hidden), "tanh")


def network(kind: str) -> nn.Module:
    first, last = nn.Linear(FEATURES, 5), nn.Linear(5, CLASSES)
    models = {
        "plain": lambda: nn.Sequential(first, nn.Tanh(), last),
        "relu": lambda: nn.Sequential(first, nn.ReLU(), last),
        "batch_norm": lambda: nn.Sequential(first, nn.BatchNorm1d(5), nn.Tanh(), last),
        "batch_norm_eval": lambda: nn.Sequential(first, nn.BatchNorm1d(5), nn.Tanh(), last).eval(),
        "dropout": lambda: nn.Sequential(first, nn.Dropout(0.3), nn.Tanh(), last),
        "layer_norm": lambda: nn.Sequential(first, nn.LayerNorm(5), nn.GELU(), last),
        "linear": lambda: nn.Sequential(nn.Linear(FEATURES, CLASSES)),
        "recurrent": Recurrent,
    }
    return models[kind]()


OPTIONS = {
    "curvature": ["ggn", "ggn", "hessian"],
    "damping": [0.0, 1e-10, 1e-4, 0.03, 1.0, 1.0, 300.0],
    "fixed": [False, False, True],
    "lr": [0.0, 1e-3, 0.5, 1.0, 1.0, 1.0, 4.0],
    "line_search": [True, True, False],
    "max_iter": [1, 2, 7, 30, 250],
    "warm_start": [0.0, 0.5, 0.95, 1.0, 3.0],
    "candidates": ["best", "best", "last"],
    "stopping": ["martens", "martens", "residual"],
    "tolerance": [0.0, 1e-10, 5e-4, 0.5],
    "nonpositive_curvature": ["truncate", "ignore", "absolute"],
    "dtype": [None, None, None, torch.float32, torch.float64, torch.bfloat16],
    "blocks": [False, False, True],
    "on_host": [False, True],
    "thresholds": [(0.25, 0.75), (0.25, 0.75), (0.5, 0.5), (0.0, 0.0), (-2.0, 3.0), (0.9, 0.99)],
    "factors": [(2 / 3, 3 / 2), (2 / 3, 3 / 2), (1.0, 1.0), (0.01, 100.0), (1e-6, 1e6)],
    "range": [(1e-12, 1e12), (1e-12, 1e12), (0.0, math.inf), (1e-10, 300.0)],
    "model": ["undamped", "undamped", "damped"],
    "data": ["evaluation", "evaluation", "objective"],
    "structural_damping": [0.0, 0.0, 1 / 30, 10.0],
    "max_step_norm": [None, None, 1e-9, 0.1, 10.0, 1e9],
    "debias": [False, False, True],
}
SETTING = {
    "preconditioner": [*PRECONDITIONERS, "none", "none"],
    "network": [
        "plain", "plain", "relu", "batch_norm", "batch_norm_eval", "dropout", "layer_norm", "linear", "recurrent",
    ],
    "dtype": [torch.float32, torch.float64],
    "loss": ["cross_entropy", "cross_entropy", "squared", "sum", "weighted"],
    "chunks": [None, None, 1, 5],
    "weight_decay": [0.0, 0.01],
    "scale": [1.0, 1.0, 1.0, 0.0, 1e-4, 30.0, 1e19],  # the last overflows float32 in places
    "evaluation": ["none", "same", "copy", "other", "other"],
    "curved": ["none", "none", "part"],
    "rates": [None, None, (0.5, 2.0), (1.0, 0.0)],
    "damping_scales": [None, None, (1.0, 0.0), (0.1, 10.0)],
    "steps": [3, 4],
    "wrong": [False] * 9 + [True],  # keep combinations that are documented errors
}  # fmt: skip


def draw_from(table: dict[str, list[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({name: st.sampled_from(values) for name, values in table.items()})


def loss_of(kind: str, dtype: torch.dtype) -> nn.Module:
    return {
        "cross_entropy": nn.CrossEntropyLoss(),
        "squared": nn.MSELoss(),
        "sum": nn.CrossEntropyLoss(reduction="sum"),
        "weighted": nn.CrossEntropyLoss(weight=torch.tensor([0.5, 1.0, 2.0], dtype=dtype)),
    }[kind]


def batch(setting: dict[str, Any], rows: int = ROWS) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = setting["scale"] * torch.randn(rows, FEATURES, dtype=setting["dtype"])
    if setting["loss"] == "squared":
        return inputs, torch.randn(rows, CLASSES, dtype=setting["dtype"])
    return inputs, torch.randint(CLASSES, (rows,))


def expected_error(options: dict[str, Any], setting: dict[str, Any]) -> str | None:
    """Part of the message of the documented error that these settings give at every step."""
    if options["debias"] and setting["evaluation"] in ("none", "same"):
        return "debias.*evaluation"
    if options["structural_damping"] and setting["network"] != "recurrent":
        return "structural_damping.*WithHidden"
    return None


def make(model: nn.Module, options: dict[str, Any], setting: dict[str, Any]) -> HessianFree:
    groups = layerwise(model)
    for name, values in (("lr", setting["rates"]), ("damping_scale", setting["damping_scales"])):
        if values is not None:
            groups[0][name], groups[-1][name] = values
    return HessianFree(groups, **parts(preconditioner=PRECONDITIONERS[setting["preconditioner"]], **options))


def objectives_of(model: nn.Module, setting: dict[str, Any], data: list[Any]) -> tuple[tuple[Any, ...], Objective]:
    """The arguments of `step`, and the objective that judges it."""
    loss = loss_of(setting["loss"], setting["dtype"])

    def objective(part):
        # Batch norm in training mode wants more than one row.
        chunks = setting["chunks"] if setting["network"] != "batch_norm" or setting["chunks"] != 1 else 5
        options = {"microbatch_size": chunks, "weight_decay": setting["weight_decay"]}
        return Objective(model, loss, part, **options)

    first = objective(data[0])
    evaluation = {
        "none": lambda: None,
        "same": lambda: first,
        "copy": lambda: objective(data[0]),
        "other": lambda: objective(data[1]),
    }[setting["evaluation"]]()
    curved = objective(data[2]) if setting["curved"] == "part" else None
    return (first, evaluation, curved), first if evaluation is None else evaluation


def vector(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).double()


def check_report(optimizer: HessianFree, options: dict[str, Any], before: torch.Tensor, after: torch.Tensor) -> None:
    report, moved = optimizer.report, float((after - before).norm())
    assert report is not None
    assert report.accepted == (report.status == StepStatus.TAKEN)
    if moved < 1e18:  # float32's squares overflow soon after
        assert report.step_norm == pytest.approx(moved, rel=1e-2, abs=1e-6 * (1 + float(before.norm())))
    if not report.accepted:
        assert report.lr == report.step_norm == moved == 0.0
        assert report.new_evaluation_loss == report.evaluation_loss or not math.isfinite(report.evaluation_loss)
    if options["max_step_norm"] is not None:
        assert report.step_norm <= options["max_step_norm"] * (1 + 1e-5)
    low, high = options["range"]
    assert low <= optimizer.damping <= high or optimizer.damping == options["damping"] == 0.0
    if options["fixed"]:
        assert optimizer.damping == options["damping"]
    if math.isnan(report.reduction_ratio):
        assert optimizer.damping == report.damping
    assert 0 <= report.cg_chosen <= max(report.cg_iterations) <= options["max_iter"]
    report.as_dict()


def continues(
    model: nn.Module, optimizer: HessianFree, options: dict[str, Any], setting: dict[str, Any], data: list[Any]
) -> None:
    """A fresh optimizer with the saved state, on a copy of the model, takes the same step."""
    twin = copy.deepcopy(model)
    other = make(twin, options, setting)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.damping == optimizer.damping
    drawn = torch.get_rng_state()
    optimizer.step(*objectives_of(model, setting, data)[0])
    torch.set_rng_state(drawn)
    other.step(*objectives_of(twin, setting, data)[0])
    one, two = optimizer.report, other.report
    assert one is not None
    assert two is not None
    if one.method == two.method:
        assert torch.equal(vector(model), vector(twin))
        assert repr(one.as_dict() | {"seconds": 0}) == repr(two.as_dict() | {"seconds": 0})  # NaN is NaN
        assert other.damping == optimizer.damping


def take_steps(options: dict[str, Any], setting: dict[str, Any], seed: int, caught: list[Any]) -> None:
    if not setting["wrong"] and expected_error(options, setting):
        options = options | {"debias": False}
        options = options if setting["network"] == "recurrent" else options | {"structural_damping": 0.0}
    torch.manual_seed(seed)
    model = network(setting["network"]).to(setting["dtype"])
    optimizer, error = make(model, options, setting), expected_error(options, setting)
    for _ in range(setting["steps"]):
        data = [batch(setting), batch(setting), batch(setting, 8)]
        arguments, judge = objectives_of(model, setting, data)
        before = vector(model)
        if error is not None:
            with pytest.raises(ValueError, match=error):
                optimizer.step(*arguments)
            assert torch.equal(vector(model), before)
            return
        optimizer.step(*arguments)
        after, report = vector(model), optimizer.report
        assert report is not None
        assert after.isfinite().all()
        check_report(optimizer, options, before, after)
        known = report.status != StepStatus.NONFINITE or not math.isnan(report.new_evaluation_loss)
        if known and setting["network"] != "dropout":  # its masks are those of the step
            rounding = 1e-5 if setting["dtype"] == torch.float32 else 1e-10
            if setting["network"] != "batch_norm_eval" or not report.accepted:
                actual = float(judge.value())
                assert report.new_evaluation_loss == pytest.approx(actual, rel=rounding, abs=rounding, nan_ok=True)
        if options["line_search"]:
            assert not report.new_evaluation_loss > report.evaluation_loss
    if not any(DROPPED in str(w.message) for w in caught):  # else a copy, which traces anew, rounds otherwise
        continues(model, optimizer, options, setting, [batch(setting), batch(setting), batch(setting, 8)])


def run(options: dict[str, Any], setting: dict[str, Any], seed: int) -> None:
    note(f"{options}\n{setting}\n{seed}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        take_steps(options, setting, seed, caught)
    narrow = torch.float64 not in (setting["dtype"], options["dtype"]) or options["dtype"]
    known = [*DOCUMENTED, DROPPED] if narrow or setting["scale"] > 1e6 else DOCUMENTED
    assert not [str(w.message) for w in caught if not any(part in str(w.message) for part in known)]


COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}
DRAWN = given(options=draw_from(OPTIONS), setting=draw_from(SETTING), seed=st.integers(0, 10**6))


@settings(max_examples=25, derandomize=True, **COMMON)
@DRAWN
def test_some_configurations(options, setting, seed):
    run(options, setting, seed)


@pytest.mark.slow
@settings(max_examples=500, derandomize=True, **COMMON)
@DRAWN
def test_five_hundred_configurations(options, setting, seed):
    run(options, setting, seed)
