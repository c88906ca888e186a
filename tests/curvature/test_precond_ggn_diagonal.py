"""The estimated diagonal of the Gauss-Newton matrix against the dense matrix in float64.

With n probes an entry is the mean of n squares of random sums with variance at most 2 D^2, so that its standard error
is at most sqrt(2/n) D. Five of them are allowed, for the worst of some tens of entries.
"""

import pytest
import torch
import torch.nn.functional as F
from dense_oracle import dense_oracle
from torch import Tensor, nn

from latephase import Objective
from latephase.curvature import linearize
from latephase.curvature.preconditioners import GGNDiagonal

PROBES = 3000
ALLOWED = 5 * (2 / PROBES) ** 0.5
ROWS = 7


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


Y = torch.randint(3, (ROWS,), generator=generator(2))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def estimated(objective: Objective, probes: int = PROBES, curvature: str = "ggn") -> Tensor:
    torch.manual_seed(5)
    curved = linearize(objective, curvature)
    estimate = GGNDiagonal(probes=probes).estimate(curved, [curved.space.size])
    assert list(estimate) == ["diagonal"]
    return estimate["diagonal"]


def within(found: Tensor, exact: Tensor, allowed: float = ALLOWED) -> None:
    assert float(exact.min()) >= 0
    assert bool(((found - exact).abs() <= allowed * exact + 1e-12).all()), (found / exact).tolist()


@pytest.mark.parametrize(("loss", "targets"), [
    (nn.CrossEntropyLoss(), Y),
    (nn.CrossEntropyLoss(torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64), label_smoothing=0.1), Y),
    (nn.MSELoss(), normal(ROWS, 3)),
    (nn.MSELoss(reduction="sum"), normal(ROWS, 3)),
    (nn.BCEWithLogitsLoss(), normal(ROWS, 3).sigmoid()),
    (nn.PoissonNLLLoss(), normal(ROWS, 3).exp()),
], ids=["cross entropy", "weights", "squared error", "sum", "binary", "poisson"])  # fmt: skip
def test_its_mean_is_the_diagonal(loss, targets):
    x = normal(ROWS, 3)
    exact = dense_oracle(network(), loss, x, targets).ggn.diagonal()
    within(estimated(Objective(network(), loss, (x, targets))), exact)


def test_chunks_have_signs_of_their_own_and_the_same_mean():
    x, loss = normal(ROWS, 3), nn.CrossEntropyLoss()
    y = torch.where(torch.arange(ROWS) == 1, -100, Y)
    exact = dense_oracle(network(), loss, x, y).ggn.diagonal()
    within(estimated(Objective(network(), loss, (x, y), microbatch_size=3)), exact)
    # Equal chunks with the same signs would be one chunk several times over.
    alike = x[:1].expand(4, 3), Y[:1].expand(4)
    chunked = estimated(Objective(network(), loss, alike, microbatch_size=1), probes=1)
    assert not torch.allclose(chunked, estimated(Objective(network(), loss, (x[:1], Y[:1])), probes=1))


def test_a_chunk_without_targets_that_count_adds_zero():
    x, y = normal(ROWS, 3), torch.where(torch.arange(ROWS) < 3, -100, Y)
    found = estimated(Objective(network(), nn.CrossEntropyLoss(), (x, y), microbatch_size=3))
    within(found, dense_oracle(network(), nn.CrossEntropyLoss(), x, y).ggn.diagonal())


def test_the_l2_term_adds_its_coefficient():
    data, loss = (normal(ROWS, 3), Y), nn.CrossEntropyLoss()
    decay = (0.3, lambda name, parameter: parameter.dim() > 1)
    difference = estimated(Objective(network(), loss, data, weight_decay=decay), 2) - estimated(
        Objective(network(), loss, data), 2
    )
    expected = torch.cat([torch.full_like(p, 0.3 if p.dim() > 1 else 0).reshape(-1) for p in network().parameters()])
    torch.testing.assert_close(difference, expected, rtol=0, atol=1e-14)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.LSTM(3, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x):
        return self.out(self.cell(x)[0][:, -1])


def test_no_layer_is_excluded(unchanged):
    """Batch norm in training mode and recurrent layers have no gradients of single examples here."""
    torch.manual_seed(0)
    norm = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()
    for model, x in ((norm, normal(ROWS, 3)), (Recurrent().double(), normal(ROWS, 4, 3))):
        twin = [p.detach().clone() for p in model.parameters()]
        objective = Objective(model, nn.CrossEntropyLoss(), (x, Y))
        curved = linearize(objective)
        size = curved.space.size
        exact = torch.stack([curved.quadratic_form(unit) for unit in torch.eye(size, dtype=torch.float64)])
        torch.manual_seed(5)
        with unchanged(model):
            found = GGNDiagonal(probes=1000).estimate(curved, [size])["diagonal"]
        within(found, exact, 5 * (2 / 1000) ** 0.5)
        assert all(map(torch.equal, twin, model.parameters()))


def test_dropout_has_the_masks_of_the_products():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 3)).double()
    objective = Objective(model, nn.CrossEntropyLoss(), (normal(ROWS, 3), Y))
    objective.reseed()
    curved = linearize(objective)
    size = curved.space.size
    exact = torch.stack([curved.quadratic_form(unit) for unit in torch.eye(size, dtype=torch.float64)])
    within(GGNDiagonal(probes=PROBES).estimate(curved, [size])["diagonal"], exact)


def own_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.softplus(outputs - targets).mean()


def coupled_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return own_loss(outputs, targets).square()


def test_a_loss_of_ones_own_needs_no_products():
    x, targets, model = normal(ROWS, 3), normal(ROWS, 3, seed=3), network()
    curved = linearize(Objective(model, own_loss, (x, targets), weight_decay=0.1))
    torch.manual_seed(5)
    found = GGNDiagonal(probes=PROBES).estimate(curved, [curved.space.size])["diagonal"]
    assert curved.products == 0
    within(found, dense_oracle(model, own_loss, x, targets).ggn.diagonal() + 0.1)


def test_an_unknown_loss_goes_by_products():
    """Hutchinson's estimate: what stands beside the diagonal is its standard error, row by row."""
    x, targets, model = normal(ROWS, 3), normal(ROWS, 3, seed=3), network()
    ggn = dense_oracle(model, coupled_loss, x, targets).ggn
    curved = linearize(Objective(model, coupled_loss, (x, targets), weight_decay=0.1))
    before = curved.products
    torch.manual_seed(5)
    found = GGNDiagonal(probes=PROBES).estimate(curved, [curved.space.size])["diagonal"]
    assert curved.products - before == PROBES
    exact = ggn.diagonal() + 0.1
    beside = (ggn.square().sum(1) - ggn.diagonal().square()).clamp(min=0).sqrt()
    assert bool(((found - exact).abs() <= 5 * beside / PROBES**0.5 + 1e-12).all())


@pytest.mark.parametrize("probes", [1, 3])
def test_products_of_an_indefinite_matrix_are_taken_in_absolute_value(probes):
    x, model = normal(ROWS, 3), network()

    def forward():
        outputs = model(x)
        return (outputs**3 - outputs).sum(), outputs

    curved = linearize(Objective.from_forward(model, forward), "hessian")
    found = GGNDiagonal(probes=probes).estimate(curved, [curved.space.size])["diagonal"]
    assert float(found.min()) >= 0
    assert float(found.max()) > 0


def test_half_precision_is_squared_in_single():
    x = normal(ROWS, 3)
    model = network().to(torch.bfloat16)
    found = estimated(Objective(model, nn.CrossEntropyLoss(), (x.to(torch.bfloat16), Y)), 500)
    assert found.dtype == torch.float32
    exact = dense_oracle(network(), nn.CrossEntropyLoss(), x, Y).ggn.diagonal()
    within(found.double(), exact, 5 * (2 / 500) ** 0.5 + 0.05)  # eight bits, squared


@pytest.mark.parametrize("wrong", [0, 2.5])
def test_the_number_of_probes_is_checked(wrong):
    with pytest.raises(ValueError, match="probes must be a whole number >= 1"):
        GGNDiagonal(probes=wrong)
