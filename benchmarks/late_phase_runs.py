"""Checkpoints and single runs of `late_phase.py`."""

import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from late_phase_problems import CHECKPOINTS, HELD_OUT, data_of, l2_term, measure, problem_named
from torch import Tensor, nn

from latephase import CG, GGN, HessianFree, LevenbergMarquardt, Objective
from latephase.problems.problem import Problem, is_weight
from latephase.problems.sampling import Stream, batches, draw, generator
from latephase.study.performing.checkpoint import load_checkpoint, save_checkpoint

GRADIENTS = 3
PLACES = {
    "cg_max_iter": ("solver", "max_iter"),
    "cg_decay_x0": ("solver", "warm_start"),
    "preconditioner": ("solver", "preconditioner"),
    "curvature_dtype": ("curvature", "dtype"),
    "damping_factors": ("damping", "factors"),
    "damping_thresholds": ("damping", "thresholds"),
    "ratio_data": ("damping", "data"),
}
"""Factors of the records that are fields of parts: option and field."""

Setting = dict[str, Any]


class Stopwatch:
    """CPU seconds of this process inside `with stopwatch:`."""

    def __init__(self):
        self.seconds = 0.0

    def __enter__(self) -> "Stopwatch":
        self._started = time.process_time()
        return self

    def __exit__(self, *exception: object) -> None:
        self.seconds += time.process_time() - self._started


def sgd_of(problem: Problem, model: nn.Module) -> torch.optim.SGD:
    """SGD at the problem's constant rate, with the L2 term on the weights."""
    assert isinstance(problem.weight_decay, tuple)
    decay = problem.weight_decay[0]
    named = list(model.named_parameters())
    groups = [
        {"params": [p for key, p in named if is_weight(key, p)], "weight_decay": decay},
        {"params": [p for key, p in named if not is_weight(key, p)], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=problem.training.lr)


def mini_batches(problem: Problem, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of SGD from an epoch on, without end."""
    inputs, targets = data_of(problem.name).train
    size = problem.training.batch_size or len(targets)
    while True:
        random = generator(Stream.AUGMENTATION, seed, epoch)
        for rows in batches(len(targets), size, seed, epoch):
            yield problem.batch((inputs, targets), rows, random)
        epoch += 1


def sgd_step(problem: Problem, model: nn.Module, optimizer: torch.optim.SGD, batch: tuple[Tensor, Tensor]) -> None:
    """One step as anyone writes it by hand, without this package."""
    optimizer.zero_grad()
    problem.loss(model(batch[0]), batch[1]).backward()
    optimizer.step()


def checkpoint_path(work: Path, name: str, epoch: int) -> Path:
    """Where a checkpoint lies."""
    return work / f"{name}-{epoch}.pt"


def make_checkpoints(work: Path, name: str) -> list[dict[str, float]] | None:
    """Train by SGD and save the checkpoints; the epochs' losses, or None where they are there already."""
    if all(checkpoint_path(work, name, epoch).exists() for epoch in CHECKPOINTS[name]):
        return None
    problem, clock, rows = problem_named(name), Stopwatch(), []
    torch.manual_seed(0)
    model = problem.model()
    optimizer, source = sgd_of(problem, model), mini_batches(problem, 0, 1)
    steps = len(data_of(name).train[1]) // (problem.training.batch_size or 1)
    for epoch in range(1, problem.training.epochs + 1):
        with clock:
            for _ in range(steps):
                sgd_step(problem, model, optimizer, next(source))
        if epoch % max(1, problem.training.epochs // 20) == 0:
            part = measure(problem, model, "train", HELD_OUT)["loss"]
            held_out = measure(problem, model, "valid")["loss"]
            rows.append({"epoch": epoch, "seconds": clock.seconds, "train": part, "held_out": held_out})
            print(
                f"{name}, epoch {epoch}, {clock.seconds:.1f} s: training {part:.4f}, held out {held_out:.4f}",
                flush=True,
            )
        if epoch in CHECKPOINTS[name]:
            save_checkpoint(checkpoint_path(work, name, epoch), model.state_dict())
    return rows


@dataclass
class Step:
    """What there is to log of a Hessian-free step."""

    seconds: float
    report: dict[str, Any]


class Schedule:
    """SGD from the checkpoint under a learning-rate schedule over the budget."""

    def __init__(self, problem: Problem, model: nn.Module, setting: Setting, epoch: int, seed: int):
        self.problem, self.model, self.kind = problem, model, setting["schedule"]
        self.optimizer = sgd_of(problem, model)
        self.source = mini_batches(problem, seed, epoch + 1)
        self.lr = problem.training.lr / (10 if self.kind == "tenth" else 1)

    def step(self, share: float) -> None:
        """One step, a share of the budget being spent."""
        lr = self.lr * (0.5 * (1 + math.cos(math.pi * min(share, 1.0))) if self.kind == "cosine" else 1)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        sgd_step(self.problem, self.model, self.optimizer, next(self.source))


class Newton:
    """Hessian-free steps from the checkpoint, on fresh disjoint rows at every step."""

    def __init__(self, problem: Problem, model: nn.Module, setting: Setting, seed: int):
        self.problem, self.model, self.setting, self.seed = problem, model, setting, seed
        self.optimizer = HessianFree(model.parameters(), **options_of(setting))
        self.steps: list[Step] = []
        self.count = 0

    def objectives(self) -> tuple[Objective, Objective, Objective | None]:
        """Objective, evaluation objective, and that of the curvature where it is another."""
        inputs, targets = data_of(self.problem.name).train
        sizes = (self.setting["batch"], self.setting["evaluation"])
        self.count += 1
        random = generator(Stream.AUGMENTATION, self.seed, self.count)
        whole, other = (
            self._objective(*self.problem.batch((inputs, targets), rows, random))
            for rows in draw(len(targets), sizes, self.seed, self.count)
        )
        share = self.setting["curvature"]
        return whole, other, None if share == 1 else whole.split(max(1, round(share * sizes[0])))[0]

    def _objective(self, inputs: Tensor, targets: Tensor) -> Objective:
        return Objective(self.model, self.problem.loss, (inputs, targets), weight_decay=self.problem.weight_decay)

    def step(self, share: float) -> None:
        """One step; what it did is logged."""
        started = time.process_time()
        self.optimizer.step(*self.objectives())
        assert self.optimizer.report is not None
        self.steps.append(Step(time.process_time() - started, self.optimizer.report.as_dict()))

    def log(self) -> dict[str, Any]:
        """What the steps did, in short."""
        reports = [step.report for step in self.steps]
        return {
            "steps": len(self.steps),
            "step_seconds": statistics.median(step.seconds for step in self.steps),
            "taken": sum(report["accepted"] for report in reports),
            "cg_iterations": [report["cg_iterations"][0] for report in reports],
            "damping": [float(f"{report['damping']:.4g}") for report in reports],
            "ratio": [round(report["reduction_ratio"], 3) for report in reports],
            "lr": [report["lr"] for report in reports],
            "method": reports[-1]["method"],
        }


def options_of(setting: Setting) -> dict[str, Any]:
    """The optimizer's options, of a setting's factors."""
    factors = dict(setting["options"])
    fixed = not factors.pop("adapt_damping", True)
    tables: dict[str, dict[str, Any]] = {"damping": {"initial": factors.pop("damping", 1.0)}}
    for factor, (option, field) in PLACES.items():
        if factor in factors:
            tables.setdefault(option, {})[field] = factors.pop(factor)
    if fixed:
        tables["damping"] = {"kind": "fixed", "value": tables["damping"]["initial"]}
    return {**factors, **tables}


def default_of(factor: str) -> Any:
    """What a factor is where a setting does not name it."""
    if factor in PLACES:
        option, field = PLACES[factor]
        return getattr({"solver": CG(), "damping": LevenbergMarquardt(), "curvature": GGN()}[option], field)
    return {"damping": 1.0, "adapt_damping": True, "lr": 1.0, "line_search": True, "debias": False}[factor]


def gradient_seconds(problem: Problem, model: nn.Module, rows: int) -> float:
    """CPU seconds of loss and gradient of a batch, written by hand, on one thread: median of a few."""
    inputs, targets = (part[:rows] for part in data_of(problem.name).train)
    found = []
    for _ in range(GRADIENTS + 1):
        started = time.process_time()
        torch.autograd.grad(problem.loss(model(inputs), targets), list(model.parameters()))
        found.append(time.process_time() - started)
    return statistics.median(found[1:])


def warm_up(problem: Problem, model: nn.Module, setting: Setting, seed: int) -> float:
    """Two steps that are forgotten, so that traces are there; their CPU seconds."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    started = time.process_time()
    cap = min(3, setting["options"].get("cg_max_iter", 3))
    steps = Newton(problem, model, {**setting, "options": {**setting["options"], "cg_max_iter": cap}}, seed + 1000)
    for _ in range(2):
        steps.step(0.0)
    model.load_state_dict(state)
    return time.process_time() - started


def run(work: Path, name: str, epoch: int, setting: Setting, seed: int, budget: float, marks: int) -> dict[str, Any]:
    """Go on from a checkpoint for a budget of CPU seconds; warm-up and `marks` evaluations are off the clock.

    A step is begun while the budget lasts, so the last one may end after it; curves and decreases have the seconds that
    were used.
    """
    problem = problem_named(name)
    model = problem.model()
    model.load_state_dict(load_checkpoint(checkpoint_path(work, name, epoch)))
    torch.manual_seed(seed)
    record: dict[str, Any] = {"gradient_seconds": gradient_seconds(problem, model, setting.get("batch", 64))}
    if "schedule" in setting:
        strategy = Schedule(problem, model, setting, epoch, seed)
    else:
        record["warm_up_seconds"] = warm_up(problem, model, setting, seed)
        strategy = Newton(problem, model, setting, seed)
    curve = [[0.0, measure(problem, model, "valid")["loss"]]]
    clock = Stopwatch()
    while clock.seconds < budget:
        with clock:
            strategy.step(clock.seconds / budget)
        if clock.seconds >= len(curve) * budget / marks:
            curve.append([clock.seconds, measure(problem, model, "valid")["loss"]])
    ends = {split: measure(problem, model, split) for split in ("valid", "test")}
    ends["train"] = measure(problem, model, "train", HELD_OUT)
    log = strategy.log() if isinstance(strategy, Newton) else {}
    return {**record, **log, "seconds": clock.seconds, "curve": curve, "l2": l2_term(problem, model), **ends}
