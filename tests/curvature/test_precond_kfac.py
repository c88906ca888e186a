"""K-FAC where it is exact, and what it does about everything else."""

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from dense_oracle import columns, dense_oracle, relative
from torch import Tensor, nn

from latephase import Objective
from latephase.curvature import linearize
from latephase.curvature.preconditioners import GGNDiagonal, Kronecker, kronecker_factors
from latephase.objective.randomness import draw_seed

TIGHT = 1e-10
"""Float64, and a decomposition of small matrices."""


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def network(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4, bias), nn.Tanh(), nn.Linear(4, 3, bias)).double()


@pytest.fixture
def exact(monkeypatch) -> None:
    """Unit vectors, one class after the other, in place of random signs: with as many probes as classes B is exact.

    The rows of a batch do not meet in B as long as no layer ties them together.
    """
    drawn = []

    def units(like: Tensor, generator: torch.Generator) -> Tensor:
        classes = like.shape[-1]
        found = torch.zeros_like(like)
        found[..., len(drawn) % classes] = classes**0.5
        drawn.append(classes)
        return found

    monkeypatch.setattr(kronecker_factors, "random_signs", units)


def inverse(objective: Objective, damping: Any, parameters=None, blocks=None, probes=3) -> Tensor:
    """The dense M^-1."""
    method = Kronecker(probes=probes, damping="exact")
    curved = linearize(objective, parameters=parameters)
    size = curved.space.size
    torch.manual_seed(0)
    return columns(method.inverse(method.estimate(curved, blocks or [size]), damping, blocks or [size]), size)


def blocks_of(matrix: Tensor, sizes: list[int]) -> Tensor:
    """The matrix without what lies outside its diagonal blocks."""
    result, start = torch.zeros_like(matrix), 0
    for size in sizes:
        own = slice(start, start + size)
        result[own, own] = matrix[own, own]
        start += size
    return result


def damped_inverse(matrix: Tensor, damping: float) -> Tensor:
    return torch.linalg.inv(matrix + damping * torch.eye(len(matrix), dtype=torch.float64))


LOSSES = {
    "squared error": (nn.MSELoss(), normal(1, 3)),
    "squared error, summed": (nn.MSELoss(reduction="sum"), normal(1, 3)),
    "functional": (F.mse_loss, normal(1, 3)),
    "cross entropy": (nn.CrossEntropyLoss(), torch.tensor([1])),
    "weights": (
        functools.partial(F.cross_entropy, reduction="sum", weight=torch.tensor([0.2, 3.0, 1.0], dtype=torch.float64)),
        torch.tensor([1]),
    ),
    "smoothing": (functools.partial(F.cross_entropy, label_smoothing=0.1), torch.tensor([1])),
    "probabilities": (nn.CrossEntropyLoss(), normal(1, 3).softmax(1)),
    "binary": (nn.BCEWithLogitsLoss(), normal(1, 3).sigmoid()),
    "poisson": (nn.PoissonNLLLoss(), normal(1, 3).exp()),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_it_is_exact_on_one_example(exact, name, decay):
    """Then the block of a layer is B kron aa', a the inputs with a one beside them."""
    loss, targets = LOSSES[name]
    x, model = normal(1, 3), network()
    ggn = dense_oracle(model, loss, x, targets, decay=lambda name, parameter: decay).ggn
    expected = damped_inverse(blocks_of(ggn, [16, 15]), 0.1)
    assert relative(inverse(Objective(model, loss, (x, targets), weight_decay=decay), 0.1), expected) < TIGHT


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("shape", [(20, 3), (20, 5, 3)], ids=["rows", "sequences"])
def test_it_is_exact_on_a_linear_layer_with_squared_error(reduction, shape):
    """The slopes are the same for all rows, and with one output the signs square to one."""
    model = nn.Linear(3, 1).double()
    x, y = normal(*shape), normal(*shape[:-1], 1, seed=2)
    ggn = dense_oracle(model, nn.MSELoss(reduction=reduction), x, y).ggn
    for microbatch_size in (None, 6):
        objective = Objective(model, nn.MSELoss(reduction=reduction), (x, y), microbatch_size=microbatch_size)
        assert relative(inverse(objective, 0.1), damped_inverse(ggn, 0.1)) < TIGHT


def test_it_is_exact_on_a_convolution_of_one_position(exact):
    model = nn.Sequential(nn.Conv2d(2, 3, (2, 3)), nn.Flatten()).double()
    x, y = normal(20, 2, 2, 3), normal(20, 3, seed=2)
    expected = damped_inverse(dense_oracle(model, nn.MSELoss(), x, y).ggn, 0.1)
    assert relative(inverse(Objective(model, nn.MSELoss(), (x, y)), 0.1), expected) < TIGHT


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("microbatch_size", [None, 6])
def test_factors_are_moments_also_with_weights_and_ignored_targets(exact, reduction, microbatch_size):
    """A of the first layer is the moment of the inputs, B of the last the sum of the Hessians in the outputs."""
    x, y = normal(20, 3), torch.randint(3, (20,), generator=generator(3))
    weight = torch.tensor([0.2, 3.0, 1.0], dtype=torch.float64)
    y[[1, 7]] = -100
    loss, model = nn.CrossEntropyLoss(weight, reduction=reduction), network()
    curved = linearize(Objective(model, loss, (x, y), microbatch_size=microbatch_size))
    estimate = Kronecker(probes=3, damping="exact").estimate(curved, [31])

    def factor(name: str) -> Tensor:
        vectors = estimate[f"{name}.vectors"]
        return vectors * estimate[f"{name}.values"] @ vectors.T

    hessian: Any = torch.autograd.functional.hessian(lambda z: loss(z, y), model(x).detach())
    assert relative(factor("1.slopes"), hessian.diagonal(dim1=0, dim2=2).sum(-1)) < TIGHT
    if microbatch_size is None or reduction == "sum":  # otherwise chunks are weighed by their targets
        ones = torch.cat([x, torch.ones(20, 1, dtype=torch.float64)], dim=1)
        assert relative(factor("0.inputs"), ones.T @ ones / 20) < TIGHT


def test_random_signs_have_the_exact_factors_as_their_mean():
    """An entry of B is then a mean of 300 sums over 20 rows; 0.2 is some five times the standard error of one row's."""
    x, y = normal(20, 3), torch.randint(3, (20,), generator=generator(3))
    model, loss = network(), nn.CrossEntropyLoss()
    curved = linearize(Objective(model, loss, (x, y), microbatch_size=7))
    torch.manual_seed(0)
    estimate = Kronecker(probes=300, damping="exact").estimate(curved, [31])
    b = estimate["1.slopes.vectors"] * estimate["1.slopes.values"] @ estimate["1.slopes.vectors"].T
    hessian: Any = torch.autograd.functional.hessian(lambda z: loss(z, y), model(x).detach())
    assert relative(b, hessian.diagonal(dim1=0, dim2=2).sum(-1)) < 0.2


def test_weight_and_bias_may_be_in_different_blocks(exact):
    """The flat vector in any order of the parameters, the blocks between them."""
    model = network()
    order = [model[2].bias, model[0].weight, model[0].bias, model[2].weight]
    sizes = [p.numel() for p in order]
    x, y, loss = normal(1, 3), torch.tensor([1]), nn.CrossEntropyLoss()
    damping = torch.cat(
        [torch.full((size,), 0.1 * (i + 1), dtype=torch.float64) for i, size in enumerate(sizes)],
    )
    ggn = dense_oracle(model, loss, x, y, parameters=order).ggn
    expected = torch.linalg.inv(blocks_of(ggn, sizes) + torch.diag(damping))
    assert relative(inverse(Objective(model, loss, (x, y)), damping, order, sizes), expected) < TIGHT
    # In one block, the last layer's parameters are joint although they lie apart.
    layered = ggn.clone()
    apart = torch.tensor([0] * 3 + [1] * 16 + [0] * 12)
    layered[apart.unsqueeze(1) != apart] = 0
    found = inverse(Objective(model, loss, (x, y)), 0.1, order, [31])
    assert relative(found, damped_inverse(layered, 0.1)) < TIGHT


def test_parameters_outside_the_space_have_no_factor(exact):
    model = network()
    x, y, loss = normal(1, 3), torch.tensor([1]), nn.CrossEntropyLoss()
    order = [model[0].bias, model[2].weight]
    ggn = dense_oracle(model, loss, x, y, parameters=order).ggn
    found = inverse(Objective(model, loss, (x, y)), 0.1, order)
    assert relative(found, damped_inverse(blocks_of(ggn, [4, 12]), 0.1)) < TIGHT


class Mixed(nn.Module):
    """Layers with and without factors: normalisation, an embedding, a layer that is called twice, one that is not."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.norm = nn.BatchNorm1d(4)
        self.twice = nn.Linear(4, 4)
        self.unused = nn.Linear(2, 2)
        self.out = nn.Linear(4, 3, bias=False)

    def forward(self, x):
        h = self.norm(self.embed(x))
        return self.out(self.twice(self.twice(h).tanh()))


def test_other_parameters_get_the_diagonal(unchanged):
    torch.manual_seed(0)
    model = Mixed().double()
    x, y = torch.randint(5, (12,), generator=generator(1)), torch.randint(3, (12,), generator=generator(2))
    objective = Objective(model, nn.CrossEntropyLoss(), (x, y), weight_decay=0.1)
    curved = linearize(objective)
    size = curved.space.size
    with unchanged(model):
        estimate = Kronecker(probes=2000, damping="exact").estimate(curved, [size])
    assert estimate["layers"].tolist() == [[size - 12, -1, 4, 3]]
    exact = torch.stack([curved.quadratic_form(unit) for unit in torch.eye(size, dtype=torch.float64)])
    others, own = estimate["diagonal"][: size - 12], estimate["diagonal"][size - 12 :]
    assert torch.equal(own, torch.full_like(own, 0.1))
    # Five standard errors of the estimate (test_precond_ggn_diagonal).
    assert bool(((others - exact[: size - 12]).abs() <= 5 * (2 / 2000) ** 0.5 * exact[: size - 12]).all())
    apply = Kronecker(damping="exact").inverse(estimate, 0.0, [size])
    dense = columns(apply, size)
    assert dense.isfinite().all()
    assert relative(dense, dense.T) < TIGHT
    assert float(torch.linalg.eigvalsh(dense)[0]) > 0


def test_without_supported_layers_it_is_the_diagonal():
    model = nn.Sequential(nn.Embedding(5, 3), nn.LayerNorm(3)).double()
    x, y = torch.randint(5, (12,), generator=generator(1)), torch.randint(3, (12,), generator=generator(2))
    curved = linearize(Objective(model, nn.CrossEntropyLoss(), (x, y)))
    torch.manual_seed(0)
    found = Kronecker(probes=8, damping="exact").estimate(curved, [21])
    torch.manual_seed(0)
    draw_seed()  # that of the factors
    assert torch.equal(found["diagonal"], GGNDiagonal(probes=8).estimate(curved, [21])["diagonal"])
    assert found["layers"].shape == (0, 4)
    assert Kronecker(damping="exact").inverse(found, 0.1, [21])(torch.ones(21, dtype=torch.float64)).isfinite().all()


def test_convolutions_and_dropout_leave_no_trace(unchanged):
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Dropout(), nn.Flatten(),
        nn.Linear(48, 3),
    )  # fmt: skip
    x, y = normal(6, 1, 4, 4).float(), torch.randint(3, (6,), generator=generator(2))
    objective = Objective(model, nn.CrossEntropyLoss(), (x, y))
    curved = linearize(objective)
    with unchanged(model):
        estimate = Kronecker(damping="exact").estimate(curved, [curved.space.size])
    assert all(isinstance(tensor, Tensor) for tensor in estimate.values())
    assert len(estimate["layers"]) == 2
    curved.matvec(torch.ones(curved.space.size))  # parameters count as unchanged
    apply = Kronecker(damping="exact").inverse(estimate, 1e-3, [curved.space.size])
    for seed in range(5):
        r = normal(curved.space.size, seed=seed).float()
        assert float(r @ apply(r)) > 0


def test_half_precision_is_decomposed_in_single():
    model = network().to(torch.bfloat16)
    objective = Objective(model, nn.CrossEntropyLoss(), (normal(6, 3).to(torch.bfloat16), torch.arange(6) % 3))
    curved = linearize(objective)
    estimate = Kronecker(damping="exact").estimate(curved, [curved.space.size])
    assert all(tensor.dtype == torch.float32 for name, tensor in estimate.items() if name != "layers")


@pytest.mark.parametrize(("loss", "targets", "said"), [
    (nn.L1Loss(), normal(6, 3), "got L1Loss"),
    (lambda outputs, targets: outputs.mean().square(), normal(6, 3), "got <lambda>"),
    (functools.partial(F.smooth_l1_loss, beta=1e-9), normal(6, 3), "got smooth_l1_loss"),
    (nn.PoissonNLLLoss(log_input=False), -normal(6, 3).exp(), "got PoissonNLLLoss"),
])  # fmt: skip
def test_other_losses_are_named(loss, targets, said):
    curved = linearize(Objective(network(), loss, (normal(6, 3), targets)))
    with pytest.raises(ValueError, match=said) as caught:
        Kronecker(damping="exact").estimate(curved, [31])
    for name in ("nn.MSELoss", "nn.CrossEntropyLoss", "'ggn_diagonal'"):
        assert name in str(caught.value)


class OwnSquaredError(nn.Module):
    def __init__(self, reduction: str):
        super().__init__()
        self.reduction = reduction

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        squares = (outputs - targets).square()
        return squares.mean() if self.reduction == "mean" else squares.sum()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("size", [6, 4], ids=["whole", "uneven-chunks"])
def test_a_loss_of_ones_own_has_the_factors_of_the_same_loss_of_torch(reduction, size):
    """With one output the root is a number, whose sign does not count; all is the same but for rounding.

    The layer norm has a diagonal, which is estimated with the same signs.
    """
    layers = nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 1)
    model, data = nn.Sequential(*layers).double(), (normal(6, 3), normal(6, 1))
    found = []
    for loss in (nn.MSELoss(reduction=reduction), OwnSquaredError(reduction)):
        torch.manual_seed(3)
        objective = Objective(model, loss, data, microbatch_size=size)
        found.append(Kronecker(damping="exact").moments(linearize(objective), [29]))
    assert float(found[0]["diagonal"][16:24].min()) > 0
    assert all(float((found[0][key] - found[1][key]).abs().max()) < TIGHT for key in found[0])


def test_a_loss_of_ones_own_that_takes_more_than_a_tensor_is_refused():
    """Its one output that depends on the parameters must not be taken for all that the loss gets."""

    class Pair(nn.Sequential):
        def forward(self, x):
            return super().forward(x), x

    objective = Objective(
        Pair(nn.Linear(3, 3)).double(), lambda o, y: (o[0] - y).square().mean(), (normal(6, 3), normal(6, 3))
    )
    with pytest.raises(ValueError, match="of one tensor"):
        Kronecker(damping="exact").estimate(linearize(objective), [12])


def test_an_objective_without_examples_is_refused():
    model = network()

    def forward():
        outputs = model(torch.ones(2, 3, dtype=torch.float64))
        return outputs.square().mean(), outputs

    curved = linearize(Objective.from_forward(model, forward))
    with pytest.raises(ValueError, match="from_forward"):
        Kronecker(damping="exact").estimate(curved, [31])


def test_settings_are_checked():
    with pytest.raises(ValueError, match="probes must be a whole number >= 1"):
        Kronecker(probes=0, damping="exact")
