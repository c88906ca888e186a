"""What a step of AdamQLR costs, as a ratio to a step of Adam on the same batch.

    python benchmarks/quadratic_lr.py [--rounds 15] [--device cpu] [--default-allocator] [--compile]

Two networks: the perceptron 784-512-512-10 on 3,200 rows and 3C3D on 128. Steps of all optimizers take turns in one
process on one thread; printed is the median of the ratios. A step of Adam is the loss, its gradient and the update. On
a CPU it is the process's own seconds that are taken. With `--compile` there are two more: Adam with the model and its
loss through `torch.compile`, and the untuned AdamQLR with everything that its traces compute through it. This is what
compilation would bring, and no option of the library.
"""

import argparse
import copy
import dataclasses
import functools
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from allocator import keep_memory
from torch import Tensor, nn

import latephase.curvature.tracing.trace as tracing
from latephase import AdamQLR, Fixed, Objective
from latephase.problems.architectures import cnn_3c3d

SETTINGS: dict[str, dict[str, Any]] = {
    "untuned": {},
    "undamped": {"damping": Fixed(0.0)},
    "hessian": {"curvature": "hessian", "damping": {"initial": 1.0, "factors": (0.95, 1.0526)}},
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--default-allocator", action="store_true", help="leave glibc's allocator as it is")
    parser.add_argument("--compile", action="store_true", help="measure what torch.compile adds as well")
    args = parser.parse_args()
    if not args.default_allocator:
        keep_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    perceptron = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    measure("784-512-512-10, 3,200 rows", perceptron, torch.rand(3200, 784), args)
    measure("3C3D, 128 rows", cnn_3c3d(), torch.rand(128, 3, 32, 32), args)


def measure(name: str, model: nn.Module, inputs: Tensor, args: argparse.Namespace) -> None:
    """Print the ratios of one network."""
    model.to(args.device)
    targets = torch.randint(10, (len(inputs),))
    objective = Objective(model, nn.CrossEntropyLoss(), (inputs.to(args.device), targets.to(args.device)))
    optimizers: dict[str, Any] = {"Adam": torch.optim.Adam(model.parameters(), lr=1e-5)}
    # A tiny factor on the steps keeps the network where it is, so that all see the same numbers.
    optimizers |= {name: AdamQLR(model.parameters(), amplification=1e-5, **own) for name, own in SETTINGS.items()}
    steps = {name: functools.partial(optimizer.step, objective) for name, optimizer in optimizers.items()}
    if args.compile:
        steps |= {"Adam, compiled": compiled_adam(model, objective), "untuned, compiled": compiled_untuned(objective)}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in range(args.rounds + 3):
        for name_of, take in steps.items():
            taken = timed(take, args.device)
            if step >= 3:  # the first are traced
                seconds[name_of].append(taken)
    ratios = {
        name_of: median(a / b for a, b in zip(values, seconds["Adam"], strict=True))
        for name_of, values in seconds.items()
    }
    print(f"{name}: " + ", ".join(f"{name_of} {ratio:.2f}" for name_of, ratio in ratios.items()))


def compiled_adam(model: nn.Module, objective: Objective) -> Callable[[], Any]:
    """A step of Adam on a copy of the model, compiled together with its loss."""
    model = copy.deepcopy(model)
    adam = torch.optim.Adam(model.parameters(), lr=1e-5)
    chunk = objective.chunks[0]
    loss = torch.compile(lambda: nn.functional.cross_entropy(model(chunk.inputs), chunk.targets), dynamic=False)

    def step() -> None:
        adam.zero_grad()
        loss().backward()
        adam.step()

    return step


def compiled_untuned(objective: Objective) -> Callable[[], Any]:
    """A step of AdamQLR on a copy of the model, each stage of its traces compiled."""
    chunk = objective.chunks[0]
    model = copy.deepcopy(objective.model)
    own = Objective(model, nn.CrossEntropyLoss(), (chunk.inputs, chunk.targets))
    optimizer, cut = AdamQLR(model.parameters(), amplification=1e-5), tracing.cut

    def cut_and_compiled(*args: Any) -> Any:
        stages = cut(*args)
        names = ("forward", "gradient", "form")
        return dataclasses.replace(stages, **{n: torch.compile(getattr(stages, n), dynamic=False) for n in names})

    tracing.cut = cut_and_compiled
    try:
        for _ in range(3):  # the second is traced
            optimizer.step(own)
    finally:
        tracing.cut = cut
    return functools.partial(optimizer.step, own)


def timed(take: Callable[[], Any], device: str) -> float:
    """Seconds of a step."""
    clock = time.perf_counter if device.startswith("cuda") else time.process_time
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    started = clock()
    take()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return clock() - started


if __name__ == "__main__":
    main()
