"""The solvers that there are, each held to the contract of all."""

import numpy as np
import torch
from solver_contract import Solved, SolverContract

from latephase.solve import conjugate_gradient


class TestConjugateGradients(SolverContract):
    """Plain, preconditioned by the diagonal, with few looks at the device, and from a start that is scaled."""

    def solve(self, matrix, b, *, jacobi=False, x0=None, **options):
        tensor, diagonal = torch.tensor(matrix), torch.tensor(np.diag(matrix).copy())
        preconditioner = (lambda r: r / diagonal) if jacobi else None
        start = None if x0 is None else torch.from_numpy(x0)
        found = conjugate_gradient(
            lambda v: tensor @ v, torch.from_numpy(b), start, preconditioner=preconditioner, **options
        )
        return Solved(found.solution.numpy(), [sum(each) for each in found.values], [x.numpy() for x in found.iterates])

    def options(self):
        # Far below what is asked for: the recursive residual drifts from the true one, and float32 stops at rounding.
        to_the_end = {"stopping": "residual", "tolerance": 1e-13, "max_iter": 400}
        return {
            "plain": to_the_end,
            "martens": {"stopping": "martens", "tolerance": 1e-18, "max_iter": 400},
            "jacobi": {**to_the_end, "jacobi": True},
            "few looks": {**to_the_end, "check_every": 7},
            "scaled start": {**to_the_end, "rescale_x0": True},
        }
