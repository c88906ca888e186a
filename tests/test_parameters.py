"""The parameters' space: order, dtype, matching by identity, and the groups of `layerwise`."""

import pytest
import torch
from torch import nn

from latephase import Objective, layerwise
from latephase.curvature import linearize
from latephase.parameters import ParameterSpace


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))


def objective_of(model: nn.Module) -> Objective:
    return Objective(model, nn.MSELoss(), (torch.ones(4, 2), torch.zeros(4, 2)))


def space_of(*tensors: torch.Tensor) -> ParameterSpace:
    return ParameterSpace([nn.Parameter(t) for t in tensors], [f"p{i}" for i in range(len(tensors))])


def test_flat_vectors_hold_the_parameters_in_order():
    space = space_of(torch.arange(6.0).view(2, 3), torch.tensor(7.0), torch.tensor([8.0, 9.0]))
    assert space.size == 9
    assert space.sizes == [6, 1, 2]
    assert torch.equal(space.values(), torch.tensor([0.0, 1, 2, 3, 4, 5, 7, 8, 9]))
    pieces = space.unflatten(10 * space.values())
    assert [tuple(piece.shape) for piece in pieces] == [(2, 3), (), (2,)]
    assert torch.equal(space.flatten(pieces), 10 * space.values())
    assert list(space.named(space.values())) == ["p0", "p1", "p2"]


def test_values_are_a_copy_and_write_changes_in_place():
    space = space_of(torch.ones(2, 2), torch.zeros(3))
    before, storage = space.values(), [p.data_ptr() for p in space.parameters]
    marks = space.versions()
    space.write(torch.arange(7.0))
    assert torch.equal(before, torch.tensor([1.0, 1, 1, 1, 0, 0, 0]))
    assert torch.equal(space.values(), torch.arange(7.0))
    assert [p.data_ptr() for p in space.parameters] == storage
    assert space.versions() != marks


def test_a_column_major_parameter_keeps_its_layout():
    space = space_of(torch.arange(6.0).view(2, 3).t())
    space.write(torch.arange(6.0))
    assert torch.equal(space.parameters[0], torch.arange(6.0).view(3, 2))
    assert space.parameters[0].stride() == (1, 3)


@pytest.mark.parametrize(("dtypes", "expected"), [
    ([torch.bfloat16], torch.float32), ([torch.float16, torch.bfloat16], torch.float32),
    ([torch.float32], torch.float32), ([torch.bfloat16, torch.float64], torch.float64),
])  # fmt: skip
def test_flat_vectors_are_at_least_float32(dtypes, expected):
    space = space_of(*(torch.ones(2, dtype=dtype) for dtype in dtypes))
    assert space.values().dtype == expected
    assert [piece.dtype for piece in space.unflatten(space.values())] == dtypes


def test_the_default_order_is_the_models_without_frozen_parameters():
    model = network()
    model[0].bias.requires_grad_(False)
    assert objective_of(model).space().names == ["0.weight", "2.weight", "2.bias"]


def test_the_optimizers_order_counts():
    model = network()
    space = objective_of(model).space([model[2].bias, model[0].weight])
    assert space.names == ["2.bias", "0.weight"]
    gradient = linearize(objective_of(model), parameters=[model[2].bias, model[0].weight]).gradient
    objective_of(model)()
    assert model[2].bias.grad is not None
    assert model[0].weight.grad is not None
    torch.testing.assert_close(gradient, torch.cat([model[2].bias.grad, model[0].weight.grad.reshape(-1)]))


def test_a_shared_parameter_stands_once():
    model = network()
    model[2] = nn.Linear(3, 3)
    model.append(nn.Tanh())
    model.append(model[2])
    assert objective_of(model).space().names == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_a_parameter_that_is_not_the_models_is_named():
    model, other = network(), network()
    with pytest.raises(ValueError, match=r"parameter 1 \(shape \(3,\)\)"):
        objective_of(model).space([model[0].weight, other[0].bias])


def test_no_trainable_parameter_is_an_error():
    model = network().requires_grad_(False)
    objective = objective_of(model)
    for action in (objective, objective.space, lambda: linearize(objective), lambda: layerwise(model)):
        with pytest.raises(ValueError, match="no trainable parameter"):
            action()


def test_parameters_that_cannot_be_flat_are_refused_by_name():
    with pytest.raises(ValueError, match=r"'p0' has dtype torch.complex64"):
        space_of(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="'w' is not initialised"):
        ParameterSpace([nn.UninitializedParameter()], ["w"])
    frozen = nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False)
    assert ParameterSpace([nn.Parameter(torch.ones(2)), frozen], ["a", "b"]).names == ["a"]


def test_parameters_on_several_devices_are_refused():
    with pytest.raises(ValueError, match="cpu, meta"):
        space_of(torch.ones(2), torch.ones(2, device="meta"))


class Nested(nn.Module):
    """Owns a parameter directly, shares a module, and holds a frozen one."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.LayerNorm(3))
        self.scale = nn.Parameter(torch.ones(1))
        self.tied = nn.Linear(2, 3)
        self.tied.weight = self.inner[0].weight
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.head = nn.Linear(3, 1)
        self.head.weight.requires_grad_(False)

    def forward(self, x):
        return self.head(self.frozen(self.inner(x) * self.scale + self.tied(x)))


def test_layerwise_has_one_group_for_each_module_that_owns_parameters():
    model = Nested()
    groups = layerwise(model)
    assert [sorted(group) for group in groups] == [["name", "params"]] * 5
    assert [group["name"] for group in groups] == ["Nested", "inner.0", "inner.2", "tied", "head"]
    own = [
        [model.scale],
        [model.inner[0].weight, model.inner[0].bias],
        [model.inner[2].weight, model.inner[2].bias],
        [model.tied.bias],  # its weight belongs to the first module that holds it
        [model.head.bias],
    ]
    assert [[id(p) for p in group["params"]] for group in groups] == [[id(p) for p in group] for group in own]
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for group in groups for p in group["params"]} == trainable
