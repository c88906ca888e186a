"""The solvers that there are, each held to the contract of all."""

import math
from itertools import pairwise

import numpy as np
import torch
from cg_systems import energy
from solver_contract import Solved, SolverContract

from latephase.solve import DirectSolve, LeastSquares, conjugate_gradient


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


class TestDirect(SolverContract):
    """Primal from the matrix, both sides from rows that are its root, by each decomposition."""

    starts = False

    def solve(self, matrix, b, *, block_sizes=None, rows=False, **options):
        sizes = [len(b)] if block_sizes is None else block_sizes
        edges = np.cumsum([0, *sizes])
        found = []
        for begin, end in pairwise(edges):
            block, g = matrix[begin:end, begin:end], -torch.from_numpy(b[begin:end])
            root = None
            if rows and np.isfinite(block).all():
                values, vectors = np.linalg.eigh(block)
                root = torch.from_numpy((vectors * np.sqrt(np.maximum(values, 0))).T.astype(block.dtype))
            model = LeastSquares(g, rows=root, matrix=None if root is not None else torch.from_numpy(block))
            own = {} if root is None and rows else options
            p = DirectSolve(model, **own).solve(0.0)
            found.append(np.zeros(end - begin, b.dtype) if p is None else p.numpy())
        solution = np.concatenate(found)
        predicted = energy(matrix, b, solution) if np.isfinite(matrix).all() and np.isfinite(b).all() else math.nan
        return Solved(solution, [predicted], [solution])

    def options(self):
        return {
            "cholesky": {"factorization": "cholesky"},
            "eigh": {"factorization": "eigh"},
            "auto": {},
            "rows": {"rows": True, "side": "primal"},
            "svd": {"rows": True, "factorization": "svd"},
        }
