"""What tests of rows share: the comparison with a dense matrix, and models whose examples depend on each other."""

import torch
from dense_oracle import relative
from torch import Tensor, nn

from latephase import Objective
from latephase.curvature import linearize

TIGHT = 1e-12


def gram(rows: Tensor) -> Tensor:
    return rows.T @ rows


def check(objective: Objective, ggn: Tensor) -> None:
    curved = linearize(objective)
    rows = curved.rows()
    assert relative(gram(rows), ggn) < TIGHT
    for most in (None, 1, 2, 4, 7, 1_000):
        pieces = list(curved.row_pieces(most))
        assert max(map(len, pieces)) <= (most or len(rows))
        torch.testing.assert_close(torch.cat(pieces), rows, rtol=1e-12, atol=1e-14)


class Centred(nn.Module):
    """Rows mix, at first without effect: the last layer is zero."""

    def __init__(self, first: nn.Module):
        super().__init__()
        self.first, self.last = first, nn.Linear(4, 3)
        nn.init.zeros_(self.last.weight)

    def forward(self, x):
        return self.last(self.first(x))


class Minus(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.full((4,), 0.5))

    def forward(self, x):
        scaled = self.scale * x
        return scaled - scaled.mean(0)
