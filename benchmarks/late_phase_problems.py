"""The two problems of `late_phase.py`, and what is measured on them."""

import copy
import os
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from latephase import problems
from latephase.problems.data.idx import read_idx
from latephase.problems.digits import shift
from latephase.problems.problem import Problem, Splits, TrainingSetting, is_weight

HELD_OUT = 5000
ROWS_AT_ONCE = 250
"""Rows of a forward pass where nothing is measured: small chunks stay in the processor's caches."""


def load_fashion() -> Splits:
    """Fashion-MNIST: 55,000 training, 5,000 held-out (the file's last) and 10,000 test images, standardised."""
    folder = Path(os.environ["LATEPHASE_DATA"]) / "FashionMNIST"

    def read(kind: str) -> tuple[Tensor, Tensor]:
        images = read_idx(folder / f"{kind}-images-idx3-ubyte.gz").to(torch.float32).div_(255).sub_(0.286).div_(0.353)
        return images.unsqueeze(1), read_idx(folder / f"{kind}-labels-idx1-ubyte.gz").to(torch.int64)

    images, labels = read("train")
    train, valid = (images[:-HELD_OUT], labels[:-HELD_OUT]), (images[-HELD_OUT:], labels[-HELD_OUT:])
    return Splits(train=train, valid=valid, test=read("t10k"))


def build_fashion() -> nn.Module:
    """Two 3x3 convolutions (16 and 32 channels, ReLU, max-pool) and a hidden layer of 128: 206,922 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


FASHION = Problem(
    name="fashion",
    version=1,
    title="CNN on Fashion-MNIST",
    description="55,000 images, shifted by up to two pixels; two convolutions, a hidden layer; cross-entropy, L2 term",
    model=build_fashion,
    loss=nn.CrossEntropyLoss(),
    weight_decay=(5e-4, is_weight),
    load=load_fashion,
    augment=shift,
    training=TrainingSetting(lr=0.2, batch_size=64, epochs=18),
)
CHECKPOINTS = {"fashion": (12, 18), "digits": (200, 400)}
"""Epochs; the search runs from the first of each problem, the verification from both."""


def problem_named(name: str) -> Problem:
    """The problem of a name."""
    return FASHION if name == "fashion" else problems.get(name)


@cache
def data_of(name: str) -> Splits:
    """The data of a problem, read once."""
    return problem_named(name).load()


def measure(problem: Problem, model: nn.Module, split: str, rows: int | None = None) -> dict[str, float]:
    """Cross-entropy without the L2 term, and accuracy, on (the first rows of) a split."""
    inputs, targets = getattr(data_of(problem.name), split)
    inputs, targets = inputs[:rows], targets[:rows]
    # Pooling takes half the time in this layout.
    fast = copy.deepcopy(model).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    with torch.no_grad():
        parts = inputs.contiguous(memory_format=torch.channels_last).split(ROWS_AT_ONCE)
        outputs = torch.cat([fast(part) for part in parts])
    right = float((outputs.argmax(1) == targets).double().mean())
    return {"loss": float(problem.loss(outputs.double(), targets)), "accuracy": right}


def l2_term(problem: Problem, model: nn.Module) -> float:
    """The L2 term of the objective."""
    assert isinstance(problem.weight_decay, tuple)
    weights = (p for name, p in model.named_parameters() if is_weight(name, p))
    return 0.5 * problem.weight_decay[0] * sum(float(p.detach().double().square().sum()) for p in weights)
