"""Compare Hessian-free steps whose products run in bfloat16 with float32 ones, on four real problems.

    OMP_NUM_THREADS=1 LATEPHASE_DATA=FOLDER python benchmarks/precision.py --out benchmarks/results

SGD trains each network to an early and a late checkpoint. From there Hessian-free steps are taken in float32, and at
every one of them the same step is taken with `GGN(dtype=torch.bfloat16)`: parameters, damping, start of conjugate
gradients, batch and evaluation batch are the same. The first steps of a run are also taken with everything in float64,
and in float32 with the rows of the batch in another order: what is different there is rounding of float32. Compared is
by how much the loss falls on the evaluation batch, on the batch and on a fixed larger set. The run goes on from the
float32 step.

The folder holds the published files: FashionMNIST/*-ubyte.gz, cifar-100-binary.tar.gz (or unpacked), and
tiny_shakespeare/input.txt; `digits` needs none. Results of single problems are added to those already in the output
folder; without problems (`--problems` and nothing behind it) tables and figure are drawn anew.
"""

import argparse
import copy
import gzip
import json
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import precision_report
import torch
from torch import Tensor, nn

from latephase import CG, GGN, problems
from latephase.bench.timing import interleave, summarize
from latephase.curvature import linearize
from latephase.objective.objective import Objective
from latephase.optim import HessianFree
from latephase.problems.architectures import Transformer, cnn_3c3d
from latephase.problems.problem import is_weight
from latephase.problems.sampling import batches, draw
from latephase.records.environment import describe_environment

Data = tuple[Tensor, Tensor]
CONTEXT = 64
LARGE = 10**6  # the "step" whose rows are the larger set
DAMPINGS, CAPS = (1.0, 0.01), (250, 50)
POWER_ITERATIONS = 20


@dataclass(frozen=True)
class Case:
    """A problem and how it is measured.

    Attributes:
        title: for tables.
        data: () -> training rows.
        model: () -> network.
        rows: of a step's batch; its evaluation batch has as many.
        large: rows of the larger set.
        sgd: learning rate, momentum, batch size.
        epochs: of SGD, at the early and at the late checkpoint.
        steps: of each run, and how many of them are also taken with reordered rows and in float64.
        decay: L2 coefficient on weights.
    """

    title: str
    data: Callable[[], Data]
    model: Callable[[], nn.Module]
    rows: int
    large: int
    sgd: tuple[float, float, int]
    epochs: tuple[int, int]
    steps: tuple[int, int, int]
    decay: float = 5e-4

    def objective(self, model: nn.Module, data: Data, rows: Tensor, **options: Any) -> Objective:
        """The loss on some rows, in the model's dtype."""
        inputs, targets = (part[rows] for part in data)
        if inputs.is_floating_point():
            inputs = inputs.to(next(model.parameters()).dtype)
        decay = (self.decay, is_weight)
        return Objective(model, nn.CrossEntropyLoss(), (inputs, targets), weight_decay=decay, **options)


class Characters(nn.Module):
    """A transformer whose logits are [N, vocabulary, T], as `nn.CrossEntropyLoss` takes them."""

    def __init__(self):
        super().__init__()
        self.transformer = Transformer(65, layers=2, width=64, heads=4, context=CONTEXT)

    def forward(self, symbols: Tensor) -> Tensor:
        """Symbols [N, T] -> logits [N, vocabulary, T]."""
        return self.transformer(symbols).transpose(1, 2)


def fashion_cnn() -> nn.Module:
    """Two convolutions and two dense layers: images [N, 1, 28, 28] -> logits [N, 10]."""
    first = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


def published(name: str) -> Path:
    """A published file, or the message that says where it should be."""
    folder = os.environ.get("LATEPHASE_DATA")
    if folder is None:
        raise SystemExit("set LATEPHASE_DATA to the folder with the data sets, or ask for --problems digits")
    if not (path := Path(folder) / name).exists():
        raise SystemExit(f"LATEPHASE_DATA has no {name}")
    return path


def digits() -> Data:
    """The training split of the package's problem."""
    return problems.get("digits").load().train


def fashion(count: int = 8192) -> Data:
    """The first images of Fashion-MNIST, standardised."""
    with gzip.open(published("FashionMNIST/train-images-idx3-ubyte.gz")) as file:
        pixels = np.frombuffer(file.read(16 + count * 784), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    with gzip.open(published("FashionMNIST/train-labels-idx1-ubyte.gz")) as file:
        labels = np.frombuffer(file.read(8 + count), np.uint8, offset=8)
    return standardised(pixels), torch.from_numpy(labels.astype(np.int64))


def cifar100(count: int = 4096) -> Data:
    """The first images of CIFAR-100, standardised."""
    folder = Path(os.environ.get("LATEPHASE_DATA", "")) / "cifar-100-binary"
    if folder.is_dir():
        raw = np.fromfile(folder / "train.bin", np.uint8, count=count * 3074)
    else:
        with tarfile.open(published("cifar-100-binary.tar.gz")) as archive:
            member = archive.extractfile("cifar-100-binary/train.bin")
            assert member is not None
            raw = np.frombuffer(member.read(count * 3074), np.uint8)
    rows = raw.reshape(-1, 3074)  # coarse label, fine label, pixels
    return standardised(rows[:, 2:].reshape(-1, 3, 32, 32)), torch.from_numpy(rows[:, 1].astype(np.int64))


def standardised(pixels: np.ndarray) -> Tensor:
    """Mean zero and deviation one over all pixels."""
    images = torch.from_numpy(pixels.astype(np.float32))
    return (images - images.mean()) / images.std()


def shakespeare(count: int = 8192) -> Data:
    """Texts of 64 characters, and the characters behind each."""
    text = published("tiny_shakespeare/input.txt").read_bytes()
    _, symbols = np.unique(np.frombuffer(text, np.uint8), return_inverse=True)
    texts = torch.from_numpy(symbols[: count * (CONTEXT + 1)]).view(count, CONTEXT + 1)
    return texts[:, :-1].contiguous(), texts[:, 1:].contiguous()


CASES = {
    "digits": Case("digits, CNN", digits, problems.get("digits").model, 256, 1197, (0.2, 0, 32), (4, 80), (8, 4, 4)),
    "fashion": Case("Fashion-MNIST, CNN", fashion, fashion_cnn, 256, 4096, (0.02, 0.9, 64), (1, 12), (6, 2, 2)),
    "cifar100": Case("CIFAR-100, 3C3D", cifar100, lambda: cnn_3c3d(100), 256, 1024, (0.01, 0.9, 64), (2, 9), (4, 1, 0)),
    "shakespeare": Case("Shakespeare, GPT", shakespeare, Characters, 16, 256, (0.1, 0.9, 16), (1, 4), (6, 2, 2), 0.0),
}
"""By name. A row of Shakespeare is a text of 64 characters."""


def checkpoints(case: Case, data: Data) -> Iterator[tuple[str, nn.Module]]:
    """Train with SGD; yields the network at the early and at the late checkpoint."""
    torch.manual_seed(0)
    model = case.model().eval()
    lr, momentum, size = case.sgd
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    for epoch in range(1, case.epochs[1] + 1):
        for rows in batches(len(data[1]), size, 0, epoch):
            optimizer.step(case.objective(model, data, rows))
        if epoch in case.epochs:
            yield "early" if epoch == case.epochs[0] else "late", copy.deepcopy(model)


def take(case: Case, model: nn.Module, start: HessianFree, data: Data, rows: tuple[Tensor, Tensor], variant: str):
    """Take one step on a copy of model and optimizer; returns both."""
    model = copy.deepcopy(model)
    if variant == "float64":
        model.double()
    optimizer = HessianFree(model.parameters())
    optimizer.load_state_dict(copy.deepcopy(start.state_dict()))
    optimizer.param_groups[0]["curvature"] = GGN(dtype=torch.bfloat16 if variant == "bfloat16" else None)
    if variant == "float64":  # tracing convolutions in float64 takes longer than it saves
        optimizer.state[next(model.parameters())].pop("forms", None)
    batch = rows[0].flip(0) if variant == "reordered" else rows[0]
    optimizer.step(case.objective(model, data, batch), case.objective(model, data, rows[1]))
    return model.float(), optimizer


def flat(model: nn.Module) -> Tensor:
    """All parameters in float64."""
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


def compare(
    case: Case, model: nn.Module, start: HessianFree, data: Data, sets: dict[str, Tensor], variants: list[str]
) -> tuple[nn.Module, HessianFree, dict[str, Any]]:
    """Take a step in each variant; returns the float32 one and what each did."""

    def losses(at: nn.Module) -> dict[str, float]:
        return {name: float(case.objective(at, data, rows).value()) for name, rows in sets.items()}

    before, origin = losses(model), flat(model)
    record: dict[str, Any] = {"loss": before}
    taken = {v: take(case, model, start, data, (sets["batch"], sets["evaluation"]), v) for v in variants}
    base = flat(taken["float32"][0]) - origin
    for variant, (moved, optimizer) in taken.items():
        step, after, report = flat(moved) - origin, losses(moved), optimizer.report
        assert report is not None
        lengths = float(base.norm()), float(step.norm())
        record[variant] = {
            "decrease": {name: before[name] - after[name] for name in sets},
            "step_difference": float((step - base).norm()) / lengths[0] if lengths[0] else None,
            "step_norm_ratio": lengths[1] / lengths[0] if lengths[0] else None,
            "cosine": float(step @ base) / (lengths[0] * lengths[1]) if min(lengths) else None,
            "next_damping": optimizer.damping,
            **report.as_dict(),
        }
    return *taken["float32"], record


def run(case: Case, data: Data, checkpoint: str, origin: nn.Module) -> Iterator[dict[str, Any]]:
    """All settings from one checkpoint; the lower cap only where it would have ended conjugate gradients."""
    (large,) = draw(len(data[1]), [case.large], 0, LARGE)
    for damping in DAMPINGS:
        longest = 0
        for cap in CAPS:
            if cap < CAPS[0] and longest <= cap:
                continue
            model = copy.deepcopy(origin)
            optimizer = HessianFree(model.parameters(), damping=damping, solver=CG(max_iter=cap))
            count, *controls = case.steps
            for index in range(count):
                batch, evaluation = draw(len(data[1]), [case.rows, case.rows], 0, index)
                sets = {"evaluation": evaluation, "batch": batch, "large": large}
                extra = [v for v, n in zip(("reordered", "float64"), controls, strict=True) if index < n]
                variants = ["float32", "bfloat16", *extra]
                model, optimizer, record = compare(case, model, optimizer, data, sets, variants)
                longest = max(longest, *(max(record[v]["cg_iterations"]) for v in variants))
                yield {"checkpoint": checkpoint, "cap": cap, "damping": damping, "step": index, **record}


def products(case: Case, data: Data, model: nn.Module, rounds: int = 15) -> dict[str, Any]:
    """Cost of a product in both dtypes within interleaved rounds, the largest eigenvalue, and the error in bfloat16."""
    (rows,) = draw(len(data[1]), [case.rows], 0, 0)
    objective = case.objective(model, data, rows)
    dtypes = {"float32": None, "bfloat16": torch.bfloat16}
    linear = {name: linearize(objective, dtype=dtype, at_once=True) for name, dtype in dtypes.items()}
    gradient = linear["float32"].gradient
    v = gradient / gradient.norm()
    error = linear["bfloat16"].matvec(v) - linear["float32"].matvec(v)
    times = interleave({name: lambda name=name: linear[name].matvec(v) for name in linear}, rounds)
    costs = {name: summarize(own, times["float32"]) for name, own in times.items()}
    top = torch.ones(())
    for _ in range(POWER_ITERATIONS):
        v = linear["float32"].matvec(v)
        top = v.norm()
        v /= top
    numbers = {"largest_eigenvalue": float(top), "error_at_gradient": float(error.norm())}
    return {name: {"method": linear[name].method, **cost} for name, cost in costs.items()} | numbers


def measure(case: Case) -> dict[str, Any]:
    """Everything about one problem."""
    started, machine, data = time.perf_counter(), describe_environment(1, 1), case.data()
    steps, cost = [], {}
    for checkpoint, model in checkpoints(case, data):
        print(f"{case.title}, {checkpoint}: {time.perf_counter() - started:.0f} s", flush=True)
        cost[checkpoint] = products(case, data, model)
        for record in run(case, data, checkpoint, model):
            steps.append(record)
            print(precision_report.line(record), flush=True)
    size = sum(p.numel() for p in case.model().parameters())
    settings = {"title": case.title, "parameters": size, "rows": case.rows, "large": case.large, "train": len(data[1])}
    settings["environment"] = machine  # of the start: that is the code that ran
    settings |= {"sgd": case.sgd, "epochs": case.epochs, "weight_decay": case.decay, "products": cost, "steps": steps}
    return settings | {"seconds": time.perf_counter() - started}


def main() -> None:
    """Measure the problems asked for, then write table and figure of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--out", type=Path, default=Path("."), help="folder of precision.json, .md and .png")
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = options.out / "precision.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for name in options.problems:
        found[name] = measure(CASES[name])
        path.write_text(json.dumps(found, indent=1) + "\n")
    precision_report.write({name: found[name] for name in CASES if name in found}, options.out)


if __name__ == "__main__":
    main()
