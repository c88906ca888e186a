"""What the rows J~ of the Gauss-Newton matrix cost, in gradients of the same objective, in float64 on one thread.

    python benchmarks/rows.py [--rounds 11] [--only PATTERN] [--save benchmarks/results/rows.json]

Cases: Poisson's equation in two dimensions, whose residual takes second derivatives of the network, by
`torch.autograd.grad` twice and by `torch.func`; a regression and a classifier on 1,000 examples of 50 features; a
convolutional network. Each takes turns in one process: a gradient (`linearize(..., products=False)`, a forward and a
backward pass), all rows as one tensor from a linearisation that is there (`rows`), all rows in pieces (`pieces`), the
rows with their forward pass (`with pass`), unless there are too many parameters, the rows as `torch.func.vmap` of a
vector-Jacobian product over examples of one (`by vmap`), and the kernel J~J~', as such (`kernel`) and from the rows
(`rows, product`). Medians of the process's own seconds, and of the ratios.
"""

import argparse
import fnmatch
import itertools
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from allocator import keep_memory
from torch import Tensor, nn

from latephase import Objective
from latephase.curvature import linearize
from latephase.curvature.chunk import ChunkCurvature
from latephase.curvature.eager import ForwardPass
from latephase.curvature.rows.pulling import pull_examples

MANY, FEW = 50_000, 2_000
"""Parameters from which rows by vmap are not measured, and rows up to which their kernel is."""
INTERIOR, BOUNDARY, EXAMPLES, IMAGES = 900, 120, 1_000, 64


def tanh_network(*widths: int) -> nn.Sequential:
    """Linear layers with tanh between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def laplacian_by_autograd(model: nn.Module, points: Tensor) -> Tensor:
    """u_xx + u_yy [N, 1] by two passes backward for each coordinate."""
    x = points.detach().requires_grad_()
    (slopes,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    curved = [torch.autograd.grad(slopes[:, i].sum(), x, create_graph=True)[0][:, i : i + 1] for i in range(2)]
    return curved[0] + curved[1]


def laplacian_by_func(model: nn.Module, points: Tensor) -> Tensor:
    """u_xx + u_yy [N, 1] by `torch.func.hessian` of each point."""
    hessians = torch.func.vmap(torch.func.hessian(lambda x: model(x.unsqueeze(0))[0, 0]))(points)
    return hessians.diagonal(dim1=1, dim2=2).sum(1, keepdim=True)


def poisson(laplacian: Callable[[nn.Module, Tensor], Tensor], *hidden: int) -> Objective:
    """The mean squared residuals of Poisson's equation on the unit square, inside and on the boundary."""
    inside, edge = torch.rand(INTERIOR, 2), torch.rand(BOUNDARY, 2)
    edge[torch.arange(BOUNDARY), torch.arange(BOUNDARY) % 2] = (torch.arange(BOUNDARY) // 2 % 2).to(edge.dtype)
    force = -2 * torch.pi**2 * (torch.pi * inside).sin().prod(1, keepdim=True)
    scales = {"inside": INTERIOR**-0.5, "edge": BOUNDARY**-0.5}

    def forward(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        ((name, points),) = inputs.items()
        return scales[name] * (laplacian(model, points) if name == "inside" else model(points))

    data = [
        ({"inside": inside}, scales["inside"] * force),
        ({"edge": edge}, torch.zeros(BOUNDARY, 1)),
    ]
    return Objective(tanh_network(2, *hidden, 1), nn.MSELoss(reduction="sum"), data, forward=forward)


def convolutional() -> nn.Sequential:
    """Three convolutions and two linear layers, for images [3, 16, 16]."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(24, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def cases() -> dict[str, Callable[[], Objective]]:
    """What is measured, by name."""
    features, labels = torch.randn(EXAMPLES, 50), torch.randint(10, (EXAMPLES,))
    images, classes = torch.randn(IMAGES, 3, 16, 16), torch.randint(10, (IMAGES,))
    return {
        "poisson, autograd": lambda: poisson(laplacian_by_autograd, 32, 32),
        "poisson, torch.func": lambda: poisson(laplacian_by_func, 32, 32),
        "poisson, wide": lambda: poisson(laplacian_by_autograd, 200, 200, 200),
        "regression": lambda: Objective(
            tanh_network(50, 64, 64, 1), nn.MSELoss(), (features, torch.randn(EXAMPLES, 1))
        ),
        "classifier": lambda: Objective(tanh_network(50, 64, 10), nn.CrossEntropyLoss(), (features, labels)),
        "convolutional": lambda: Objective(convolutional(), nn.CrossEntropyLoss(), (images, classes)),
    }


def by_vmap(objective: Objective, passes: list[ForwardPass]) -> None:
    """Unit cotangents of every output, example by example."""
    for forward in passes:
        (output,) = forward.outputs
        columns = output[0].numel()
        units = torch.eye(columns).unsqueeze(1).expand(columns, len(output), columns)
        pull = pull_examples(forward)
        size = max(2**26 // (columns * forward.space.size * 8), 1)
        for start in range(0, len(output), size):
            pull([units], range(start, min(start + size, len(output))))


def measure(objective: Objective, rounds: int) -> dict[str, Any]:
    """Milliseconds of each way, and their ratios to a gradient."""
    curved = linearize(objective, method="double_backward")
    passes = [part.forward() for part in curved._parts if isinstance(part, ChunkCurvature)]
    ways: dict[str, Callable[[], object]] = {
        "gradient": lambda: linearize(objective, products=False),
        "rows": curved.rows,
        "pieces": lambda: [None for _ in curved.row_pieces()],
        "with pass": lambda: linearize(objective, method="double_backward").rows(),
    }
    shape = list(curved.rows().shape)
    if shape[1] < MANY:
        ways["by vmap"] = lambda: by_vmap(objective, passes)
    if shape[0] <= FEW:
        ways |= {"kernel": curved.row_kernel, "rows, product": lambda: (j := curved.rows()) @ j.T}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds + 2):
        for way, run in ways.items():
            if way == "by vmap" and 3 <= turn < rounds + 1:  # two are enough of what takes a second
                continue
            started = time.process_time()
            run()
            if turn > 1:  # the first two warm up
                seconds[way].append(time.process_time() - started)
    gradient = seconds["gradient"]
    return {
        "rows": shape[0],
        "parameters": shape[1],
        "milliseconds": {way: round(1000 * median(each), 3) for way, each in seconds.items()},
        "gradients": {
            way: round(median(a / b for a, b in zip(each, gradient, strict=False)), 3) for way, each in seconds.items()
        },
    }


def main() -> None:
    """Measure, print, and write to a file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--only", default="*", help="pattern of the cases' names")
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()
    keep_memory()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    found = {}
    for name, build in cases().items():
        if fnmatch.fnmatch(name, args.only):
            found[name] = measure(build(), args.rounds)
            ratios = ", ".join(f"{way} {ratio:.2f}" for way, ratio in found[name]["gradients"].items())
            print(f"{name}, {found[name]['rows']:,} rows of {found[name]['parameters']:,}: gradients: {ratios}")
            print(f"    gradient {found[name]['milliseconds']['gradient']:.2f} ms", flush=True)
    if args.save is not None:
        where = {"torch": torch.__version__, "machine": platform.machine(), "threads": 1, "rounds": args.rounds}
        args.save.write_text(json.dumps({"environment": where, "cases": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
