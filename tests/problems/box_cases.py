"""The physics-informed problems on a box, with narrow networks."""

import numpy as np
import torch

from latephase import problems

PLACES = {
    **dict.fromkeys(("burgers", "allen_cahn", "kdv", "heat1d"), 1),
    **{"helmholtz": 2, "poisson2d": 2, "poisson5d": 5, "poisson10d": 10, "heat4d": 4},
}
HARD = ("burgers", "allen_cahn", "kdv", "helmholtz", "poisson2d")
CASES = [*((name, False) for name in PLACES), *((name, True) for name in HARD)]
WIDE = ("burgers", "allen_cahn", "kdv", "helmholtz")
"""Those on -1 <= x <= 1; the others are on 0 <= x <= 1."""
TIMED = ("burgers", "allen_cahn", "kdv", "heat1d", "heat4d")


def made(name, hard=False, width=4, points=40):
    """A problem of a narrow network, and the network with biases that are not zero."""
    problem = problems.get(f"pinn_{name}", width=width, points=points, **({"hard": True} if hard else {}))
    torch.manual_seed(0)
    model = problem.model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return problem, model


def as_function(model):
    """A module as a function of points [N, d] in NumPy -> [N]."""

    def f(points):
        with torch.no_grad():
            return model(torch.from_numpy(points))[:, 0].numpy()

    return f


def exact(name, points):
    """Known solutions, [N]."""
    x = points
    return {
        "helmholtz": lambda: np.sin(np.pi * x[:, 0]) * np.sin(4 * np.pi * x[:, 1]),
        "poisson2d": lambda: np.sin(np.pi * x[:, 0]) * np.sin(np.pi * x[:, 1]),
        "poisson5d": lambda: np.cos(np.pi * x).sum(1),
        "poisson10d": lambda: sum(x[:, i] * x[:, i + 1] for i in range(0, 10, 2)),
        "heat1d": lambda: np.exp(-(np.pi**2) * x[:, 1] / 4) * np.sin(np.pi * x[:, 0]),
        "heat4d": lambda: np.exp(-x[:, 4]) * np.sin(2 * x[:, :4]).sum(1),
    }[name]()


def terms_of(data):
    """(key, points, targets, scale) of each term."""
    for inputs, targets in data:
        ((key, points),) = ((key, leaf) for key, leaf in inputs.items() if key != "scale")
        yield key, points, targets, inputs["scale"]
