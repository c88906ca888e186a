"""Tasks with long time lags for recurrent networks, on which Martens and Sutskever tried Hessian-free optimization.

All data is generated, and each training batch is drawn anew. Lengths and places are those of Sutskever's program for a
time lag of about `length` steps. One thing differs: a sequence that is shorter than the longest has nothing (zeros)
before it, so that all of a batch end at the same step, where the output is read. The program lets sequences start
together and reads each output at its own step; it also puts a mark of -1 on the first and the third last step of the
numbers, without which they do here.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from .architectures import Recurrent
from .metrics import Metric, counted, ratio
from .problem import Batch, Problem, Splits, TrainingSetting

TOLERANCE = 0.04
"""A sum or product that is off by more than this counts as wrong (Sutskever et al. 2013)."""
SYMBOLS = 8
"""In the order tasks: four that mean nothing, two that count, one before the output is read, and one at the start."""
FIRST_THAT_COUNTS, BEFORE_OUTPUT, AT_START, NOTHING = 4, 6, 7, 8


class Places(NamedTuple):
    """Shortest and longest sequence, and in what steps marks or symbols lie, for a length of 100.

    For other lengths they are in proportion, rounded down.
    """

    lengths: tuple[int, int]
    windows: tuple[tuple[int, int], ...]


PLACES = {
    "addition": Places((100, 110), ((1, 10), (10, 50))),
    "multiplication": Places((100, 110), ((1, 10), (10, 50))),
    "xor": Places((50, 55), ((1, 10), (15, 25))),
    "temporal_order": Places((100, 110), ((1, 10), (40, 50))),
    "temporal_order_3bit": Places((100, 110), ((1, 10), (30, 40), (50, 60))),
}


def marked_numbers(count: int, length: int, generator: torch.Generator, task: str = "addition") -> Batch:
    """Draw sequences of numbers with two marks, and what the marked numbers give.

    The numbers are uniform from [0, 1), or bits in the task "xor". The first mark lies in steps 1 to 9, counted from
    zero, and the second in steps 10 to 49 (15 to 24 in "xor"), for a length of 100.

    Args:
        count: number of sequences, N.
        length: time lag; a sequence has between `length` and 1.1 times as many steps, in "xor" half of that. At least
            10.
        generator: source of all randomness, on any device, where the sequences then are.
        task: "addition", "multiplication" or "xor" (1 where the two bits differ).

    Returns:
        Numbers and marks float32 [N, T, 2], T being the longest length, and targets float32 [N, 1].
    """
    starts, steps, (first, second) = _draw_places(PLACES[task], count, length, generator, 0)
    numbers = torch.rand(count, len(steps), generator=generator, device=generator.device)
    if task == "xor":
        numbers = (numbers < 0.5).to(torch.float32)
    numbers = numbers * (steps >= starts[:, None])
    marks = torch.zeros_like(numbers)
    rows = torch.arange(count, device=generator.device)
    marks[rows, first] = marks[rows, second] = 1.0
    a, b = numbers[rows, first], numbers[rows, second]
    targets = {"addition": a + b, "multiplication": a * b, "xor": (a - b).abs()}[task]
    return torch.stack([numbers, marks], dim=2), targets[:, None]


def ordered_symbols(count: int, length: int, generator: torch.Generator, task: str = "temporal_order") -> Batch:
    """Draw sequences of symbols among which two or three count, and their order as a class.

    At known intervals, in steps 1 to 10 and 40 to 50 for a length of 100 (with three: 1 to 10, 30 to 40 and 50 to 60),
    stands symbol 4 or 5; the other steps have one of symbols 0, ..., 3, the first one 7, and the last one 6. All
    classes are equally frequent, in turn, as in Sutskever's program.

    Args:
        count: number of sequences, N.
        length: time lag; a sequence has between `length` and 1.1 times as many steps. At least 10.
        generator: source of all randomness, on any device, where the sequences then are.
        task: "temporal_order" or "temporal_order_3bit".

    Returns:
        Symbols uint8 [N, T], T being the longest length and 8 standing for nothing, and classes int64 [N]: the symbols
        that count as bits, the first one the highest.
    """
    starts, steps, places = _draw_places(PLACES[task], count, length, generator, 1)
    symbols = torch.randint(FIRST_THAT_COUNTS, (count, len(steps)), generator=generator, device=generator.device)
    symbols[steps < starts[:, None]] = NOTHING
    rows = torch.arange(count, device=generator.device)
    symbols[rows, starts] = AT_START
    symbols[:, -1] = BEFORE_OUTPUT
    classes = rows % 2 ** len(places)
    for bit, place in enumerate(reversed(places)):
        symbols[rows, place] = FIRST_THAT_COUNTS + (classes >> bit) % 2
    return symbols.to(torch.uint8), classes


def _draw_places(
    places: Places, count: int, length: int, generator: torch.Generator, inclusive: int
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Where each sequence starts [N], all steps [T], and a step [N] of each window, whose end counts if inclusive."""
    if length < 10:
        raise ValueError(f"length must be at least 10, so that marks have room, got {length}")

    def draw(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (count,), generator=generator, device=generator.device)

    shortest, longest = (length * bound // 100 for bound in places.lengths)
    starts = longest - draw(shortest, longest + 1)
    drawn = [starts + draw(length * low // 100, length * high // 100 + inclusive) for low, high in places.windows]
    return starts, torch.arange(longest, device=generator.device), drawn


def one_hot(symbols: Tensor) -> Tensor:
    """Symbols uint8 [N, T] -> float32 [N, T, 8], zeros where there is nothing."""
    return functional.one_hot(symbols.to(torch.int64), SYMBOLS + 1)[..., :SYMBOLS].to(torch.float32)


def load(draw: Callable[..., Batch]) -> Splits:
    """10,000 sequences for training, 1,000 for validation and 10,000 for test, each split from a seed of its own.

    Args:
        draw: (count, generator=...) -> batch.
    """
    counts = (10_000, 1_000, 10_000)
    return Splits(*(draw(n, generator=torch.Generator().manual_seed(seed)) for seed, n in enumerate(counts)))


def redraw(draw: Callable[..., Batch], inputs: Tensor, targets: Tensor, generator: torch.Generator) -> Batch:
    """As many new sequences as there are, on the same device."""
    new_inputs, new_targets = draw(len(targets), generator=generator)
    return new_inputs.to(inputs.device), new_targets.to(targets.device)


def _far_off(outputs: Tensor, targets: Tensor) -> Tensor:
    return counted((outputs - targets).abs() > TOLERANCE)


def _wrong_bit(outputs: Tensor, targets: Tensor) -> Tensor:
    return counted((outputs > 0) != (targets > 0.5))


def _wrong_class(outputs: Tensor, targets: Tensor) -> Tensor:
    return counted(outputs.argmax(dim=1) != targets)


far_off = Metric("wrong", _far_off, ratio, higher_is_better=False)
"""Share of the sequences whose number is off by more than `TOLERANCE`."""
wrong_bit = Metric("wrong", _wrong_bit, ratio, higher_is_better=False)
"""Share of the sequences whose logit has the wrong sign."""
wrong_class = Metric("wrong", _wrong_class, ratio, higher_is_better=False)
"""Share of the sequences whose largest logit is not that of the class."""

_SOURCE = (
    "Hochreiter and Schmidhuber (1997), Long Short-Term Memory, as in Martens and Sutskever (2011), Learning Recurrent "
    "Neural Networks with Hessian-Free Optimization, Section 5.1, and Sutskever's program; batch size and number of "
    "steps of the first-order setting: Sutskever, Martens, Dahl and Hinton (2013), Table 5"
)


def _problem(task: str, title: str, text: str, length: int, units: int) -> Problem:
    ordered = task.startswith("temporal")
    draw = functools.partial(ordered_symbols if ordered else marked_numbers, length=length, task=task)
    outputs = 2 ** len(PLACES[task].windows) if ordered else 1
    loss = nn.CrossEntropyLoss() if ordered else nn.BCEWithLogitsLoss() if task == "xor" else nn.MSELoss()
    return Problem(
        name=f"rnn_{task}",
        version=1,
        title=title,
        description=(
            f"{text}, over at least {length * PLACES[task].lengths[0] // 100} time steps; sequences are generated, and "
            f"drawn anew for each training batch. A tanh network of {units} units with a linear output at the end; L2 "
            "term of 2e-5 on all parameters."
        ),
        model=functools.partial(Recurrent, SYMBOLS if ordered else 2, outputs, units),
        loss=loss,
        weight_decay=2e-5,
        load=functools.partial(load, draw),
        augment=functools.partial(redraw, draw),
        prepare=one_hot if ordered else None,
        metrics=(wrong_class if ordered else wrong_bit if task == "xor" else far_off,),
        training=TrainingSetting(lr=1e-3, batch_size=100, epochs=500, momentum=0.9),
        source=_SOURCE,
    )


def rnn_addition(*, length: int = 100, units: int = 100) -> Problem:
    """The addition task: the sum of two marked numbers, seen long ago, with squared error.

    Sutskever's program calls a task solved when the share of wrong sequences is below 0.001. The first-order setting,
    the same for all of these tasks, takes the loss to that of always answering the mean, here 1/6, within some hundred
    steps, and stays there for long. With a learning rate of 0.003 in place of 0.001 the loss jumps at times.

    Args:
        length: time lag; a sequence has between `length` and 1.1 times as many steps. Default 100.
        units: of the hidden state. Default 100, as in the paper.
    """
    text = "The sum of two marked numbers of a sequence"
    return _problem("addition", "RNN: addition", text, length, units)


def rnn_multiplication(*, length: int = 100, units: int = 100) -> Problem:
    """The multiplication task: as `rnn_addition`, with the product of the marked numbers.

    Args:
        length: time lag; a sequence has between `length` and 1.1 times as many steps. Default 100.
        units: of the hidden state. Default 100, as in the paper.
    """
    text = "The product of two marked numbers of a sequence"
    return _problem("multiplication", "RNN: multiplication", text, length, units)


def rnn_xor(*, length: int = 100, units: int = 100) -> Problem:
    """The XOR task: whether two marked bits differ, with binary cross-entropy.

    Neither bit says anything alone, so that success is rare even at half the others' lag, as Sutskever's program notes.

    Args:
        length: twice the time lag; a sequence has between 0.5 and 0.55 times as many steps. Default 100.
        units: of the hidden state. Default 100, as in the paper.
    """
    text = "Whether two marked bits of a sequence differ"
    return _problem("xor", "RNN: XOR", text, length, units)


def rnn_temporal_order(*, length: int = 100, units: int = 100) -> Problem:
    """The temporal order task: which of two symbols came first and which second, four classes.

    Args:
        length: time lag; a sequence has between `length` and 1.1 times as many steps. Default 100.
        units: of the hidden state. Default 100, as in the paper.
    """
    text = "The order of two symbols among others, four classes"
    return _problem("temporal_order", "RNN: temporal order", text, length, units)


def rnn_temporal_order_3bit(*, length: int = 100, units: int = 100) -> Problem:
    """The temporal order task with three symbols, eight classes.

    Args:
        length: time lag; a sequence has between `length` and 1.1 times as many steps. Default 100.
        units: of the hidden state. Default 100, as in the paper.
    """
    text = "The order of three symbols among others, eight classes"
    return _problem("temporal_order_3bit", "RNN: temporal order, 3 bits", text, length, units)
