"""What every preconditioner keeps: a class of tests that one inherits, with its settings and a dense oracle.

    class TestMine(PreconditionerContract):
        def method(self):
            return Mine()

        def dense(self, model, x, y, blocks):
            return ...  # the undamped M [P, P], in float64

The problem has one output, so that random signs square to one: what is random elsewhere is exact here, or nearly so.
"""

import copy
import dataclasses
import io
from collections.abc import Sequence

import pytest
import torch
import torch.distributed as dist
from dense_oracle import columns, relative
from torch import Tensor, nn

from latephase import CG, HessianFree, Objective
from latephase.curvature import linearize
from latephase.curvature.preconditioners import Preconditioner

ROWS, SIZES, DECAY = 11, [16, 5], 0.01
SIZE = sum(SIZES)
BY_LAYER = torch.cat([torch.full((16,), 0.1), torch.full((5,), 0.4)]).double()
"""A damping for each parameter, one number within a layer."""


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).to(dtype)


def data(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    x = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x.to(dtype), x.sum(1, keepdim=True).sin().to(dtype)


def objective_of(model: nn.Module, **options) -> Objective:
    batch = data(next(model.parameters()).dtype)
    return Objective(model, nn.MSELoss(), batch, weight_decay=DECAY, **options)


class PreconditionerContract:
    """Inherit, give `method` and `dense`, and say how near they come.

    Attributes:
        allowed: largest deviation of M from the oracle, relative to its largest entry; with random numbers some five
            standard errors.
        draws: whether the estimate takes random numbers.
    """

    allowed = 1e-10
    draws = True

    def method(self) -> Preconditioner:
        """The method, with settings under which the oracle holds."""
        raise NotImplementedError

    def dense(self, model: nn.Module, x: Tensor, y: Tensor, blocks: Sequence[int]) -> Tensor:
        """M without damping [P, P], the L2 term's `DECAY` on the diagonal included, zero outside the blocks."""
        raise NotImplementedError

    def estimate(self, model: nn.Module, blocks: Sequence[int] = (SIZE,), method=None, **options):
        """The method's estimate from a fixed state of torch's generator."""
        curved = linearize(objective_of(model, **options))
        torch.manual_seed(3)
        return (method or self.method()).estimate(curved, list(blocks))

    @pytest.mark.parametrize("blocks", [[SIZE], SIZES], ids=["one block", "two blocks"])
    @pytest.mark.parametrize("damping", [0.3, BY_LAYER], ids=["a number", "per parameter"])
    def test_it_is_the_inverse_of_the_dense_matrix(self, damping, blocks):
        model = network()
        expected = self.dense(model, *data(), blocks) + torch.diag(torch.ones(SIZE).double() * damping)
        found = columns(self.method().inverse(self.estimate(model, blocks), damping, blocks), SIZE)
        assert relative(torch.linalg.inv(found), expected) < self.allowed
        assert relative(found, torch.linalg.inv(expected)) < self.allowed

    @pytest.mark.parametrize("blocks", [[SIZE], SIZES, [16, 4, 1]], ids=str)
    @pytest.mark.parametrize("damping", [0.0, 0.3, BY_LAYER], ids=["none", "a number", "per parameter"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_it_is_symmetric_positive_definite_and_stays_in_its_blocks(self, dtype, damping, blocks):
        model = network(dtype)
        estimate = self.estimate(model, blocks)
        given = damping.to(dtype) if isinstance(damping, Tensor) else damping
        apply = self.method().inverse(estimate, given, blocks)
        dense = torch.stack([apply(unit) for unit in torch.eye(SIZE, dtype=dtype)], dim=1)
        assert dense.dtype == dtype
        assert dense.isfinite().all()
        rounding = 1e-3 if dtype == torch.float32 else 1e-6  # roots of eigenvalues of rounding errors
        assert relative(dense, dense.T) < rounding
        for r in torch.randn(5, SIZE, generator=torch.Generator().manual_seed(4)).to(dtype):
            assert float(r @ apply(r)) > 0
        outside = torch.block_diag(*[torch.ones(n, n) for n in blocks]) == 0
        assert not dense[outside].any()

    def test_an_estimate_is_tensors_and_survives_a_file(self):
        model = network()
        estimate = self.estimate(model)
        assert all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in estimate.items())
        assert not any(tensor.requires_grad for tensor in estimate.values())
        file = io.BytesIO()
        torch.save(estimate, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=True)
        r = torch.randn(SIZE, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        for damping in (0.1, BY_LAYER):
            first, second = (self.method().inverse(each, damping, [SIZE])(r) for each in (estimate, loaded))
            assert torch.equal(first, second)

    def test_one_estimate_serves_every_damping(self):
        """It is undamped, and no inverse writes into it, nor into what it is applied to."""
        model = network()
        estimate = self.estimate(model)
        before, r = copy.deepcopy(estimate), torch.ones(SIZE, dtype=torch.float64)
        applies = [self.method().inverse(estimate, damping, [SIZE]) for damping in (1.0, 1e-3)]
        norms = [float(apply(r).norm()) for apply in applies]
        assert norms[0] < norms[1]
        assert torch.equal(r, torch.ones(SIZE, dtype=torch.float64))
        assert all(torch.equal(tensor, before[name]) for name, tensor in estimate.items())
        assert [float(apply(r).norm()) for apply in applies] == norms

    def test_chunks_are_the_whole(self):
        model = network()
        whole, chunked = self.estimate(model), self.estimate(model, microbatch_size=4)
        matrices = [torch.linalg.inv(columns(self.method().inverse(e, 0.3, [SIZE]), SIZE)) for e in (whole, chunked)]
        assert relative(matrices[1], matrices[0]) < 2 * self.allowed

    def test_a_group_of_one_process_is_no_group(self, tmp_path):
        model = network()
        alone = self.estimate(model)
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
        try:
            together = self.estimate(model, process_group=dist.group.WORLD)
        finally:
            dist.destroy_process_group()
        assert alone.keys() == together.keys()
        first, second = (columns(self.method().inverse(each, 0.3, [SIZE]), SIZE) for each in (alone, together))
        assert relative(second, first) < min(self.allowed, 1e-6)

    def test_the_draw_is_torchs_and_repeats_with_its_state(self):
        model = network()
        curved, state = linearize(objective_of(model)), torch.get_rng_state()
        first = self.method().estimate(curved, [SIZE])
        moved = not torch.equal(state, torch.get_rng_state())
        assert moved == self.draws
        torch.set_rng_state(state)
        again = self.method().estimate(curved, [SIZE])
        assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())

    def test_estimating_leaves_the_model_alone(self, unchanged):
        model = network()
        objective_of(model)()
        curved = linearize(objective_of(model))
        product = curved.matvec(torch.ones(SIZE, dtype=torch.float64))
        with unchanged(model):
            self.method().estimate(curved, [SIZE])
        assert torch.equal(curved.matvec(torch.ones(SIZE, dtype=torch.float64)), product)

    def test_an_estimate_is_kept_as_many_steps_as_it_says(self, monkeypatch):
        method = dataclasses.replace(self.method(), every=3)  # pyright: ignore[reportArgumentType, reportCallIssue]
        estimate, made = type(method).estimate, []

        def counted(self, *arguments):
            made.append(len(steps))
            return estimate(self, *arguments)

        monkeypatch.setattr(type(method), "estimate", counted)
        model, steps = network(), []
        optimizer = HessianFree(model.parameters(), solver=CG(preconditioner=method))
        for step in range(8):
            optimizer.step(objective_of(model))
            assert optimizer.report.accepted
            steps.append(step)
        assert made == [0, 3, 6]
