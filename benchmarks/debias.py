"""How well the quadratic model of a mini-batch predicts a step's true change of the loss, with and without debiasing.

    OMP_NUM_THREADS=1 python benchmarks/debias.py

A small network is trained on scikit-learn's digits by Adam until it knows nine images in ten. From there single
Hessian-free steps are taken, each on a random batch of its own, and the change of the loss that the undamped model
predicts is compared with the true change on all images. Without `debias` directions, slopes and curvatures all come
from the batch; with it slopes and curvatures come from a second batch of other images. No line search and no walk back:
the step is conjugate gradients' last candidate. See Tatzel, Mucsanyi, Hackel and Hennig: Debiasing Mini-Batch
Quadratics for Applications in Deep Learning (2024).
"""

import argparse
import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from latephase.objective.objective import Objective
from latephase.optim import CG, Fixed, HessianFree

DAMPINGS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)


@dataclass(frozen=True)
class Error:
    """What was predicted and what came of it, over several batches; changes of the loss, which should be negative.

    Attributes:
        predicted: mean of the predicted change.
        actual: mean of the true change on all images.
        absolute: mean of |predicted - actual|.
        logarithmic: mean of |log(predicted / actual)|; infinite if a step raised the loss.
        raised: share of the steps that raised the loss.
    """

    predicted: float
    actual: float
    absolute: float
    logarithmic: float
    raised: float


def trained_network(seed: int = 0) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A network 64-32-10 with 2,410 parameters at 90 percent accuracy, and the 1,797 images; in float64."""
    images, labels = load_digits(return_X_y=True)
    inputs, targets = torch.as_tensor(images) / 16, torch.as_tensor(labels)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    while float((model(inputs).argmax(dim=1) == targets).double().mean()) < 0.9:
        rows = torch.randint(len(inputs), (128,))
        Objective(model, nn.CrossEntropyLoss(), (inputs[rows], targets[rows]))()
        optimizer.step()
    return model, (inputs, targets)


def predicted_and_actual(
    model: nn.Module, data: tuple[Tensor, Tensor], damping: float, debias: bool, batches: int = 20, rows: int = 128
) -> list[tuple[float, float]]:
    """Predicted and true change of the loss by one step from the model's parameters, for each of the batches."""
    everything = Objective(model, nn.CrossEntropyLoss(), data)
    before, start = float(everything.value()), copy.deepcopy(model.state_dict())
    generator = torch.Generator().manual_seed(1)
    pairs = []
    for _ in range(batches):
        drawn = torch.randperm(len(data[0]), generator=generator)[: 2 * rows].split(rows)
        first, second = (Objective(model, nn.CrossEntropyLoss(), (data[0][r], data[1][r])) for r in drawn)
        optimizer = HessianFree(
            model.parameters(),
            damping=Fixed(damping),
            solver=CG(candidates="last"),
            line_search=False,
            debias=debias,
        )
        optimizer.step(first, second)
        report = optimizer.report
        assert report is not None
        pairs.append((report.predicted_change, float(everything.value()) - before))
        model.load_state_dict(start)
    return pairs


def error(pairs: Sequence[tuple[float, float]]) -> Error:
    """Means over the batches."""
    logs = [abs(math.log(p / a)) if p < 0 and a < 0 else math.inf for p, a in pairs]
    count = len(pairs)
    return Error(
        predicted=sum(p for p, _ in pairs) / count,
        actual=sum(a for _, a in pairs) / count,
        absolute=sum(abs(p - a) for p, a in pairs) / count,
        logarithmic=sum(logs) / count,
        raised=sum(a >= 0 for _, a in pairs) / count,
    )


def main() -> None:
    """Print a table, two rows for each damping."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dampings", type=float, nargs="+", default=DAMPINGS)
    parser.add_argument("--batches", type=int, default=20, help="steps for each row of the table")
    parser.add_argument("--rows", type=int, default=128, help="images in a batch")
    arguments = parser.parse_args()
    model, data = trained_network()
    loss = float(Objective(model, nn.CrossEntropyLoss(), data).value())
    print(f"{arguments.batches} batches of {arguments.rows} images; loss on all images before each step {loss:.4f}\n")
    print("damping  debias  predicted    actual   |error|  |log error|  raised")
    for damping in arguments.dampings:
        for debias in (False, True):
            e = error(predicted_and_actual(model, data, damping, debias, arguments.batches, arguments.rows))
            numbers = f"{e.predicted:9.4f} {e.actual:9.4f} {e.absolute:9.4f}    {e.logarithmic:9.3f}  {e.raised:6.0%}"
            print(f"{damping:7g}  {'yes' if debias else 'no':>6}  {numbers}")


if __name__ == "__main__":
    main()
