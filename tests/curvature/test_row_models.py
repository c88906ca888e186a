"""Rows J~ of models with random numbers, derivatives inside, or what torch.func.vmap refuses."""

import pytest
import torch
from dense_oracle import columns, dense_oracle, relative
from product_cases import REALS, VECTORS, mlp, randn, seeded
from row_cases import TIGHT, check, gram
from torch import nn

from latephase import Objective
from latephase.curvature import linearize


@pytest.mark.parametrize("dropout_first", [False, True])
def test_dropout_has_the_masks_of_the_products(dropout_first):
    torch.manual_seed(0)
    layers = [nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3)]
    model = nn.Sequential(*([nn.Dropout(0.3)] if dropout_first else []), *layers).double()
    objective = Objective(model, nn.MSELoss(), (VECTORS, REALS), microbatch_size=3)
    curved = linearize(objective)
    check(objective, columns(curved.matvec, curved.space.size))


class Branching(nn.Module):
    """A model that vmap refuses, with an operation that is not followed."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        y = torch.fft.fft(self.layer(x)).real
        return y.tanh() if float(y.detach().sum()) > 1e6 else y.sin()


def test_a_model_that_vmap_refuses_goes_example_by_example():
    objective = Objective(seeded(Branching), nn.MSELoss(), (VECTORS, REALS))
    with pytest.warns(UserWarning, match="rows of Branching are computed example by example"):
        rows = linearize(objective).rows()
    expected = dense_oracle(seeded(Branching), nn.MSELoss(), VECTORS, REALS)
    assert relative(gram(rows), expected.ggn) < TIGHT


class Recurrent(nn.Module):
    """A model that vmap refuses, and torch's fused kernels do not differentiate twice."""

    def __init__(self):
        super().__init__()
        self.cells, self.last = nn.LSTM(1, 2, batch_first=True), nn.Linear(2, 3)

    def forward(self, x):
        return self.last(self.cells(x.unsqueeze(2))[0][:, -1])


def laplacian(model, points):
    """Derivatives within, by autograd's own functions."""
    x = points.detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return slope[:, :3] + model(x)


@pytest.mark.filterwarnings("ignore:rows of")
@pytest.mark.parametrize("size", [None, 3])
def test_further_models_that_vmap_refuses(size):
    for build, options in ((Recurrent, {}), (mlp, {"forward": laplacian})):
        objective = Objective(seeded(build), nn.MSELoss(), (VECTORS, REALS), microbatch_size=size, **options)
        curved = linearize(objective, method="double_backward")
        check(objective, columns(curved.matvec, curved.space.size))


def curved_forward(model, points):
    """Second derivatives within, by torch.func, whose zero tensors and wrapped ones the graph keeps."""
    hessians = torch.func.vmap(torch.func.hessian(lambda x: model(x.unsqueeze(0))[0].sum()))(points)
    return model(points) + hessians.diagonal(dim1=1, dim2=2)[:, :3]


@pytest.mark.parametrize("size", [None, 3])
def test_derivatives_within_by_torch_func(size):
    objective = Objective(seeded(mlp), nn.MSELoss(), (VECTORS, REALS), microbatch_size=size, forward=curved_forward)
    curved = linearize(objective, method="double_backward")
    check(objective, columns(curved.matvec, curved.space.size))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_pieces_leave_room_for_what_the_pass_keeps(dropout):
    """Few parameters, large images: most memory is that of the backward pass."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    model = nn.Sequential(nn.Dropout(dropout), *layers).double()
    limit, image = 100_000, 4 * 18 * 18 * 8
    objective = Objective(model, nn.MSELoss(), (randn(5, 1, 20, 20, seed=1), REALS[:5]), memory_limit=limit)
    curved = linearize(objective)
    pieces = list(curved.row_pieces())
    assert 1 <= max(map(len, pieces)) <= max(limit // (image if not dropout else 5 * image), 1)
    torch.testing.assert_close(torch.cat(pieces), linearize(objective).rows(), rtol=1e-12, atol=1e-14)
