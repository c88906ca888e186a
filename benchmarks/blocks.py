"""What a product with the block-diagonal Gauss-Newton matrix costs, as a ratio to one with the whole matrix.

    python benchmarks/blocks.py [--rounds 15] [--rows 512] [--device cpu]

Two networks of 512 rows, a block for each layer: a classifier with ten outputs, and the autoencoder of MNIST. Both
products take turns in one process on one thread. Printed are the median of the ratios, how each block's product was
computed, and what is set up once per step, in products with the whole matrix. One iteration of conjugate gradients is
measured too: it is a product and some work on vectors. On a CPU it is the process's own seconds that are taken.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from statistics import median

import torch
from allocator import keep_memory
from torch import Tensor, nn

from latephase import Objective, layerwise
from latephase.curvature import damped, linearize, over_blocks
from latephase.problems.architectures import autoencoder
from latephase.solve import conjugate_gradient

ITERATIONS = 10


def classifier() -> nn.Sequential:
    """784-1000-1000-500-250-10 logistic units."""
    widths = (784, 1000, 1000, 500, 250, 10)
    layers = [m for a, b in itertools.pairwise(widths) for m in (nn.Linear(a, b), nn.Sigmoid())]
    return nn.Sequential(*layers[:-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    keep_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.rand(args.rows, 784, device=args.device)
    labels = torch.randint(10, (args.rows,), device=args.device)
    measure("classifier", classifier(), nn.CrossEntropyLoss(), (images, labels), args)
    measure("autoencoder", autoencoder(), nn.BCEWithLogitsLoss(), (images, images), args)


def measure(name: str, model: nn.Module, loss: nn.Module, data: tuple[Tensor, Tensor], args) -> None:
    """Print the ratios of one network."""
    model.to(args.device)
    curved = linearize(Objective(model, loss, data), at_once=True)
    sizes = [sum(p.numel() for p in group["params"]) for group in layerwise(model)]
    v = torch.randn(curved.space.size, device=args.device)
    for expected in (1, 100):
        first = over_blocks(curved, sizes, expected)
        first.matvec(v)  # the plan, made once per shape
        set_up = over_blocks(linearize(curved.objective, at_once=True), sizes, expected)
        ways = {
            "set-up and one product": lambda over=set_up: over.matvec(v),
            "whole": lambda: curved.matvec(v),
            "product": lambda over=first: over.matvec(v),
            "iteration": lambda over=first: iterations(over.matvec, v, sizes),
            "iteration, whole": lambda: iterations(curved.matvec, v, [len(v)]),
        }
        seconds = {way: [timed(run, args.device)] for way, run in ways.items()}
        for _ in range(args.rounds):
            for way in list(ways)[1:]:
                seconds[way].append(timed(ways[way], args.device))
        whole = seconds["whole"][1:]
        ratios = {
            way: median(a / b for a, b in zip(seconds[way][1:], whole, strict=True))
            for way in ("product", "iteration", "iteration, whole")
        }
        print(
            f"{name}, {expected} products expected: product {ratios['product']:.2f} of one with the whole matrix, "
            f"one iteration {ratios['iteration'] / ITERATIONS:.2f} (with the whole matrix "
            f"{ratios['iteration, whole'] / ITERATIONS:.2f}), set-up and the first product "
            f"{seconds['set-up and one product'][0] / median(whole):.1f}\n    {', '.join(first.methods or ())}"
        )


def iterations(matvec: Callable[[Tensor], Tensor], b: Tensor, sizes: list[int]) -> None:
    """Ten iterations of conjugate gradients."""
    options = {"stopping": "residual", "tolerance": 0.0, "max_iter": ITERATIONS}
    conjugate_gradient(damped(matvec, 0.1), b, block_sizes=sizes, **options)


def timed(run: Callable[[], object], device: str) -> float:
    """Seconds of a call."""
    clock = time.perf_counter if device.startswith("cuda") else time.process_time
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    started = clock()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return clock() - started


if __name__ == "__main__":
    main()
