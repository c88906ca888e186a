import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latephase.problems.sampling import Stream, batches, draw, generator, permutation

SEEDS = st.integers(0, 2**64 - 1)
SIZES = st.integers(0, 300)


@given(SIZES, SEEDS, SEEDS)
def test_permutation_is_one_and_repeats(size: int, seed: int, epoch: int) -> None:
    order = permutation(size, seed, epoch)
    assert order.dtype == torch.int64
    assert order.sort().values.tolist() == list(range(size))
    assert torch.equal(order, permutation(size, seed, epoch))


@given(SEEDS, SEEDS, SEEDS, SEEDS)
def test_permutations_differ_between_seeds_and_epochs(seed: int, epoch: int, seed2: int, epoch2: int) -> None:
    # Torch's CPU generator keeps 32 bits of a seed: two given pairs agree with probability 2^-32.
    same = torch.equal(permutation(100, seed, epoch), permutation(100, seed2, epoch2))
    assert same == ((seed, epoch) == (seed2, epoch2))


def test_neighbouring_seeds_and_epochs_all_differ() -> None:
    orders = {tuple(permutation(50, seed, epoch).tolist()) for seed in range(40) for epoch in range(40)}
    assert len(orders) == 1600


def test_first_place_is_uniform_over_epochs() -> None:
    # Each of 10 rows leads binomial(2000, 0.1) epochs: mean 200, sd 13.4; 5 sd either side.
    leaders = torch.tensor([int(permutation(10, 7, epoch)[0]) for epoch in range(2000)])
    assert (torch.bincount(leaders, minlength=10) - 200).abs().max() <= 67


def test_large_and_small_words_of_a_seed_are_not_confused() -> None:
    pairs = [(0, 1), (1, 0), (2**32, 0), (0, 2**32), (2**32, 1), (1, 2**32)]
    assert len({tuple(permutation(50, seed, epoch).tolist()) for seed, epoch in pairs}) == len(pairs)


def test_streams_are_independent() -> None:
    firsts = {int(generator(stream, 5, 5).initial_seed()) for stream in Stream}
    assert len(firsts) == len(Stream)
    assert not torch.equal(permutation(100, 5, 5), draw(100, [100], 5, 5)[0])


def test_default_generator_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = [permutation(20, 3, 4), *batches(20, 6, 3, 4), *draw(20, [5, 6], 3, 4)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again = [permutation(20, 3, 4), *batches(20, 6, 3, 4), *draw(20, [5, 6], 3, 4)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_generator_goes_on_drawing_where_it_stands() -> None:
    noise = generator(Stream.AUGMENTATION, 0, 0)
    assert not torch.equal(torch.rand(4, generator=noise), torch.rand(4, generator=noise))


@given(st.integers(1, 200), st.data(), SEEDS, SEEDS)
def test_batches_cut_the_permutation_and_drop_the_short_one(size: int, data: st.DataObject, seed: int, epoch: int):
    batch_size = data.draw(st.integers(1, size))
    found = batches(size, batch_size, seed, epoch)
    assert len(found) == size // batch_size
    assert {len(rows) for rows in found} == {batch_size}
    assert torch.equal(torch.cat(found), permutation(size, seed, epoch)[: len(found) * batch_size])


def test_dropped_rows_change_from_epoch_to_epoch() -> None:
    seen = {int(row) for epoch in range(10) for rows in batches(33, 32, 0, epoch) for row in rows}
    assert seen == set(range(33))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=4), st.integers(0, 50), SEEDS, SEEDS)
def test_draw_gives_disjoint_sets_of_the_asked_sizes(counts: list[int], spare: int, seed: int, step: int) -> None:
    size = sum(counts) + spare
    sets = draw(size, counts, seed, step)
    assert [len(rows) for rows in sets] == counts
    rows = torch.cat(sets)
    assert len(rows.unique()) == sum(counts)
    assert rows.min() >= 0
    assert rows.max() < size
    assert all(torch.equal(a, b) for a, b in zip(sets, draw(size, counts, seed, step), strict=True))


def test_draws_are_anew_at_every_step_and_seed() -> None:
    draws = {tuple(draw(100, [10], seed, step)[0].tolist()) for seed in range(20) for step in range(20)}
    assert len(draws) == 400


def test_draws_reach_every_row_equally() -> None:
    # Row i is in 2 of 10 places at 2000 steps: mean 400, sd 17.9 (binomial bound); 5 sd either side.
    counts = torch.bincount(torch.cat([draw(10, [2], 0, step)[0] for step in range(2000)]), minlength=10)
    assert (counts - 400).abs().max() <= 90


@pytest.mark.parametrize("bad", [-1, 2**64])
def test_seed_and_epoch_outside_their_range(bad: int) -> None:
    with pytest.raises(ValueError, match="seed must be an integer from 0"):
        permutation(5, bad, 0)
    with pytest.raises(ValueError, match="epoch or step must be an integer from 0"):
        permutation(5, 0, bad)
    with pytest.raises(ValueError, match="epoch or step must be an integer from 0"):
        draw(5, [1], 0, bad)


def test_negative_size() -> None:
    with pytest.raises(ValueError, match="size must not be negative, got -1"):
        permutation(-1, 0, 0)


@pytest.mark.parametrize("batch_size", [0, -3, 11])
def test_batch_size_that_makes_no_batch(batch_size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size must be from 1 to the 10 rows there are, not {batch_size}"):
        batches(10, batch_size, 0, 0)


@pytest.mark.parametrize("counts", [[], [0], [3, -1]])
def test_counts_that_are_not_positive(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="counts must be one or more positive integers"):
        draw(10, counts, 0, 0)


def test_more_rows_than_there_are() -> None:
    with pytest.raises(ValueError, match=r"6 \+ 5 = 11 disjoint rows asked for, but there are 10"):
        draw(10, [6, 5], 0, 0)
