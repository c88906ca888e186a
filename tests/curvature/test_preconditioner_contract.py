"""The preconditioners that there are, each held to the contract of all."""

import functools

import torch
import torch.nn.functional as F
from dense_oracle import dense_oracle
from precond_cases import by_loop
from preconditioner_contract import DECAY, ROWS, PreconditionerContract
from torch import Tensor

from latephase.curvature.preconditioners import EmpiricalFisher, GGNDiagonal, Kronecker, Nystrom

PROBES = 3000


def ggn(model, x, y) -> Tensor:
    return dense_oracle(model, torch.nn.MSELoss(), x, y, decay=lambda name, parameter: DECAY).ggn


class TestEmpiricalFisher(PreconditionerContract):
    draws = False

    def method(self):
        return EmpiricalFisher(exponent=1.0)

    def dense(self, model, x, y, blocks):
        total = functools.partial(F.mse_loss, reduction="sum")
        return torch.diag(by_loop(model, total, x, y, torch.ones(ROWS).double() / ROWS) + DECAY)


class TestGGNDiagonal(PreconditionerContract):
    allowed = 5 * (2 / PROBES) ** 0.5

    def method(self):
        return GGNDiagonal(probes=PROBES, exponent=1.0)

    def dense(self, model, x, y, blocks):
        return torch.diag(ggn(model, x, y).diagonal())


class TestNystrom(PreconditionerContract):
    """With full rank it is the matrix itself, but for half the digits."""

    allowed = 1e-6

    def method(self):
        return Nystrom(rank=40)

    def dense(self, model, x, y, blocks):
        return ggn(model, x, y) * torch.block_diag(*[torch.ones(n, n).double() for n in blocks])


class TestKronecker(PreconditionerContract):
    def method(self):
        return Kronecker(probes=2, damping="exact")

    def dense(self, model, x, y, blocks):
        """For each layer the moments of inputs and slopes, from the formulas of a perceptron with one hidden layer."""
        hidden = model[1](model[0](x)).detach()
        slopes = model[2].weight.detach() * (1 - hidden.square())  # of the output in the pre-activations
        layers = [(x, slopes), (hidden, torch.ones(ROWS, 1).double())]
        dense = []
        for inputs, slope in layers:
            a = torch.cat([inputs, torch.ones(ROWS, 1).double()], dim=1)
            inputs_moment, slopes_moment = a.T @ a / ROWS, 2 / ROWS * slope.T @ slope
            whole = torch.kron(slopes_moment, inputs_moment)  # by output, then by input, the bias last
            place = torch.arange(len(whole)).view(slope.shape[1], a.shape[1])
            order = torch.cat([place[:, :-1].reshape(-1), place[:, -1]])
            dense.append(whole[order][:, order])
        return torch.block_diag(*dense) + DECAY * torch.eye(sum(map(len, dense))).double()
