"""A study's result files, written by hand with known answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latephase.study.report import write_report

BUDGET = 2.0
STRATEGIES = (
    ("constant", "sgd", "SGD, constant"),
    ("cosine", "sgd", "SGD, cosine"),
    ("hf-64", "hessian_free", "HF, m = 64"),
)
START = {10: (1.0, 1.2, 0.5), 20: (0.8, 1.0, 0.6)}  # train loss, test loss, test accuracy of the checkpoints
# Best train loss, test loss and test accuracy of seeds 0, 1, 2: at epoch 10 cosine leads, at epoch 20 Hessian-free
# does.
BEST = {
    (10, "constant"): [(0.90, 1.10, 0.55), (0.92, 1.12, 0.56), (0.94, 1.14, 0.57)],
    (10, "cosine"): [(0.50, 0.70, 0.70), (0.52, 0.72, 0.71), (0.54, 0.74, 0.72)],
    (10, "hf-64"): [(0.60, 0.80, 0.65), (0.61, 0.81, 0.66), (0.62, 0.82, 0.67)],
    (20, "constant"): [(0.80, 1.00, 0.60), (0.80, 1.00, 0.60), (0.80, 1.00, 0.60)],
    (20, "cosine"): [(0.40, 0.62, 0.79), (0.42, 0.63, 0.80), (0.44, 0.64, 0.81)],
    (20, "hf-64"): [(0.39, 0.50, 0.85), (0.41, 0.51, 0.86), (0.43, 0.52, 0.87)],
}
LEARNING_RATES = {"constant": (0.1, 0.1, 0.1), "cosine": (0.1, 0.05, 0.0), "hf-64": (None, None, None)}


def metrics(values: tuple[float, float, float]) -> dict[str, float]:
    train_loss, test_loss, test_accuracy = values
    return {
        "train_loss": train_loss,
        "train_accuracy": test_accuracy,
        "valid_loss": test_loss,
        "valid_accuracy": test_accuracy,
        "test_loss": test_loss,
        "test_accuracy": test_accuracy,
        "l2_term": train_loss / 4,
    }


def null_metrics() -> dict[str, None]:
    return dict.fromkeys(metrics((0.0, 0.0, 0.0)))


def write_journal(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [{"event": "start", "attempt": 1}, *rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")


def evaluation(seconds: float, step: int, lr: float | None, values: dict[str, Any]) -> dict[str, Any]:
    return {"event": "evaluation", "seconds": seconds, "step": step, "lr": lr, **values}


def run_rows(epoch: int, strategy: str, seed: int) -> list[dict[str, Any]]:
    """Start, best halfway, a little worse at the end; Hessian-free with two steps, of which the second is rejected."""
    best = BEST[epoch, strategy][seed]
    end = (best[0] + 0.01, best[1] + 0.01, best[2] - 0.01)
    lr = LEARNING_RATES[strategy]
    rows = [evaluation(0.0, 0, lr[0], metrics(START[epoch]))]
    if strategy.startswith("hf"):
        step = {"event": "step", "step": 1, "seconds": 0.5, "accepted": True, "damping": 1.0}
        rows.append({**step, "cg_iterations": [5, 9], "cg_status": ["progress", "max_iterations"]})
    rows.append(evaluation(1.0, 5, lr[1], metrics(best)))
    if strategy.startswith("hf"):
        step = {"event": "step", "step": 2, "seconds": 1.5, "accepted": False, "damping": 1.5}
        rows.append({**step, "cg_iterations": [20, 3], "cg_status": ["progress", "progress"]})
    rows.append(evaluation(BUDGET, 10, lr[2], metrics(end)))
    return rows


def write_plan(root: Path) -> None:
    text = f"""name = "known"
description = "A study with known answers & <angles>."
problem = "toy"
seeds = [0, 1, 2]
jobs = 1
threads = 1
budget_share = 0.1
evaluations = 3
checkpoints = {list(START)}

[training]
epochs = 20
lr = 0.1
batch_size = 32
seed = 0
save_every = 10
"""
    for name, kind, label in STRATEGIES:
        text += f'\n[[strategies]]\nname = "{name}"\nkind = "{kind}"\nlabel = "{label}"\noptions = {{ size = 64 }}\n'
    (root / "study.toml").write_text(text, encoding="utf-8")


def write_training(root: Path) -> None:
    rows = []
    for epoch in range(21):
        values = START.get(epoch, (2.0 - epoch / 20, 2.2 - epoch / 20, 0.1 + epoch / 50))
        rows.append({"event": "evaluation", "epoch": epoch, "seconds": float(epoch), "step": 4 * epoch, "lr": 0.1})
        rows[-1] |= metrics(values)
    write_journal(root / "training" / "rows.jsonl", rows)
    status = {"status": "finished", "seconds": 20.0, "epochs": 20, "steps": 80, "lr": 0.1, "batch_size": 32}
    status["checkpoint_epochs"] = [5, 10, 15, 20]
    (root / "training" / "status.json").write_text(json.dumps(status), encoding="utf-8")


def write_run(
    root: Path, epoch: int, strategy: str, seed: int, rows: list[dict[str, Any]], status: dict[str, Any]
) -> None:
    folder = root / "runs" / f"checkpoint-{epoch:04d}_{strategy}_seed-{seed}"
    write_journal(folder / "rows.jsonl", rows)
    run = {"run_id": folder.name, "problem": "toy", "checkpoint_epoch": epoch, "strategy": strategy, "seed": seed}
    (folder / "run.json").write_text(json.dumps({**run, "budget_seconds": BUDGET}), encoding="utf-8")
    (folder / "status.json").write_text(json.dumps(status), encoding="utf-8")


def write_files(root: Path, skip: tuple[tuple[int, str, int], ...] = ()) -> Path:
    root.mkdir()
    write_plan(root)
    write_training(root)
    environment = {"device": "cpu", "cpu": "A processor", "cores": 2, "threads": 1, "jobs": 2, "git_commit": "abc"}
    (root / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    for (epoch, strategy), seeds in BEST.items():
        for seed in range(len(seeds)):
            status = {"status": "finished", "seconds": 2.25, "overshoot_seconds": 0.25, "steps": 11}
            status["warmup_seconds"] = 0.5
            if (epoch, strategy, seed) not in skip:
                write_run(root, epoch, strategy, seed, run_rows(epoch, strategy, seed), status)
    return root


@pytest.fixture
def write_study(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes the study; ``skip`` names runs (epoch, strategy, seed) that have not started."""

    def write(skip: tuple[tuple[int, str, int], ...] = ()) -> Path:
        return write_files(tmp_path / "study", skip)

    return write


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study with its report written, to be read only: drawing takes seconds."""
    root = write_files(tmp_path_factory.mktemp("reported") / "study")
    write_report(root)
    return root


@pytest.fixture
def break_run() -> Callable[[Path], None]:
    """A function that makes two runs go wrong: one diverges, one fails after its first evaluation."""

    def change(root: Path) -> None:
        rows = run_rows(10, "hf-64", 1)
        rows[-1] = evaluation(BUDGET, 10, None, null_metrics())
        write_run(root, 10, "hf-64", 1, rows, {"status": "finished", "seconds": 2.0, "steps": 2})
        rows = run_rows(10, "cosine", 2)[:2]
        write_run(root, 10, "cosine", 2, rows, {"status": "failed", "error": "ValueError: <script>alert(1)</script>"})

    return change
