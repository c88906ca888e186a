"""Hessian-free steps beyond the contract of all optimizers: blocks, dtypes, buffers, dropout, a true report."""

import copy
import io
import json
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latephase import CG, GGN, HessianFree, LevenbergMarquardt, Objective, layerwise
from latephase.solve import CGStatus


def cross_entropy(model, data, **options):
    return Objective(model, nn.CrossEntropyLoss(), data, **options)


def through_a_file(optimizer, model):
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    fresh = HessianFree(layerwise(model), damping=7.0, blocks=True)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


def through_state_dict(optimizer, model):
    fresh = HessianFree(layerwise(model), blocks=True)
    fresh.load_state_dict(optimizer.state_dict())
    return fresh


@pytest.mark.parametrize("how", ["state_dict", "file", "deepcopy", "pickle"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_copy_continues_bit_for_bit(how, dtype, toy, flat):
    model, data = toy.network(dtype=dtype), toy.batch(dtype=dtype)
    optimizer = HessianFree(layerwise(model), blocks=True, damping=0.1)
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
    for _ in range(4):
        expected, loss = optimizer.step(cross_entropy(model, data)), other.step(cross_entropy(twin, data))
        assert torch.equal(loss, expected)
        assert torch.equal(flat(twin), flat(model))
        assert other.report.as_dict() | {"seconds": 0} == optimizer.report.as_dict() | {"seconds": 0}
    starts = [other.state[p]["x0"] for p in twin.parameters()]
    assert {start.dtype for start in starts} == {torch.promote_types(dtype, torch.float32)}


def test_a_loaded_state_is_not_shared(toy):
    model, data = toy.network(), toy.batch()
    optimizer = HessianFree(layerwise(model), blocks=True)
    optimizer.step(cross_entropy(model, data))
    other = through_state_dict(optimizer, copy.deepcopy(model))
    for p, q in zip(model.parameters(), other.state, strict=True):
        assert optimizer.state[p]["x0"].data_ptr() != other.state[q]["x0"].data_ptr()


@pytest.mark.parametrize("block_diagonal", [False, True])
def test_a_group_may_be_added_midway(block_diagonal, toy):
    model, data = toy.network(), toy.batch()
    optimizer = HessianFree(model[0].parameters(), blocks=block_diagonal)
    losses = [float(optimizer.step(cross_entropy(model, data))) for _ in range(3)]
    head = copy.deepcopy(model[2].state_dict())
    optimizer.add_param_group({"params": list(model[2].parameters()), "damping_scale": 0.5})
    losses += [float(optimizer.step(cross_entropy(model, data))) for _ in range(10)]
    assert losses == sorted(losses, reverse=True)
    assert all(not torch.equal(head[name], p) for name, p in model[2].named_parameters())
    assert len(optimizer.report.cg_status) == (2 if block_diagonal else 1)


def test_groups_by_layer_train(toy):
    model, data = toy.network(), toy.batch()
    optimizer = HessianFree(layerwise(model), blocks=True)
    losses = [float(optimizer.step(cross_entropy(model, data))) for _ in range(30)]
    assert [group["name"] for group in optimizer.param_groups] == ["0", "2"]
    assert losses[-1] < 0.3 * losses[0]


def test_a_step_leaves_grad_alone_and_writes_each_parameter_once(toy):
    model, data = toy.network(), toy.batch()
    cross_entropy(model, data)()
    grads, versions = [p.grad for p in model.parameters()], [p._version for p in model.parameters()]
    copies = [grad.clone() for grad in grads if grad is not None]
    optimizer = HessianFree(model.parameters())
    optimizer.step(cross_entropy(model, data))
    assert all(p.grad is grad for p, grad in zip(model.parameters(), grads, strict=True))
    assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), copies, strict=True))
    assert [p._version for p in model.parameters()] == [version + 1 for version in versions]


@pytest.mark.parametrize("with_evaluation", [False, True])
def test_no_loss_is_computed_twice(with_evaluation, toy):
    model, data, points = toy.network(), toy.batch(), []
    model.register_forward_pre_hook(
        lambda module, args: points.append((args[0].numpy().tobytes(), model[0].weight.detach().numpy().tobytes()))
    )
    other = toy.batch(seed=3)
    optimizer = HessianFree(model.parameters(), damping=1e-4)
    for _ in range(5):
        points.clear()
        objective = cross_entropy(model, data)
        optimizer.step(objective, cross_entropy(model, other) if with_evaluation else None)
        assert optimizer.report.method == "double_backward"  # the hook reads values, which a trace cannot repeat
        assert len(points) >= 2
        assert len(set(points)) == len(points)


def test_parameters_outside_the_optimizer_and_unused_ones_do_not_move(toy):
    model = toy.network()
    model.unused = nn.Linear(2, 2).double()
    model.forward = lambda x: model[2](model[1](model[0](x)))
    before = copy.deepcopy(model.state_dict())
    optimizer = HessianFree([*model[2].parameters(), *model.unused.parameters()])
    for _ in range(3):
        optimizer.step(cross_entropy(model, toy.batch()))
    moved = {name for name, p in model.state_dict().items() if not torch.equal(p, before[name])}
    assert moved == {"2.weight", "2.bias"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("with_evaluation", [False, True])
def test_the_report_is_true(dtype, with_evaluation, toy, flat):
    model, data, other = toy.network(dtype=dtype), toy.batch(dtype=dtype), toy.batch(9, seed=4, dtype=dtype)
    objective = cross_entropy(model, data, weight_decay=0.01)
    evaluation = cross_entropy(model, other) if with_evaluation else objective
    optimizer = HessianFree(model.parameters(), damping=0.01)
    assert optimizer.report is None
    for _ in range(6):
        before, loss, held_out = flat(model), objective.value(), evaluation.value()
        grads = torch.autograd.grad(F.cross_entropy(model(data[0]), data[1]), list(model.parameters()))
        gradient = torch.cat([g.reshape(-1) for g in grads]).double() + 0.01 * before.double()
        returned = optimizer.step(objective, evaluation)
        report = optimizer.report
        torch.testing.assert_close(returned, loss)
        assert report.loss == float(returned)
        assert report.evaluation_loss == pytest.approx(float(held_out), rel=1e-6)
        assert report.new_evaluation_loss == float(evaluation.value())
        assert report.new_loss == (None if with_evaluation else float(objective.value()))
        rounding = {torch.bfloat16: 0.05, torch.float32: 1e-3, torch.float64: 1e-9}[dtype]
        assert report.gradient_norm == pytest.approx(float(gradient.norm()), rel=rounding)
        assert report.step_norm == pytest.approx(float((flat(model) - before).double().norm()), rel=rounding)
        assert report.accepted == (report.lr > 0) == (report.step_norm > 0)
        assert 0 <= report.cg_chosen <= max(report.cg_iterations) <= report.products
        assert report.seconds > 0
        assert json.loads(json.dumps(report.as_dict()))["cg_status"] == [str(status) for status in report.cg_status]
    assert report.cg_status[0] in CGStatus


@pytest.mark.parametrize(("model_dtype", "curvature_dtype", "tolerance"), [
    (torch.float32, torch.float64, 1e-4), (torch.float64, torch.float32, 1e-4), (torch.float32, torch.bfloat16, 0.1),
])  # fmt: skip
@pytest.mark.parametrize("case", ["plain", "class_weights", "head_only", "frozen"])
def test_curvature_in_another_dtype(model_dtype, curvature_dtype, tolerance, case, toy, flat):
    """The same step up to the rounding of the narrower dtype; loss and gradient stay in the parameters' own."""
    solutions, data = [], toy.batch(dtype=model_dtype)
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=model_dtype) if case == "class_weights" else None
    for dtype in (None, curvature_dtype):
        model = toy.network(dtype=model_dtype)
        model[0].requires_grad_(case != "frozen")
        parameters = model[2].parameters() if case == "head_only" else model.parameters()
        optimizer = HessianFree(parameters, curvature=GGN(dtype=dtype), line_search=False, solver=CG(candidates="last"))
        before = flat(model)
        loss = optimizer.step(Objective(model, nn.CrossEntropyLoss(weight=weight), data))
        solutions.append(torch.cat([s["x0"].reshape(-1) for s in optimizer.state.values() if "x0" in s]))
        assert loss.dtype == solutions[-1].dtype == flat(model).dtype == model_dtype
        assert not torch.equal(flat(model), before)
    assert not torch.equal(*solutions), "the products ran in the same dtype"
    assert float((solutions[0] - solutions[1]).norm() / solutions[0].norm()) < tolerance


class Counter(nn.Module):
    """Counts its calls in a buffer that it assigns anew, as user modules do."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3).double()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls = self.calls + 1
        return self.linear(x)


def normalized():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()


@pytest.mark.parametrize("make", [normalized, Counter])
@pytest.mark.parametrize("with_others", [False, True])
def test_an_accepted_step_moves_the_buffers_as_one_forward_pass_would(make, with_others, toy):
    torch.manual_seed(0)
    model, data = make(), toy.batch()
    others = [cross_entropy(model, toy.batch(9, seed=seed)) for seed in (3, 4)] if with_others else []
    for _ in range(3):
        twin = copy.deepcopy(model)
        twin(data[0])
        optimizer = HessianFree(model.parameters())
        optimizer.step(cross_entropy(model, data), *others)
        assert optimizer.report.accepted
        for (name, buffer), expected in zip(model.named_buffers(), twin.buffers(), strict=True):
            torch.testing.assert_close(buffer, expected, rtol=1e-12, atol=1e-14, msg=name)


@pytest.mark.parametrize("microbatch_size", [None, 7])
def test_chunks_move_the_buffers_one_after_the_other(microbatch_size, toy):
    model, data = normalized(), toy.batch()
    twin = copy.deepcopy(model)
    for rows in data[0].split(microbatch_size or 20):
        twin(rows)
    optimizer = HessianFree(model.parameters())
    optimizer.step(cross_entropy(model, data, microbatch_size=microbatch_size))
    assert optimizer.report.accepted
    for buffer, expected in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(buffer, expected, rtol=1e-12, atol=1e-14)


def test_a_rejected_step_moves_nothing_and_forgets_its_start(toy, unchanged):
    model, data = normalized(), toy.batch()
    objective = cross_entropy(model, data)
    optimizer = HessianFree(model.parameters(), damping=30.0)  # short steps: what lowers f raises -f
    optimizer.step(objective)
    worse = Objective(model, lambda outputs, targets: -F.cross_entropy(outputs, targets), data)
    damping = optimizer.damping
    with unchanged(model):
        optimizer.step(objective, evaluation=worse)
    report = optimizer.report
    assert (report.accepted, report.lr, report.step_norm) == (False, 0.0, 0.0)
    assert report.new_evaluation_loss == report.evaluation_loss == float(worse.value())
    assert optimizer.damping == pytest.approx(1.5 * damping)
    assert not any("x0" in state for state in optimizer.state.values())
    optimizer.step(objective)
    assert optimizer.report.accepted


def test_dropout_is_one_function_within_a_step_and_another_in_the_next(toy):
    model, data = nn.Sequential(nn.Linear(3, 40), nn.Dropout(0.5), nn.Linear(40, 3)).double(), toy.batch()
    optimizer, losses = HessianFree(model.parameters(), lr=1e-9, line_search=False), set()
    objective = cross_entropy(model, data)
    for _ in range(5):
        optimizer.step(objective)
        assert optimizer.report.new_loss == pytest.approx(optimizer.report.loss, abs=1e-7)
        losses.add(round(optimizer.report.loss, 5))
    assert len(losses) == 5


def test_the_late_phase_preset_is_measured_settings_that_can_be_replaced(toy):
    model = toy.network()
    optimizer = HessianFree.late_phase(model.parameters(), damping=2.0, solver={"warm_start": 0.5})
    group = optimizer.param_groups[0]
    assert group["damping"] == LevenbergMarquardt(2.0, thresholds=(0.0, 0.5))
    assert group["solver"] == CG(max_iter=3, warm_start=0.5)
    assert HessianFree.late_phase(model.parameters(), damping=LevenbergMarquardt()).param_groups[0]["damping"] == (
        LevenbergMarquardt()
    )
    assert isinstance(optimizer, HessianFree)
    objective, held_out = cross_entropy(model, toy.batch(24)).split(16, 8)
    optimizer.step(objective, evaluation=held_out, curvature_objective=objective.subsample(2))
    assert optimizer.report.accepted
    assert max(optimizer.report.cg_iterations) <= 3
