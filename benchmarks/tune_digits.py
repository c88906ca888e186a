"""Tune the constant learning rate of the `digits` problem and show that its training ends in diffusion.

    OMP_NUM_THREADS=1 python benchmarks/tune_digits.py --out digits-tuning.md

It trains with plain SGD (momentum 0, constant rate) for the problem's epochs and a tenth more, since a study continues
the last checkpoint for that long. Every rate gets one seed, and those whose validation accuracy is within a percentage
point of the best get two more. The rate with the best validation accuracy, averaged over seeds and over all epochs from
three quarters of the training on, is chosen; rates within half a validation image of it count as equal, and the lowest
validation loss decides among them. The test split is reported and decides nothing. At the chosen rate, the tenth more
is then trained again at a tenth of the rate: by how much that lowers the loss shows the diffusion. Plain torch, one
thread.
"""

import argparse
import copy
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import torch
from torch import Tensor, nn

from latephase import problems
from latephase.problems.problem import Problem, Splits, is_weight
from latephase.problems.sampling import Stream, batches, generator

METRICS = ("train_loss", "train_accuracy", "valid_loss", "valid_accuracy", "test_loss", "test_accuracy")
CURVE = (5, 10, 20, 50, 100, 150, 200, 250, 300, 350, 400)


@dataclass
class Run:
    """One training: its evaluations by epoch, its model, and the seconds spent in SGD steps."""

    lr: float
    seed: int
    model: nn.Module
    rows: dict[int, dict[str, float]]
    seconds: float = 0.0
    checkpoint: nn.Module | None = None  # the model after the problem's epochs, before the tenth more

    def mean(self, metric: str, first: int, last: int) -> float:
        """Average of a metric over the epochs first, ..., last."""
        return fmean(self.rows[epoch][metric] for epoch in range(first, last + 1))


def decay_of(problem: Problem) -> float:
    """Return the L2 coefficient, which applies to the weights only."""
    return problem.weight_decay[0] if isinstance(problem.weight_decay, tuple) else problem.weight_decay


def train_epoch(problem: Problem, data: tuple[Tensor, Tensor], model: nn.Module, lr: float, seed: int, epoch: int):
    """Run one epoch of SGD. The optimizer's weight decay is the gradient of the L2 term."""
    groups = [
        {
            "params": [p for name, p in model.named_parameters() if is_weight(name, p)],
            "weight_decay": decay_of(problem),
        },
        {"params": [p for name, p in model.named_parameters() if not is_weight(name, p)]},
    ]
    optimizer = torch.optim.SGD(groups, lr=lr)
    noise = generator(Stream.AUGMENTATION, seed, epoch)
    assert problem.training.batch_size is not None
    for rows in batches(len(data[1]), problem.training.batch_size, seed, epoch):
        optimizer.zero_grad()
        inputs, targets = problem.batch(data, rows, noise)
        problem.loss(model(inputs), targets).backward()
        optimizer.step()


@torch.no_grad()
def evaluate(problem: Problem, splits: Splits, model: nn.Module) -> dict[str, float]:
    """Loss with the L2 term and accuracy over each whole split, without augmentation."""
    penalty = (
        0.5 * decay_of(problem) * sum(float((p * p).sum()) for n, p in model.named_parameters() if is_weight(n, p))
    )
    row = {"penalty": penalty}
    for name in ("train", "valid", "test"):
        inputs, targets = getattr(splits, name)
        outputs = model(inputs)
        row[f"{name}_loss"] = float(problem.loss(outputs, targets)) + penalty
        row[f"{name}_accuracy"] = float((outputs.argmax(1) == targets).float().mean())
    return row


def train(problem: Problem, splits: Splits, run: Run, lr: float, first: int, last: int, every_epoch_from: int) -> None:
    """Train a run over the epochs first + 1, ..., last and evaluate: at some epochs first, then at every one."""
    for epoch in range(first + 1, last + 1):
        start = time.perf_counter()
        train_epoch(problem, splits.train, run.model, lr, run.seed, epoch)
        run.seconds += time.perf_counter() - start
        if epoch in CURVE or epoch >= every_epoch_from:
            run.rows[epoch] = evaluate(problem, splits, run.model)


def percent(values: list[float]) -> str:
    """Format the mean and the standard deviation over seeds, as percentages."""
    spread = f" ± {100 * stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * fmean(values):.2f}{spread}"


def average(runs: list[Run], metric: str, window: tuple[int, int]) -> float:
    """Mean over seeds of the metric's mean over the window of epochs."""
    return fmean(run.mean(metric, *window) for run in runs)


def contenders(runs: dict[float, list[Run]], window: tuple[int, int]) -> list[float]:
    """Rates that deserve more seeds: validation accuracy within a percentage point of the best."""
    accuracy = {lr: average(group, "valid_accuracy", window) for lr, group in runs.items()}
    return [lr for lr in runs if accuracy[lr] >= max(accuracy.values()) - 0.01]


def choose(runs: dict[float, list[Run]], window: tuple[int, int], validation_size: int) -> float:
    """Pick the rate: best validation accuracy, ties within half an image go to the lowest validation loss."""
    accuracy = {lr: average(group, "valid_accuracy", window) for lr, group in runs.items()}
    ties = [lr for lr in runs if accuracy[lr] >= max(accuracy.values()) - 0.5 / validation_size]
    return min(ties, key=lambda lr: average(runs[lr], "valid_loss", window))


def rate_table(runs: dict[float, list[Run]], window: tuple[int, int]) -> list[str]:
    """One line per rate."""
    lines = [
        "| rate | seeds | validation accuracy (%) | its worst epoch | validation loss | training loss "
        "| test accuracy (%) | s per epoch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for lr, group in runs.items():
        accuracy = {
            part: percent([run.mean(f"{part}_accuracy", *window) for run in group]) for part in ("valid", "test")
        }
        worst = min(run.rows[epoch]["valid_accuracy"] for run in group for epoch in range(window[0], window[1] + 1))
        lines.append(
            f"| {lr:g} | {len(group)} | {accuracy['valid']} | {100 * worst:.2f} "
            f"| {average(group, 'valid_loss', window):.4f} | {average(group, 'train_loss', window):.4f} "
            f"| {accuracy['test']} | {fmean(run.seconds for run in group) / window[1]:.3f} |"
        )
    return lines


def curve_table(runs: list[Run], epochs: int) -> list[str]:
    """The chosen rate's learning curve, mean over seeds."""
    lines = ["| epoch | training loss | validation loss | validation accuracy (%) |", "|---|---|---|---|"]
    for epoch in sorted({*(e for e in CURVE if e <= epochs), epochs}):
        row = {metric: fmean(run.rows[epoch][metric] for run in runs) for metric in METRICS}
        lines.append(
            f"| {epoch} | {row['train_loss']:.4f} | {row['valid_loss']:.4f} | {100 * row['valid_accuracy']:.2f} |"
        )
    return lines


def slowed(problem: Problem, splits: Splits, run: Run, epochs: int) -> Run:
    """Train the tenth more again, from the checkpoint and at a tenth of the rate."""
    assert run.checkpoint is not None
    branch = Run(run.lr, run.seed, copy.deepcopy(run.checkpoint), {})
    train(problem, splits, branch, 0.1 * run.lr, epochs, epochs + epochs // 10, every_epoch_from=epochs)
    return branch


def summary(run: Run, window: range) -> dict[str, float]:
    """Average the metrics over a window; `spread` is the standard deviation of the validation loss over its epochs."""
    means = {metric: run.mean(metric, window[0], window[-1]) for metric in (*METRICS, "penalty")}
    return means | {"spread": stdev(run.rows[epoch]["valid_loss"] for epoch in window)}


def diffusion_table(problem: Problem, splits: Splits, runs: list[Run], epochs: int) -> list[str]:
    """Compare the last checkpoint with a tenth more training at the rate and at a tenth of the rate."""
    last = epochs + epochs // 10
    window = range(last - max(2, epochs // 40) + 1, last + 1)
    states = {
        "last checkpoint": [run.rows[epochs] for run in runs],
        "continued at the rate": [summary(run, window) for run in runs],
        "continued at rate / 10": [summary(slowed(problem, splits, run, epochs), window) for run in runs],
    }
    lines = [
        "| | training loss | validation loss | its sd over epochs | test loss | L2 term | validation accuracy (%) "
        "| test accuracy (%) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for label, rows in states.items():
        mean = {metric: fmean(row[metric] for row in rows) for metric in (*METRICS, "penalty")}
        spread = f"{fmean(row['spread'] for row in rows):.4f}" if "spread" in rows[0] else ""
        lines.append(
            f"| {label} | {mean['train_loss']:.4f} | {mean['valid_loss']:.4f} | {spread} | {mean['test_loss']:.4f} "
            f"| {mean['penalty']:.4f} | {100 * mean['valid_accuracy']:.2f} | {100 * mean['test_accuracy']:.2f} |"
        )
    lines += [
        "",
        "| loss at rate / 10 lower, in percent, than | | training | validation | test |",
        "|---|---|---|---|---|",
    ]
    slow = states.pop("continued at rate / 10")
    for label, rows in states.items():
        for kind, share in (("loss", 0.0), ("cross-entropy", 1.0)):
            cells = []
            for part in ("train", "valid", "test"):
                pairs = [
                    (a[f"{part}_loss"] - share * a["penalty"], b[f"{part}_loss"] - share * b["penalty"])
                    for a, b in zip(slow, rows, strict=True)
                ]
                cells.append(percent([1 - low / high for low, high in pairs]))
            lines.append(f"| {label} | {kind} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Run the grid and write the tables."""
    epochs = problems.get("digits").training.epochs
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6])
    parser.add_argument("--seeds", type=int, nargs=2, default=[1, 2], help="for all rates, then more for the best")
    parser.add_argument("--epochs", type=int, default=epochs, help="at least 20")
    parser.add_argument("--out", type=Path, default=None, help="file for the tables; standard output if not given")
    options = parser.parse_args()
    torch.set_num_threads(1)
    problem = problems.get("digits")
    splits = problem.load()
    total = options.epochs + options.epochs // 10
    window = (options.epochs - options.epochs // 4, total)
    runs: dict[float, list[Run]] = {lr: [] for lr in options.rates}
    for more in options.seeds:
        for lr in contenders(runs, window) if all(runs.values()) else options.rates:
            for seed in range(len(runs[lr]), len(runs[lr]) + more):
                torch.manual_seed(seed)
                run = Run(lr, seed, problem.model(), {})
                train(problem, splits, run, lr, 0, options.epochs, every_epoch_from=window[0])
                run.checkpoint = copy.deepcopy(run.model)
                train(problem, splits, run, lr, options.epochs, total, every_epoch_from=window[0])
                runs[lr].append(run)
                metrics = {metric: round(run.mean(metric, *window), 4) for metric in METRICS}
                print(f"rate {lr:g} seed {seed}: {run.seconds:.1f} s {metrics}", flush=True)
    chosen = choose(runs, window, len(splits.valid[1]))
    lines = [*rate_table(runs, window), "", f"Chosen rate: {chosen:g}.", ""]
    lines += [*curve_table(runs[chosen], options.epochs), ""]
    lines += diffusion_table(problem, splits, runs[chosen], options.epochs)
    text = "\n".join(lines) + "\n"
    if options.out is None:
        print(text)
    else:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
