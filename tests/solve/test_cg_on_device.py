"""CG without reading the device: how often the host looks, where the iterates live, and CUDA graphs."""

import contextlib
import math
import types
from collections import Counter

import numpy as np
import pytest
import torch
from cg_systems import TO_THE_END, block_diagonal, energy, relative, solve, symmetric, system, textbook
from hypothesis import given, settings
from hypothesis import strategies as st
from stopping_oracle import by_the_paper
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from latephase.solve import CGResult, CGStatus, conjugate_gradient, graphed_call
from latephase.solve.stopping import ModelHistory

PROPERTY = settings(max_examples=100, deadline=None, derandomize=True, database=None)
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def check_same(first: CGResult, second: CGResult) -> None:
    """Everything but the number of products, bit for bit."""
    assert first.indices == second.indices
    assert first.iterations == second.iterations
    assert first.status == second.status
    assert all(torch.equal(x, y) for x, y in zip(first.iterates, second.iterates, strict=True))
    assert torch.equal(first.solution, second.solution)
    assert np.array_equal(first.values, second.values, equal_nan=True)


# ---------------------------------------------------------------------------------------------------------------------
# When the host looks


@settings(PROPERTY, max_examples=150)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    seed=st.integers(0, 10_000),
    spectrum=st.sampled_from(["positive", "spread", "indefinite", "negative", "singular", "zero"]),
    start=st.sampled_from([None, 0.0, 1.0, 1e8]),
    stopping=st.sampled_from(["martens", "residual"]),
    tolerance=st.sampled_from([0.0, 1e-6, 1e-2]),
    policy=st.sampled_from(["truncate", "ignore", "absolute"]),
    rescale=st.booleans(),
    preconditioned=st.booleans(),
    bad=st.sampled_from([None, "b", "product"]),
    max_iter=st.integers(1, 40),
)
def test_when_the_host_looks_changes_nothing(
    sizes, seed, spectrum, start, stopping, tolerance, policy, rescale, preconditioned, bad, max_iter
):
    rng = np.random.default_rng(seed)
    eigenvalues = {
        "positive": lambda n: rng.uniform(0.1, 1.0, n),
        "spread": lambda n: np.geomspace(1e-4, 1.0, n),
        "indefinite": lambda n: rng.standard_normal(n),
        "negative": lambda n: -rng.uniform(0.1, 1.0, n),
        "singular": lambda n: rng.integers(0, 2, n).astype(float),
        "zero": np.zeros,
    }[spectrum]
    matrix = torch.tensor(block_diagonal([symmetric(eigenvalues(n), seed + i) for i, n in enumerate(sizes)]))
    b = torch.tensor(rng.standard_normal(sum(sizes)))
    x0 = None if start is None else torch.tensor(start * rng.standard_normal(sum(sizes)))
    inverse = torch.tensor(block_diagonal([symmetric(rng.uniform(0.1, 10.0, n), seed + 9) for n in sizes]))
    if bad == "b":
        b[0] = math.nan

    def matvec(v: Tensor) -> Tensor:
        product = matrix @ v
        if bad == "product" and 0 < v[: sizes[0]].norm() < 0.1:  # a fault that depends on the vector only
            product[0] = math.nan
        return product

    results = [
        conjugate_gradient(
            matvec,
            b,
            x0,
            block_sizes=sizes,
            stopping=stopping,
            tolerance=tolerance,
            nonpositive_curvature=policy,
            rescale_x0=rescale,
            preconditioner=(lambda r: inverse @ r) if preconditioned else None,
            max_iter=max_iter,
            check_every=check_every,
        )
        for check_every in (1, 3, 7, 100)
    ]
    for check_every, result in zip((3, 7, 100), results[1:], strict=True):
        check_same(results[0], result)
        assert results[0].products <= result.products <= results[0].products + check_every - 1


def test_products_beyond_the_stop_are_counted():
    matrix, _, b = system(60, 100.0, seed=41)
    options = {"stopping": "residual", "tolerance": 1e-4}
    (stop,) = solve(matrix, b, **options).iterations  # `solve` holds that the products are those really computed
    assert solve(matrix, b, check_every=7, **options).products == -(-stop // 7) * 7
    assert solve(matrix, b, check_every=1, **options).products == stop
    assert solve(matrix, b, check_every=1000, max_iter=stop + 5, **options).products == stop + 5


@pytest.mark.parametrize("check_every", [1, 7])
def test_nan_of_one_block_reaches_no_other(check_every):
    # A dense preconditioner multiplies the zeros between the blocks with whatever the other block holds.
    blocks = [system(10, 50.0, seed=103)[0], system(12, 5.0, seed=104)[0]]
    matrix = torch.tensor(block_diagonal(blocks))
    inverse = block_diagonal([symmetric(np.linspace(1.0, 2.0, n), seed=n) for n in (10, 12)])
    b = np.random.default_rng(105).standard_normal(22)
    calls = Counter()

    def matvec(v: Tensor) -> Tensor:
        assert v.isfinite().all()
        calls["products"] += 1
        product = matrix @ v
        if calls["products"] >= 3:
            product[:10] = math.nan
        return product

    result = conjugate_gradient(
        matvec,
        torch.tensor(b),
        preconditioner=lambda r: torch.tensor(inverse) @ r,
        block_sizes=[10, 12],
        max_iter=6,
        check_every=check_every,
        **TO_THE_END,
    )
    assert result.status == (CGStatus.NONFINITE, CGStatus.MAX_ITERATIONS)
    assert result.iterations == (2, 6)
    for part, block, count in ((slice(0, 10), blocks[0], 2), (slice(10, 22), blocks[1], 6)):
        expected = textbook(block, b[part], count, inverse=inverse[part, part])[0][count]
        assert relative(result.solution[part], expected) < 1e-10


@pytest.mark.parametrize("check_every", [1, 7])
@pytest.mark.parametrize(("broken_at", "kept"), [(1, 0), (2, 1), (7, 5), (9, 7)])
def test_block_that_breaks_goes_back_to_its_last_kept_iterate(broken_at, kept, check_every):
    blocks = [system(10, 50.0, seed=103)[0], system(12, 50.0, seed=104)[0]]
    rng = np.random.default_rng(105)
    b, x0 = rng.standard_normal(22), 0.1 * rng.standard_normal(22)
    calls = Counter()

    def preconditioner(r: Tensor) -> Tensor:
        z = r.clone()
        if calls["z"] >= broken_at:  # the first call is that of the start
            z[:10] = math.nan
        calls["z"] += 1
        return z

    result = solve(
        block_diagonal(blocks),
        b,
        x0,
        preconditioner=preconditioner,
        block_sizes=[10, 12],
        max_iter=10,
        check_every=check_every,
        **TO_THE_END,
    )
    assert result.status == (CGStatus.NONFINITE, CGStatus.MAX_ITERATIONS)
    assert result.iterations == (kept, 10)
    assert result.indices == [1, 2, 3, 4, 5, 7, 9, 10]
    for part, block, last in ((slice(0, 10), 0, kept), (slice(10, 22), 1, 10)):
        expected = textbook(blocks[block], b[part], 10, x0[part])[0]
        for index, x, values in zip(result.indices, result.iterates, result.values, strict=True):
            at = index if index < broken_at else min(index, last)
            assert relative(x[part], expected[at]) < 1e-9
            assert values[block] == pytest.approx(energy(blocks[block], b[part], expected[at]), rel=1e-9)


def test_products_with_a_graph_are_detached():
    matrix, _, b = system(12, 5.0, seed=104)
    parameter = torch.tensor(matrix, requires_grad=True)
    x0 = torch.full((12,), 0.1, dtype=torch.float64, requires_grad=True)
    result = conjugate_gradient(lambda v: parameter @ v, torch.tensor(b), x0, preconditioner=lambda r: parameter @ r)
    assert not result.solution.requires_grad


def test_an_inner_product_that_underflows_says_nothing_of_the_preconditioner():
    b = torch.full((3,), 2e-162, dtype=torch.float64)  # products of two such numbers have no digit left, and no sign
    result = conjugate_gradient(lambda v: v, b, preconditioner=lambda r: -r)
    assert result.status == (CGStatus.RESIDUAL,)
    assert not result.solution.any()


@pytest.mark.parametrize("check_every", [1, 7])
def test_preconditioner_that_is_not_positive_definite(check_every):
    matrix, _, b = system(12, 5.0, seed=104)
    sign = torch.ones(12, dtype=torch.float64)
    sign[5:] = -1.0
    with pytest.raises(ValueError, match=r"not positive definite.* on block 1"):
        solve(matrix, b, preconditioner=lambda r: sign * r, block_sizes=[5, 7], check_every=check_every)


def test_check_every_must_be_positive():
    with pytest.raises(ValueError, match="check_every"):
        conjugate_gradient(lambda v: v, torch.ones(3), check_every=0)


@PROPERTY
@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1.0, 0.0)), min_size=1, max_size=130), st.floats(1e-6, 1e-1))
def test_progress_on_the_device_is_by_the_paper(values, tolerance):
    history = ModelHistory(len(values), [tolerance, 2 * tolerance], torch.device("cpu"))
    for i, row in enumerate(values):
        history.record(torch.tensor(row, dtype=torch.float64))
        past = list(zip(*values[: i + 1], strict=True))
        expected = [by_the_paper(past[0], tolerance), by_the_paper(past[1], 2 * tolerance)]
        assert history.progress_is_small().tolist() == expected
    assert history.values[: len(values)].tolist() == [list(row) for row in values]


# ---------------------------------------------------------------------------------------------------------------------
# What an iteration reads


READERS = {"item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "nonzero"}
SYNCHRONISING = {
    "aten._local_scalar_dense",
    "aten.nonzero",
    "aten.is_nonzero",
    "aten.masked_select",
    "aten.equal",
    # Transfers from the host, which a capture does not take: tensors of Python's numbers.
    "aten.lift_fresh",
    "aten._to_copy",
}


class HostReads(TorchFunctionMode):
    """Counts what reads a tensor's numbers into Python."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, kinds, args=(), kwargs=None):
        if getattr(function, "__name__", "") in READERS:
            self.count += 1
        return function(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self):
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
        self.names[str(function).rsplit(".", 1)[0]] += 1
        if "Scalar" in str(function) and "where" in str(function):
            self.names["aten.lift_fresh"] += 1  # its number becomes a tensor on the host, and is then transferred
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("preconditioned", [False, True], ids=["plain", "preconditioned"])
@pytest.mark.parametrize("policy", ["truncate", "ignore", "absolute"])
@pytest.mark.parametrize("stopping", ["martens", "residual"])
def test_an_iteration_reads_nothing(stopping, policy, preconditioned, blocks):
    diagonal = torch.tensor(np.geomspace(1e-3, 1.0, 30))
    b, counts = torch.ones(30, dtype=torch.float64), []
    for max_iter in (10, 40):
        with HostReads() as reads, Operations() as operations:
            result = conjugate_gradient(
                lambda v: diagonal * v,
                b,
                preconditioner=(lambda r: diagonal.sqrt() * r) if preconditioned else None,
                block_sizes=[30 // blocks] * blocks,
                stopping=stopping,
                tolerance=0.0,
                nonpositive_curvature=policy,
                share=lambda scalars: scalars.clone(),
                max_iter=max_iter,
                check_every=5,
            )
        assert result.products == max_iter
        synchronising = sum(operations.names[name] for name in SYNCHRONISING)
        counts.append((reads.count, synchronising, sum(operations.names.values())))
    # Thirty iterations more are six looks more, and nothing else that waits.
    assert counts[1][0] - counts[0][0] == 6
    assert counts[1][1] == counts[0][1]
    assert counts[1][2] > counts[0][2] + 30 * 20  # the mode did see the iterations


# ---------------------------------------------------------------------------------------------------------------------
# Where the iterates live


def test_iterates_live_where_they_are_told_to():
    matrix, _, b = system(20, 50.0, seed=8)
    plain = solve(matrix, b, max_iter=12, **TO_THE_END)
    named = solve(matrix, b, max_iter=12, iterates_device="cpu", **TO_THE_END)
    check_same(plain, named)
    assert len({x.data_ptr() for x in named.iterates}) == len(named.iterates)
    away = conjugate_gradient(
        lambda v: torch.tensor(matrix) @ v, torch.tensor(b), max_iter=12, iterates_device="meta", **TO_THE_END
    )
    assert {x.device.type for x in away.iterates} == {"meta"}
    assert torch.equal(away.solution, plain.solution)


# ---------------------------------------------------------------------------------------------------------------------
# CUDA graphs


def test_capture_is_ignored_on_a_cpu():
    matrix, _, b = system(20, 50.0, seed=8)
    check_same(solve(matrix, b), solve(matrix, b, capture=True))


class FakeGraph:
    """Stands in for torch.cuda.CUDAGraph: replays by calling the function it is given."""

    replays = 0

    def replay(self) -> None:
        FakeGraph.replays += 1


@pytest.fixture
def fake_cuda(monkeypatch):
    """The names of torch.cuda that GraphedCall uses, without a device; returns what was done on them."""
    stream = types.SimpleNamespace(wait_stream=lambda other: None)
    fake = types.SimpleNamespace(
        current_stream=lambda device: stream,
        default_stream=lambda device: stream,
        Stream=lambda device: types.SimpleNamespace(wait_stream=lambda other: None),
        stream=lambda stream: contextlib.nullcontext(),
        device=lambda device: contextlib.nullcontext(),
        CUDAGraph=FakeGraph,
        graph=lambda graph, stream, capture_error_mode: contextlib.nullcontext(),
    )
    monkeypatch.setattr(graphed_call.torch, "cuda", fake)
    FakeGraph.replays = 0
    return fake


def test_first_calls_are_real_and_later_ones_replayed(fake_cuda):
    calls = []
    call = graphed_call.GraphedCall(lambda: calls.append(FakeGraph.replays), torch.device("cpu"))
    for _ in range(8):
        call()
    # Three warm-up calls and the recording; then five replays, the first of them right after the recording.
    assert calls == [0] * (graphed_call.WARM_UP + 1)
    assert FakeGraph.replays == 8 - graphed_call.WARM_UP


def test_what_cannot_be_captured_goes_on_without(fake_cuda):
    recording, calls = [False], []

    @contextlib.contextmanager
    def graph(graph, stream, capture_error_mode):
        recording[0] = True
        try:
            yield
        except RuntimeError:
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904
        finally:
            recording[0] = False

    def function():
        if recording[0]:
            raise RuntimeError("cannot read while capturing")
        calls.append(None)

    fake_cuda.graph = graph
    call = graphed_call.GraphedCall(function, torch.device("cpu"))
    for _ in range(graphed_call.WARM_UP):
        call()
    with pytest.warns(UserWarning, match="cannot read while capturing"):
        call()
    for _ in range(3):
        call()
    assert (len(calls), FakeGraph.replays) == (graphed_call.WARM_UP + 4, 0)


def cuda_system(size: int) -> tuple[Tensor, Tensor]:
    """Diagonal and right-hand side on the GPU."""
    b = torch.tensor(np.random.default_rng(7).standard_normal(size), device="cuda")
    return torch.logspace(-4, 0, size, dtype=torch.float64, device="cuda"), b


@CUDA
@pytest.mark.parametrize("stopping", ["martens", "residual"])
@pytest.mark.parametrize("policy", ["truncate", "ignore", "absolute"])
@pytest.mark.parametrize("preconditioned", [False, True], ids=["plain", "preconditioned"])
@pytest.mark.parametrize("sizes", [[600], [100, 200, 300]], ids=["one_block", "blocks"])
def test_captured_run_is_the_plain_run(sizes, preconditioned, policy, stopping):
    diagonal, b = cuda_system(600)
    results = [
        conjugate_gradient(
            lambda v: diagonal * v,
            b,
            0.1 * b,
            preconditioner=(lambda r: r / (diagonal + 0.1)) if preconditioned else None,
            block_sizes=sizes,
            stopping=stopping,
            tolerance=1e-3,
            nonpositive_curvature=policy,
            rescale_x0=True,
            **options,
        )
        for options in ({"check_every": 1}, {}, {"capture": True}, {"capture": True, "check_every": 1})
    ]
    for result in results[1:]:
        check_same(results[0], result)


@CUDA
def test_capture_that_fails_goes_on_without():
    diagonal, b = cuda_system(300)

    def reading(v: Tensor) -> Tensor:
        return diagonal * v if v[0].item() == v[0].item() else v

    with pytest.warns(UserWarning, match="could not be captured"):
        captured = conjugate_gradient(reading, b, capture=True, max_iter=30)
    check_same(captured, conjugate_gradient(reading, b, max_iter=30))
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    torch.rand(3, device="cuda")  # the random generator is not left in capture mode


@CUDA
def test_iterates_on_the_host():
    diagonal, b = cuda_system(300)
    there = conjugate_gradient(lambda v: diagonal * v, b, max_iter=30)
    here = conjugate_gradient(lambda v: diagonal * v, b, max_iter=30, iterates_device="cpu", capture=True)
    assert {x.device.type for x in here.iterates} == {"cpu"}
    assert here.solution.is_cuda
    assert all(torch.equal(x.cpu(), y) for x, y in zip(there.iterates, here.iterates, strict=True))


@CUDA
def test_an_iteration_does_not_synchronise():
    diagonal, b = cuda_system(300)
    calls = Counter()

    def matvec(v: Tensor) -> Tensor:
        # From the second product on, up to the end of the last one before the look: whole iterations.
        calls["products"] += 1
        torch.cuda.set_sync_debug_mode("error" if 1 < calls["products"] < 30 else "default")
        return diagonal * v

    try:
        result = conjugate_gradient(matvec, b, tolerance=0.0, max_iter=30, check_every=30)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert result.products == 30
