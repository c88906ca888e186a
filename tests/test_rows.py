"""`Objective.rows`: what has a row for each example is put together over chunks and ranks in the order of the data."""

import functools
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from exact import bits
from latephase import Objective
from rank_processes import message_of, results_of_ranks

ROWS = 11
GENERATOR = torch.Generator().manual_seed(4)
X = torch.randn(ROWS, 3, generator=GENERATOR, dtype=torch.float64)
Y = torch.randn(ROWS, 2, generator=GENERATOR, dtype=torch.float64)
SHARES = {1: (slice(0, 11),), 2: (slice(0, 3), slice(3, 11)), 3: (slice(0, 1), slice(1, 9), slice(9, 11))}
DTYPES = (torch.bool, torch.bfloat16, torch.int64, torch.complex64, torch.uint8, torch.float16)


def objective_of(rows: slice = slice(0, ROWS), group: Any = None, **options: Any) -> Objective:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return Objective(model, nn.MSELoss(), (X[rows], Y[rows]), process_group=group, **options)


def residuals(objective: Objective) -> tuple[Tensor, ...]:
    """Of each example the residuals, its first input, and as many rows as it has positive inputs."""

    def term(chunk, index):
        with torch.enable_grad():
            difference = objective.model(chunk.inputs) - chunk.targets
        positive = chunk.inputs[chunk.inputs > 0]
        return difference, chunk.inputs[:, 0].float(), torch.stack([positive, positive], 1)[:, None]

    return objective.rows(term)


def expected() -> tuple[Tensor, ...]:
    positive = X[X > 0]
    outputs = objective_of().model(X).detach()
    return outputs - Y, X[:, 0].float(), torch.stack([positive, positive], 1)[:, None]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(cuts=st.sets(st.integers(1, ROWS - 1)), size=st.sampled_from([None, 1, 2, 4]))
def test_chunks_are_put_together_in_the_order_of_the_data(cuts, size):
    edges = [0, *sorted(cuts), ROWS]
    data = [(X[i:j], Y[i:j]) for i, j in itertools.pairwise(edges)]
    whole = objective_of(microbatch_size=size)
    for each in (whole, whole.on(data)):
        found = residuals(each)
        torch.testing.assert_close(found, expected(), rtol=1e-14, atol=1e-14)
        assert not any(tensor.requires_grad for tensor in found)


def test_the_loss_is_the_weighed_sum_of_the_rows():
    objective = objective_of(microbatch_size=4)
    assert objective.weights == [4 / 11, 4 / 11, 3 / 11]
    weighed = objective.rows(
        lambda chunk, index: ((objective.model(chunk.inputs) - chunk.targets).square().sum(1) * objective.weights[index]
                              / chunk.targets.numel(),)
    )[0]  # fmt: skip
    torch.testing.assert_close(weighed.sum(), objective.value(), rtol=1e-13, atol=0)


def test_a_chunk_may_have_no_rows_and_a_term_no_tensors():
    objective = objective_of(microbatch_size=4)
    (found,) = objective.rows(lambda chunk, index: (chunk.inputs[: 0 if index == 1 else 2],))
    assert torch.equal(found, X[[0, 1, 8, 9]])
    assert objective.rows(lambda chunk, index: ()) == ()


@pytest.mark.parametrize(("term", "message"), [
    (lambda chunk, index: (chunk.inputs.sum(),), "ValueError: a term of chunk 0 is a scalar"),
    (lambda chunk, index: (1.0,), "TypeError: a term of chunk 0 must be a tensor"),
    (lambda chunk, index: (chunk.inputs[:, index:],), "ValueError: chunk 1 gives float64 rows of shape [2], but chunk "
     "0 float64 rows of shape [3]"),
    (lambda chunk, index: (chunk.inputs.float() if index else chunk.inputs,), "ValueError: chunk 1 gives float32 rows"),
    (lambda chunk, index: (chunk.inputs,) * (1 + index), "ValueError: chunk 1 gives float64 rows"),
])  # fmt: skip
def test_rows_of_different_kinds_are_an_error(term, message):
    assert message_of(lambda: objective_of(microbatch_size=4).rows(term)).startswith(message)


def fails(chunk, index):
    raise KeyError("nothing there")


def kinds(rank: int, count: int, *, wrong: int) -> dict[str, Any]:
    """Terms that differ on one rank."""
    other = rank == wrong
    return {
        "dtype": lambda chunk, index: (chunk.inputs.float() if other else chunk.inputs,),
        "shape": lambda chunk, index: (chunk.inputs[:, other:],),
        "number": lambda chunk, index: (chunk.inputs,) * (1 + other),
        "failed": fails if other else lambda chunk, index: (chunk.inputs,),
    }


def child(rank: int, folder: str, count: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count)
    group, own = dist.group.WORLD, SHARES[count][rank]
    objective = objective_of(own, group)
    results: dict[str, Any] = {"whole": residuals(objective)}
    results["chunks"] = residuals(objective_of(own, group, microbatch_size=3))
    results["weights"] = objective.weights
    results["dtypes"] = objective.rows(lambda chunk, index: tuple((10 * chunk.inputs).abs().to(d) for d in DTYPES))
    for empty in range(count):
        kept = 0 if rank == empty else ROWS
        results[f"empty{empty}"] = objective.rows(lambda chunk, index, kept=kept: (chunk.inputs[:kept],))[0]
    results["none"] = objective.rows(lambda chunk, index: (chunk.inputs[:0], chunk.targets[:, :0]))
    results["big"] = objective.rows(lambda chunk, index: (chunk.inputs.repeat(1, 30_000),))[0][:, -3:].clone()
    results["strided"] = objective.rows(lambda chunk, index: (chunk.inputs.T.contiguous().T,))[0]
    results["messages"] = {}
    for name, term in kinds(rank, count, wrong=count - 1).items():
        results["messages"][name] = message_of(lambda term=term: objective.rows(term))
    results["other"] = message_of(
        lambda: objective.rows(lambda c, i: (c.inputs,)) if rank else objective.sum(lambda c, i: (c.inputs.sum(),))
    )
    results["afterwards"] = residuals(objective)
    torch.save(results, Path(folder) / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, *(pytest.param(n, marks=pytest.mark.slow) for n in SHARES if n != 2)])
def ranks(request, tmp_path_factory) -> list[dict[str, Any]]:
    """What each of one, two, three processes found."""
    folder = tmp_path_factory.mktemp(f"ranks{request.param}")
    return results_of_ranks(functools.partial(child, count=request.param), folder, request.param, 200)


def test_ranks_have_the_rows_of_one_process(ranks):
    for found in ranks:
        for how in ("whole", "chunks", "afterwards"):
            assert bits(found[how]) == bits(ranks[0][how])
            torch.testing.assert_close(found[how], expected(), rtol=1e-14, atol=1e-14)
        assert torch.equal(found["strided"], X)
        assert torch.equal(found["big"], X)
        assert bits(found["dtypes"]) == bits(tuple((10 * X).abs().to(dtype) for dtype in DTYPES))


def test_a_rank_without_rows_contributes_none(ranks):
    shares = SHARES[len(ranks)]
    for found in ranks:
        for empty, share in enumerate(shares):
            kept = [row for row in range(ROWS) if row not in range(share.start, share.stop)]
            assert torch.equal(found[f"empty{empty}"], X[kept])
        assert [tensor.shape for tensor in found["none"]] == [(0, 3), (ROWS, 0)]


def test_what_chunks_weigh_adds_up_over_ranks(ranks):
    assert sum(sum(found["weights"]) for found in ranks) == pytest.approx(1.0)


def test_rows_that_differ_between_ranks_are_named_on_all(ranks):
    last = len(ranks) - 1
    others = "rank 0" if last == 1 else "ranks 0, 1"
    said = {
        "dtype": f"rank {last}: the rows of chunks and ranks: float32 rows of shape [3]",
        "shape": f"rank {last}: the rows of chunks and ranks: float64 rows of shape [2]",
        "number": f"rank {last}: the rows of chunks and ranks: float64 rows of shape [3], float64 rows of shape [3]",
    }
    for rank, found in enumerate(ranks):
        messages = found["messages"]
        assert messages["failed"].startswith("KeyError" if rank == last else f"RankError: rank {last} failed: KeyError")
        for name, text in said.items():
            if last:
                assert messages[name].startswith("RankError: the ranks do not do the same"), messages[name]
                assert text in messages[name]
                assert f"{others}: the rows of chunks and ranks: float64 rows of shape [3]" in messages[name]
            else:
                assert messages[name] == ""
        assert ("the ranks do not do the same" in found["other"]) == bool(last)
