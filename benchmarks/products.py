"""What curvature products cost, as ratios to the gradient of the same batch, and what the objective adds to SGD.

Runs of all candidates are interleaved in one process on one thread, and medians are compared: an absolute time says
nothing on a shared machine.

    python benchmarks/products.py [--rounds 15]
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from latephase import Objective
from latephase.curvature import linearize


def autoencoder() -> nn.Module:
    """The encoder and decoder 784-1000-500-250-30 with sigmoids and a linear code (Hinton and Salakhutdinov 2006)."""
    widths = [784, 1000, 500, 250, 30, 250, 500, 1000, 784]
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(itertools.pairwise(widths)):
        layers += [nn.Linear(before, after)] + ([nn.Sigmoid()] if index not in (3, 7) else [])
    return nn.Sequential(*layers)


def small_cnn() -> nn.Module:
    """The network of the problem `digits`."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def cases() -> dict[str, tuple[nn.Module, nn.Module, Tensor, Tensor]]:
    """Model, loss, inputs and targets by name."""
    torch.manual_seed(0)
    image = torch.rand(256, 784)
    digits, labels = torch.rand(512, 1, 8, 8), torch.randint(10, (512,))
    return {
        "autoencoder, 256": (autoencoder(), nn.BCEWithLogitsLoss(), image, image),
        "digits CNN, 512": (small_cnn(), nn.CrossEntropyLoss(), digits, labels),
    }


def medians(candidates: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each candidate over interleaved rounds, after one that does not count."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + 1):
        for name, candidate in candidates.items():
            start = time.perf_counter()
            candidate()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def product_costs(model: nn.Module, loss: nn.Module, inputs: Tensor, targets: Tensor, rounds: int) -> dict[str, float]:
    """Ratios to the gradient: once per step and per product, by method."""
    objective = Objective(model, loss, (inputs, targets))
    vector = torch.randn(sum(p.numel() for p in model.parameters()))
    candidates: dict[str, Callable[[], object]] = {"gradient": objective, "value": objective.value}
    for method in ("double_backward", "linearize"):
        linear = linearize(objective, method=method)
        candidates[f"{method}: product"] = lambda linear=linear: linear.matvec(vector)
        candidates[f"{method}: v'Gv"] = lambda linear=linear: linear.quadratic_form(vector)
        candidates[f"{method}: set-up, gradient, one product"] = lambda method=method: _one_product(
            objective, vector, method
        )
    times = medians(candidates, rounds)
    return {name: seconds / times["gradient"] for name, seconds in times.items()}


def _one_product(objective: Objective, vector: Tensor, method: str) -> Tensor:
    linear = linearize(objective, method=method)
    return linear.gradient + linear.matvec(vector)


def overhead(rounds: int) -> float:
    """An SGD step through the objective over the same step written by hand, at batch 32 of the digits CNN."""
    model, loss = small_cnn(), nn.CrossEntropyLoss()
    inputs, targets = torch.rand(32, 1, 8, 8), torch.randint(10, (32,))
    weights = [p for name, p in model.named_parameters() if name.endswith("weight")]
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    ours = torch.optim.SGD(model.parameters(), lr=1e-6)
    plain = torch.optim.SGD([{"params": weights, "weight_decay": 5e-4}, {"params": biases}], lr=1e-6)

    def through_objective() -> None:
        decay = (5e-4, lambda name, p: name.endswith("weight"))
        ours.step(Objective(model, loss, (inputs, targets), weight_decay=decay))

    def by_hand() -> None:
        plain.zero_grad()
        loss(model(inputs), targets).backward()
        plain.step()

    times = medians({"ours": through_objective, "plain": by_hand}, 20 * rounds)
    return times["ours"] / times["plain"]


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds (default 15)")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    results = {name: product_costs(*case, rounds) for name, case in cases().items()}
    table = Table("cost / cost of the gradient", *results, title=f"torch {torch.__version__}, one thread, medians")
    for row in next(iter(results.values())):
        table.add_row(row, *(f"{costs[row]:.2f}" for costs in results.values()))
    console = Console()
    console.print(table)
    console.print(f"SGD step through Objective / by hand, digits CNN, batch 32: {overhead(rounds):.2f}")


if __name__ == "__main__":
    main()
