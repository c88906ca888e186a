"""Energies and forces of small clusters: Gauss-Newton beside L-BFGS and Adam, on one clock.

    OMP_NUM_THREADS=1 python examples/forces.py --out runs/forces --time-limit 60

A neural potential E(x) = sum over pairs of phi(1 / r), phi being a network 1-24-24-1, is fitted to energies and forces
-dE/dx of clusters of five atoms whose true potential is Morse's. Both are residuals of one objective, the forces as
derivatives of the network: two terms, the energy's weight 0.1. There is no noise and phi can be learnt, so that the
residuals can become very small. Measured is the root mean square of the error of a force component on clusters that
were not trained on; beside it stands the objective. All data, float64, every method from the same parameters.
"""

import functools

import torch
from scipy_lbfgs import scipy_lbfgs
from timed_runs import Line, Step, closure_step, command_line, compare, look, plot
from torch import Tensor, nn

from latephase import GaussNewton, Objective

ATOMS, TRAINING, HELD_OUT = 5, 100, 200
FIRST, SECOND = torch.triu_indices(ATOMS, ATOMS, 1)
DEPTH, SHARPNESS = 1.0, 1.5
"""Of Morse's potential, whose minimum is at a distance of 1."""
WEIGHTS = {"energy": 0.1, "forces": 1.0}


class Potential(nn.Module):
    """Energies [N, 1] of clusters [N, atoms, 3]: one network for all pairs."""

    def __init__(self):
        super().__init__()
        self.pair = nn.Sequential(nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1))

    def forward(self, x: Tensor) -> Tensor:
        """The sum over pairs."""
        return self.pair(1 / distances(x).unsqueeze(2)).sum(dim=1)


def distances(x: Tensor) -> Tensor:
    """Distances of all pairs [N, pairs] of clusters [N, atoms, 3]."""
    # What x[:, FIRST] does cannot be followed backwards example by example; what index_select does can.
    return (x.index_select(1, FIRST) - x.index_select(1, SECOND)).norm(dim=2)


def morse(x: Tensor) -> Tensor:
    """The true energy [N, 1]."""
    near = torch.exp(-SHARPNESS * (distances(x) - 1))
    return DEPTH * (near.square() - 2 * near).sum(dim=1, keepdim=True)


def forces_of(energy, x: Tensor) -> Tensor:
    """-dE/dx [N, 3 atoms], differentiable in the parameters."""
    x = x.requires_grad_()
    return -torch.autograd.grad(energy(x).sum(), x, create_graph=True)[0].flatten(1)


def energy_error(model: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    """Residuals [N, 1] of (clusters, energies)."""
    x, energy = data
    return model(x) - energy


def force_error(model: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    """Residuals [N, 3 atoms] of (clusters, forces)."""
    x, forces = data
    return forces_of(model, x) - forces


def clusters(count: int) -> Tensor:
    """Clusters [count, atoms, 3] whose nearest atoms are between 0.7 and 1.3 apart."""
    drawn = 2.4 * torch.rand(400 * count, ATOMS, 3)
    nearest = distances(drawn).min(dim=1).values
    return drawn[(nearest > 0.7) & (nearest < 1.3)][:count].clone()


def start(method: str) -> tuple[Step, functools.partial[Line]]:
    """The step of a method from the parameters that all of them begin with, and what is measured."""
    torch.manual_seed(0)
    x, others = clusters(TRAINING), clusters(HELD_OUT)
    terms = {
        "energy": (energy_error, (x, morse(x))),
        "forces": (force_error, (x, forces_of(morse, x.clone()).detach())),
    }
    true = forces_of(morse, others.clone()).detach()
    model = Potential()
    objective = Objective.from_residuals(model, terms, weights=WEIGHTS)

    def measured() -> Line:
        error = forces_of(model, others.clone()).detach() - true
        return {"error": float(error.square().mean().sqrt()), "objective": float(objective.value())}

    return step_of(method, model, objective), functools.partial(measured)


def step_of(method: str, model: nn.Module, objective: Objective) -> Step:
    """One step of a method on all of the data."""
    if method == "gauss_newton":
        optimizer = GaussNewton(model.parameters())
        return lambda: {"loss": float(optimizer.step(objective)), "damping": optimizer.damping}
    if method == "adam":
        return closure_step(torch.optim.Adam(model.parameters(), lr=3e-3), objective)
    return scipy_lbfgs(model, objective)


LOOKS = {
    "adam": look("Adam, rate 0.003", "blue"),
    "lbfgs": look("L-BFGS (SciPy)", "green"),
    "gauss_newton": look("Gauss-Newton", "red"),
}


def main() -> None:
    """Read the command line."""
    given = command_line(__doc__, "forces", tuple(LOOKS), 60.0).parse_args()
    torch.set_default_dtype(torch.float64)
    compare(given, start, training=TRAINING)
    plot(
        given.out,
        given.out / "forces.png",
        LOOKS,
        "force error on other clusters (root mean square)",
        {"objective": "objective"},
    )


if __name__ == "__main__":
    main()
