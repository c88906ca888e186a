"""The tasks with long time lags: sequences checked one by one, and the network that learns them."""

import functools
import pickle

import pytest
import torch

from latephase import CG, GGN, HessianFree, WithHidden
from latephase.problems import pathological
from latephase.problems.architectures.recurrent import Recurrent
from latephase.problems.pathological import PLACES, far_off, marked_numbers, ordered_symbols, wrong_bit, wrong_class

PROBLEMS = [getattr(pathological, f"rnn_{task}") for task in PLACES]
NUMBERS = ("addition", "multiplication", "xor")
ORDERS = ("temporal_order", "temporal_order_3bit")


def drawn(draw, task, count=300, length=100, seed=0):
    return draw(count, length, torch.Generator().manual_seed(seed), task)


def scaled(bounds, length):
    return tuple(int(bound * length / 100) for bound in bounds)


@pytest.mark.parametrize("length", [10, 50, 100])
@pytest.mark.parametrize("task", NUMBERS)
def test_marked_numbers_one_by_one(task, length):
    inputs, targets = drawn(marked_numbers, task, length=length)
    shortest, longest = scaled(PLACES[task].lengths, length)
    assert inputs.shape == (300, longest, 2)
    assert targets.shape == (300, 1)
    for (numbers, marks), target in zip(inputs.transpose(1, 2).tolist(), targets[:, 0].tolist(), strict=True):
        marked = [t for t, mark in enumerate(marks) if mark == 1.0]
        assert len(marked) == 2
        assert all(mark in (0.0, 1.0) for mark in marks)
        a, b = (numbers[t] for t in marked)
        expected = {"addition": a + b, "multiplication": a * b, "xor": float(a != b)}[task]
        assert target == pytest.approx(expected, abs=1e-7)  # float32 rounding of numbers below 2
        (first_low, first_high), (second_low, second_high) = (scaled(w, length) for w in PLACES[task].windows)
        assert second_low - first_high < marked[1] - marked[0] < second_high - first_low
        if task == "xor":  # where a bit may be zero, so that one does not see where the sequence starts
            assert set(numbers) <= {0.0, 1.0}
            assert not any(numbers[: max(marked[0] - first_high + 1, 0)])
            continue
        leading = next(t for t, number in enumerate(numbers) if number != 0.0)
        assert shortest <= longest - leading <= longest
        assert first_low <= marked[0] - leading < first_high
        assert second_low <= marked[1] - leading < second_high
        assert all(0.0 <= number < 1.0 for number in numbers)


@pytest.mark.parametrize("length", [10, 50, 100])
@pytest.mark.parametrize("task", ORDERS)
def test_ordered_symbols_one_by_one(task, length):
    symbols, classes = drawn(ordered_symbols, task, length=length)
    shortest, longest = scaled(PLACES[task].lengths, length)
    windows = [scaled(window, length) for window in PLACES[task].windows]
    assert symbols.shape == (300, longest)
    for sequence, target in zip(symbols.tolist(), classes.tolist(), strict=True):
        start = sum(symbol == 8 for symbol in sequence)
        assert all(symbol == 8 for symbol in sequence[:start])
        sequence = sequence[start:]
        assert shortest <= len(sequence) <= longest
        counting = [t for t, symbol in enumerate(sequence) if symbol in (4, 5)]
        for t, (low, high) in zip(counting, windows, strict=True):
            assert low <= t <= high
        assert target == int("".join(str(sequence[t] - 4) for t in counting), 2)
        assert sequence[-1] == 6
        assert sequence[0] == 7 or counting[0] == 0  # below a length of 100 the first may take the start's place
        others = [symbol for t, symbol in enumerate(sequence[1:-1], 1) if t not in counting]
        assert set(others) <= {0, 1, 2, 3}


def test_frequencies():
    inputs, targets = drawn(marked_numbers, "addition", count=10_000)
    marks = inputs[..., 1].nonzero()[:, 1].reshape(-1, 2)
    starts = inputs[..., 0].ne(0).to(torch.int64).argmax(1)
    # Five standard errors: the mean of 10,000 draws from 11 lengths, 9 first and 40 second steps, and sums of two
    # uniform numbers, whose standard deviations are 3.2, 2.6, 11.5 and 0.41.
    assert float(starts.double().mean()) == pytest.approx(5.0, abs=5 * 0.032)
    assert float((marks[:, 0] - starts).double().mean()) == pytest.approx(5.0, abs=5 * 0.026)
    assert float((marks[:, 1] - starts).double().mean()) == pytest.approx(29.5, abs=5 * 0.115)
    assert float(targets.mean()) == pytest.approx(1.0, abs=5 * 0.0041)
    differ = drawn(marked_numbers, "xor", count=10_000)[1]
    assert float(differ.mean()) == pytest.approx(0.5, abs=5 * 0.005)
    symbols, classes = drawn(ordered_symbols, "temporal_order_3bit", count=8_000)
    assert classes.bincount().tolist() == [1000] * 8
    meaningless = symbols[symbols < 4].to(torch.int64).bincount() / (symbols < 4).sum()
    # 8,000 sequences of about 100 such symbols: a standard error of 0.0005.
    torch.testing.assert_close(meaningless, torch.full((4,), 0.25), rtol=0, atol=0.0025)


@pytest.mark.parametrize("make", PROBLEMS)
def test_splits_are_fixed_and_augmentation_draws_new(make):
    problem = make(length=20)
    splits, again = problem.load(), pickle.loads(pickle.dumps(problem)).load()
    assert [len(part[1]) for part in (splits.train, splits.valid, splits.test)] == [10_000, 1_000, 10_000]
    for part, same in ((splits.train, again.train), (splits.valid, again.valid), (splits.test, again.test)):
        assert torch.equal(part[0], same[0])
        assert torch.equal(part[1], same[1])
    assert not torch.equal(splits.train[0][:1000], splits.valid[0])
    assert not torch.equal(splits.valid[0], splits.test[0][:1000])

    state = torch.get_rng_state()
    rows = torch.arange(64)
    plain = problem.batch(splits.train, rows)
    batches = [problem.batch(splits.train, rows, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    for inputs, targets in batches:
        assert inputs.shape == plain[0].shape
        assert targets.shape == plain[1].shape
        assert inputs.dtype == torch.float32
        assert targets.dtype == plain[1].dtype
    assert torch.equal(batches[0][0], batches[1][0])
    assert not torch.equal(batches[0][0], batches[2][0])
    assert not torch.equal(batches[0][0], plain[0])


def test_symbols_as_inputs():
    symbols = torch.tensor([[8, 7, 0, 3, 4, 6]], dtype=torch.uint8)
    expected = torch.zeros(1, 6, 8)
    for t, symbol in enumerate([7, 0, 3, 4, 6], start=1):
        expected[0, t, symbol] = 1.0
    assert torch.equal(pathological.one_hot(symbols), expected)


def test_share_of_wrong_sequences():
    share = [
        (far_off, torch.tensor([[1.0], [0.5], [0.2]]), torch.tensor([[1.03], [0.45], [0.24001]])),
        (wrong_bit, torch.tensor([[2.0], [-0.1], [0.3]]), torch.tensor([[1.0], [1.0], [0.0]])),
        (wrong_class, torch.tensor([[1.0, 0.0], [1.0, 2.0], [3.0, 0.0]]), torch.tensor([0, 0, 1])),
    ]
    for metric, outputs, targets in share:
        sums = metric.sums(outputs[:2], targets[:2]) + metric.sums(outputs[2:], targets[2:])
        assert metric.value(sums) == pytest.approx(2 / 3)
        assert not metric.higher_is_better


@pytest.mark.parametrize("make", PROBLEMS)
def test_first_order_setting_lowers_the_loss(make):
    torch.manual_seed(0)
    problem = make(length=20)
    splits = problem.load()
    model = problem.model()
    valid = problem.batch(splits.valid)
    optimizer = problem.training.start(model.parameters())
    start = float(problem.objective(model, valid).value())
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        optimizer.step(problem.objective(model, problem.batch(splits.train, slice(100), generator)))
    assert float(problem.objective(model, valid).value()) < 0.99 * start
    with torch.no_grad():
        sums = problem.metrics[0].sums(model(valid[0]).outputs, valid[1])
    assert sums[1] == 1_000


def test_network_by_hand():
    torch.manual_seed(0)
    model = Recurrent(2, 3, units=20).double()
    with torch.no_grad():
        for parameter in (model.start, model.input.bias, model.output.bias):
            parameter.normal_()
    sequences = torch.randn(4, 5, 2, dtype=torch.float64)
    result = model(sequences)
    assert isinstance(result, WithHidden)
    assert result.pre_activations.shape == (4, 5, 20)
    for n in range(4):
        h = torch.tanh(model.start)
        for t in range(5):
            before = model.hidden.weight @ h + model.input.weight @ sequences[n, t] + model.input.bias
            torch.testing.assert_close(result.pre_activations[n, t], before)
            h = torch.tanh(before)
        torch.testing.assert_close(result.outputs[n], model.output.weight @ h + model.output.bias)


def test_initial_values():
    torch.manual_seed(0)
    models = [Recurrent(8, 4) for _ in range(20)]
    for model in models:
        assert (model.hidden.weight != 0).sum(1).tolist() == [15] * 100
        for zero in (model.start, model.input.bias, model.output.bias):
            assert not zero.any()
    for name, std in (("hidden", 1.2 / 15**0.5), ("input", 0.25), ("output", 0.1)):
        weights = torch.cat([getattr(model, name).weight.detach().flatten() for model in models])
        weights = weights[weights != 0]
        # The relative standard error of a standard deviation from n draws is 1 / sqrt(2 n).
        assert float(weights.std()) == pytest.approx(std, rel=5 / (2 * len(weights)) ** 0.5)


def test_hessian_free_with_structural_damping_learns_short_sequences():
    torch.manual_seed(0)
    problem = pathological.rnn_addition(length=10, units=20)
    splits = problem.load()
    model = problem.model()
    generator = torch.Generator().manual_seed(0)
    optimizer = HessianFree(
        model.parameters(), damping=0.1, curvature=GGN(structural_damping=1 / 30), solver=CG(max_iter=20)
    )
    draw = functools.partial(problem.batch, splits.train, slice(300), generator)
    for _ in range(20):
        optimizer.step(problem.objective(model, draw()), evaluation=problem.objective(model, draw()))
    # Always answering the mean of two sums has their variance, 1/6.
    assert float(problem.objective(model, problem.batch(splits.valid)).value()) < 1 / 12


def test_too_short():
    with pytest.raises(ValueError, match="length must be at least 10"):
        drawn(marked_numbers, "addition", length=9)
