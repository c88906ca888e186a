import hashlib

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

from latephase import problems
from latephase.problems.digits import shift as shift_with_labels
from latephase.problems.sampling import batches

DIGITS = problems.get("digits")


def shift(images, generator):
    return shift_with_labels(images, torch.zeros(len(images)), generator)[0]


@pytest.fixture(scope="module")
def splits() -> problems.Splits:
    return DIGITS.load()


def parts(splits: problems.Splits) -> dict[str, tuple[Tensor, Tensor]]:
    return {"train": splits.train, "valid": splits.valid, "test": splits.test}


def naive_shift(image: Tensor, down: int, right: int) -> Tensor:
    moved = torch.zeros_like(image)
    _, height, width = image.shape
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                moved[:, row, column] = image[:, row - down, column - right]
    return moved


def test_shapes_types_and_scale(splits: problems.Splits) -> None:
    for (name, (inputs, targets)), size in zip(parts(splits).items(), (1197, 300, 300), strict=True):
        assert inputs.shape == (size, 1, 8, 8), name
        assert targets.shape == (size,), name
        assert inputs.dtype == torch.float32
        assert targets.dtype == torch.int64
        assert inputs.is_contiguous()
        assert inputs.min() == 0
        assert inputs.max() == 1


def test_classes_are_stratified(splits: problems.Splits) -> None:
    assert torch.bincount(splits.valid[1]).tolist() == [30] * 10
    assert torch.bincount(splits.test[1]).tolist() == [30] * 10
    assert torch.bincount(splits.train[1]).tolist() == [118, 122, 117, 123, 121, 122, 121, 119, 114, 120]


def test_split_partitions_the_data_set_with_its_labels(splits: problems.Splits) -> None:
    pixels, labels = load_digits(return_X_y=True)
    expected = sorted((row.astype(int).tolist(), int(label)) for row, label in zip(pixels, labels, strict=True))
    found = [
        ((16 * image).int().flatten().tolist(), int(target))
        for inputs, targets in parts(splits).values()
        for image, target in zip(inputs, targets, strict=True)
    ]
    assert sorted(found) == expected
    assert len({tuple(image) for image, _ in found}) == 1797  # no image twice, so no image in two splits


def test_split_does_not_move(splits: problems.Splits) -> None:
    # A changed split makes old and new results incomparable: raise the version of the problem with it.
    digests = {
        name: hashlib.sha256((16 * inputs).to(torch.uint8).numpy().tobytes()).hexdigest()[:16]
        for name, (inputs, _) in parts(splits).items()
    }
    assert DIGITS.version == 1
    assert digests == {"train": "9c14a4d01ced7f8e", "valid": "624d35abe76b6f58", "test": "2c0e95cdf36ce351"}


def test_load_ignores_and_keeps_the_default_generator(splits: problems.Splits) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    again = DIGITS.load()
    assert torch.equal(torch.get_rng_state(), before)
    for first, second in zip(parts(splits).values(), parts(again).values(), strict=True):
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])


def test_model_size_and_output() -> None:
    model = DIGITS.model()
    assert [p.numel() for p in model.parameters()] == [144, 16, 4608, 32, 32768, 64, 640, 10]
    assert model(torch.zeros(5, 1, 8, 8)).shape == (5, 10)


def test_model_is_two_convolutions_one_max_pool_and_one_hidden_layer() -> None:
    model = DIGITS.model().double()
    inputs = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w1, b1, w2, b2, w3, b3, w4, b4 = model.parameters()
    hidden = functional.conv2d(functional.conv2d(inputs, w1, b1, padding=1).relu(), w2, b2, padding=1).relu()
    hidden = functional.max_pool2d(hidden, 2).flatten(1) @ w3.T + b3
    torch.testing.assert_close(model(inputs), hidden.relu() @ w4.T + b4)  # float64: equal to rounding


def test_model_draws_from_the_default_generator() -> None:
    torch.manual_seed(0)
    first, other = DIGITS.model(), DIGITS.model()
    torch.manual_seed(0)
    again = DIGITS.model()
    for a, b, c in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_weight_decay_takes_weights_only() -> None:
    assert isinstance(DIGITS.weight_decay, tuple)
    decay, predicate = DIGITS.weight_decay
    chosen = [name for name, parameter in DIGITS.model().named_parameters() if predicate(name, parameter)]
    assert decay == 5e-4
    assert chosen == ["0.weight", "2.weight", "6.weight", "8.weight"]
    parameter = torch.nn.Parameter(torch.zeros(1))
    assert predicate("weight", parameter)
    assert not predicate("unweight", parameter)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 9)])
def test_shift_matches_the_naive_one_and_reaches_every_offset(shape: tuple[int, int, int]) -> None:
    count = 600  # each of 25 offsets is missed with probability (24/25)^600 < 3e-11
    image = torch.arange(1.0, 1 + shape[0] * shape[1] * shape[2]).reshape(shape)  # no zeros: offsets are told apart
    candidates = torch.stack([naive_shift(image, down, right) for down in range(-2, 3) for right in range(-2, 3)])
    moved = shift(image.expand(count, *shape), torch.Generator().manual_seed(0))
    assert moved.shape == (count, *shape)
    equal = (moved[:, None] == candidates[None]).flatten(2).all(2)
    assert equal.sum(1).tolist() == [1] * count
    # Uniform: a count is binomial(600, 1/25), mean 24, sd 4.8; 5 sd each side leave 25 * 6e-7 for a false alarm.
    assert (equal.sum(0) - 24).abs().max() <= 24


def test_shift_keeps_every_row_in_its_place() -> None:
    images = torch.arange(1.0, 41).reshape(40, 1, 1, 1).expand(40, 1, 8, 8)
    moved = shift(images, torch.Generator().manual_seed(1))
    assert moved.amax(dim=(1, 2, 3)).tolist() == list(range(1, 41))


def test_shift_depends_on_its_generator_only() -> None:
    images = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    first = shift(images, torch.Generator().manual_seed(1))
    again = shift(images, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    shift(images, generator)
    later = shift(images, generator)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, later)


def test_network_learns_the_labels(splits: problems.Splits) -> None:
    inputs, targets = splits.train
    torch.manual_seed(0)
    model = DIGITS.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(8):
        for rows in batches(len(inputs), 32, 0, epoch):
            optimizer.zero_grad()
            DIGITS.loss(model(inputs[rows]), targets[rows]).backward()
            optimizer.step()
    with torch.no_grad():
        loss = functional.cross_entropy(model(splits.valid[0]), splits.valid[1])
    assert loss < 0.5  # guessing gives log 10 = 2.3; seeds 0 to 5 give 0.14 to 0.19
