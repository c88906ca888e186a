"""The kernel J~J~' is that of the rows, in float64."""

import pytest
import torch
from product_cases import CASES, REALS, VECTORS, mlp, randn, seeded
from test_row_following import by_autograd, by_hessian, network
from test_row_matrices import ROOTED, objective_of
from test_row_models import Branching
from torch import nn

from latephase import Objective
from latephase.curvature import linearize
from latephase.curvature.rows import kernel


def check(objective: Objective, parameters=None) -> None:
    curved = linearize(objective, method="double_backward", parameters=parameters)
    rows, found = curved.rows(), curved.row_kernel()
    expected = rows @ rows.T
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13 * float(expected.abs().max()))


@pytest.mark.filterwarnings("ignore:rows of")
@pytest.mark.parametrize("name", ROOTED)
def test_kernels_are_those_of_the_rows(name):
    check(objective_of(name))
    if CASES[name].chunked:
        check(objective_of(name, microbatch_size=3))


@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize("most", [1, 2_000, 2**28])
def test_wide_layers_are_never_written_and_others_in_blocks(most, rows, monkeypatch):
    """Of a layer used once the products take fewer numbers than its rows, unless it is narrow."""
    monkeypatch.setattr(kernel, "MOST_BYTES", most)
    monkeypatch.setattr(kernel, "NARROW", rows)
    written = []
    write = kernel._rows

    def noted(columns, count, size, *others):
        written.append((size, len(result := write(columns, count, size, *others))))
        return result

    monkeypatch.setattr(kernel, "_rows", noted)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 30), nn.Tanh(), nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 3)).double()
    check(Objective(model, nn.MSELoss(), (VECTORS, REALS), microbatch_size=6))
    found = linearize(Objective(model, nn.MSELoss(), (VECTORS, REALS))).row_kernel()
    assert torch.equal(found, found.T)
    assert 600 not in {size for size, _ in written}
    assert all(2 * size * count * 8 <= max(most, 2 * size * 8) for size, count in written)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("forward", [by_autograd, by_hessian])
def test_chunks_that_use_layers_differently_often(forward):
    def either(model, inputs):
        return forward(model, inputs["inside"]) if "inside" in inputs else model(inputs["edge"])

    def data(columns):
        edge = torch.zeros(4, 1, dtype=torch.float64)
        inside = torch.zeros(6, columns, dtype=torch.float64)
        return [({"inside": randn(6, 2, seed=1)}, inside), ({"edge": randn(4, 2, seed=2)}, edge)]

    model, columns = seeded(network), 2 if forward is by_autograd else 1
    objective = Objective(model, nn.MSELoss(reduction="sum"), data(columns), forward=either)
    check(objective)
    check(objective, parameters=[model[2].weight, model[0].bias])


def test_chunks_that_count_nothing_have_zeros():
    targets = torch.where(torch.arange(len(VECTORS)) < 4, -100, CASES["cross_entropy"].targets)
    objective = Objective(CASES["cross_entropy"].model(), nn.CrossEntropyLoss(), (VECTORS, targets), microbatch_size=2)
    check(objective)
    assert not linearize(objective).row_kernel()[:12].any()


@pytest.mark.filterwarnings("ignore:rows of")
def test_what_is_not_followed_has_the_kernel_of_its_rows():
    check(Objective(seeded(Branching), nn.MSELoss(), (VECTORS, REALS), microbatch_size=4))


def test_what_has_no_kernel_says_so():
    objective = Objective(seeded(mlp), nn.MSELoss(), (VECTORS, REALS))
    with pytest.raises(ValueError, match="the Hessian is no product"):
        linearize(objective, curvature="hessian").row_kernel()
    with pytest.raises(RuntimeError, match="products=False"):
        linearize(objective, products=False).row_kernel()
