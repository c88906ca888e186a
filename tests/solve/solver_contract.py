"""What every solver of A x = b keeps, whatever it is: a class of tests that a solver inherits, with two functions.

    class TestDirect(SolverContract):
        def solve(self, matrix, b, **options):
            return Solved(...)

        def options(self):
            return {"exact": {...}}

Matrices and vectors are NumPy's, in float64 unless a test says otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from cg_systems import block_diagonal, energy, relative, symmetric, system

SIZES = (1, 2, 7, 30)
CONDITIONS = (1.0, 1e2, 1e5)


@dataclass(frozen=True)
class Solved:
    """What a solver found.

    Attributes:
        solution: x [P], of the dtype of the computation.
        predicted: m(x) = 0.5 x'Ax - b'x of each candidate, as the solver says, summed over the blocks.
        candidates: the candidates [P] in the order in which they are tried, `solution` among them.
    """

    solution: np.ndarray
    predicted: Sequence[float] = ()
    candidates: Sequence[np.ndarray] = field(default_factory=list)


class SolverContract:
    """Inherit, give `solve` and `options`; what a solver cannot do at all is said by the class attributes."""

    starts = True
    """Whether it takes `x0`."""
    narrow = True
    """Whether it computes in float32."""
    refuses = False
    """Whether what is not finite is an error, and not left out of the solution."""

    def solve(self, matrix: np.ndarray, b: np.ndarray, **options: Any) -> Solved:
        """Solve A x = b.

        Args:
            matrix: A [P, P], symmetric positive definite unless a test says otherwise.
            b: right-hand side [P]; float32 where the computation is to be.
            **options: those of `options`, and `x0` [P] or `block_sizes` where a test gives them.
        """
        raise NotImplementedError

    def options(self) -> Mapping[str, Mapping[str, Any]]:
        """Options by name under which the solver goes to the end: to a relative residual of 1e-10."""
        raise NotImplementedError

    def _each(self) -> list[Mapping[str, Any]]:
        return list(self.options().values())

    @pytest.mark.parametrize("condition", CONDITIONS)
    @pytest.mark.parametrize("size", SIZES)
    def test_it_solves_what_is_symmetric_positive_definite(self, size, condition):
        matrix, _, b = system(size, condition, seed=size)
        expected = np.linalg.solve(matrix, b)
        for options in self._each():
            # A relative residual of 1e-10 leaves an error of the condition number times that.
            assert relative(self.solve(matrix, b, **options).solution, expected) < 2e-10 * condition

    def test_blocks_are_systems_of_their_own(self):
        blocks = [symmetric(np.geomspace(1.0, c, n), seed=n) for n, c in ((1, 1.0), (6, 10.0), (13, 1e3))]
        sizes = [len(block) for block in blocks]
        b = np.random.default_rng(3).standard_normal(sum(sizes))
        for options in self._each():
            joint = self.solve(block_diagonal(blocks), b, block_sizes=sizes, **options).solution
            for block, (begin, end) in zip(blocks, pairwise(np.cumsum([0, *sizes])), strict=True):
                assert relative(joint[begin:end], np.linalg.solve(block, b[begin:end])) < 1e-6
                alone = self.solve(block, b[begin:end], **options).solution
                assert relative(joint[begin:end], alone) < 1e-6

    def test_one_block_is_no_blocks(self):
        matrix, _, b = system(12, 50.0, seed=4)
        for options in self._each():
            plain, one = self.solve(matrix, b, **options), self.solve(matrix, b, block_sizes=[12], **options)
            assert np.array_equal(plain.solution, one.solution)
            assert list(plain.predicted) == list(one.predicted)

    def test_a_start_changes_the_way_and_not_the_end(self):
        if not self.starts:
            pytest.skip("takes no start")
        matrix, solution, b = system(20, 30.0, seed=5)
        rng = np.random.default_rng(6)
        for options in self._each():
            for start in (0.9 * solution, solution + 0.1 * rng.standard_normal(20), -solution, np.zeros(20)):
                assert relative(self.solve(matrix, b, x0=start, **options).solution, solution) < 1e-7
            there = self.solve(matrix, b, x0=solution, **options).solution
            assert relative(there, solution) < 1e-9

    def test_arguments_stay_as_they_are(self):
        matrix, solution, b = system(10, 30.0, seed=7)
        starts = {"x0": 0.5 * solution} if self.starts else {}
        for options in self._each():
            given = [matrix.copy(), b.copy(), *(x.copy() for x in starts.values())]
            self.solve(matrix, b, **starts, **options)
            assert all(map(np.array_equal, given, [matrix, b, *starts.values()]))

    def test_nothing_is_the_solution_of_nothing(self):
        matrix, _, _ = system(9, 30.0, seed=8)
        for options in self._each():
            assert not self.solve(matrix, np.zeros(9), **options).solution.any()
            b = np.concatenate([np.zeros(4), np.ones(5)])
            whole = block_diagonal([matrix[:4, :4], matrix[4:, 4:]])
            found = self.solve(whole, b, block_sizes=[4, 5], **options).solution
            assert not found[:4].any()
            assert relative(found[4:], np.linalg.solve(matrix[4:, 4:], b[4:])) < 1e-7

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    @pytest.mark.parametrize("where", ["matrix", "b"])
    def test_what_is_not_finite_is_in_no_solution(self, where, bad):
        """The solution is finite where the solver goes on; an error says so where it does not."""
        blocks = [system(5, 10.0, seed=9)[0], system(6, 10.0, seed=10)[0]]
        matrix, b = block_diagonal(blocks), np.random.default_rng(11).standard_normal(11)
        if where == "b":
            b[2] = bad
        else:
            matrix[2, 2] = bad
        for options in self._each():
            if self.refuses:
                with pytest.raises((ValueError, RuntimeError), match="finite"):
                    self.solve(matrix, b, block_sizes=[5, 6], **options)
            else:
                assert np.isfinite(self.solve(matrix, b, block_sizes=[5, 6], **options).solution).all()

    def test_the_order_of_the_unknowns_does_not_matter(self):
        matrix, _, b = system(15, 30.0, seed=12)
        order = np.random.default_rng(13).permutation(15)
        for options in self._each():
            plain = self.solve(matrix, b, **options).solution
            other = self.solve(matrix[np.ix_(order, order)], b[order], **options).solution
            assert relative(other, plain[order]) < 1e-7

    @pytest.mark.parametrize("factor", [2.0**-20, 4.0, 2.0**30])
    def test_units_do_not_matter(self, factor):
        """Powers of two, which round nothing: c A and c b have the solution of A and b, b times c one c times it."""
        matrix, _, b = system(15, 30.0, seed=14)
        for options in self._each():
            plain = self.solve(matrix, b, **options).solution
            assert relative(self.solve(factor * matrix, factor * b, **options).solution, plain) < 1e-9
            assert relative(self.solve(matrix, factor * b, **options).solution, factor * plain) < 1e-9

    def test_float32_stays_float32(self):
        if not self.narrow:
            pytest.skip("computes in float64 only")
        matrix, solution, b = system(12, 10.0, seed=15)
        for options in self._each():
            found = self.solve(matrix.astype(np.float32), b.astype(np.float32), **options).solution
            assert found.dtype == np.float32
            assert relative(found.astype(float), solution) < 1e-4  # the rounding unit 6e-8 times condition and size
            assert self.solve(matrix, b, **options).solution.dtype == np.float64

    @pytest.mark.parametrize("sizes", [[18], [5, 13]])
    def test_candidates_predict_what_the_quadratic_gives(self, sizes):
        blocks = [system(size, 20.0, seed=16 + size)[0] for size in sizes]
        matrix, b = block_diagonal(blocks), np.random.default_rng(17).standard_normal(18)
        for options in self._each():
            found = self.solve(matrix, b, block_sizes=sizes, **options)
            assert len(found.candidates) == len(found.predicted) >= 1
            assert any(np.array_equal(x, found.solution) for x in found.candidates)
            for x, predicted in zip(found.candidates, found.predicted, strict=True):
                scale = float(np.linalg.norm(b) * np.linalg.norm(x))  # m is a difference of terms of this size
                assert abs(predicted - energy(matrix, b, x)) <= 1e-11 * (scale + 1.0)
