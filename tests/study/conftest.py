"""A study's result files, written by hand with known answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latephase.study.page.page import write_report

BUDGET = 2.0
STRATEGIES = (
    ("constant", "first_order", "SGD, constant"),
    ("cosine", "first_order", "SGD, cosine"),
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
LEARNING_RATES = {"constant": (0.1, 0.1, 0.1), "cosine": (0.1, 0.05, 0.0), "hf-64": (1.0, 1.0, 0.5)}


def metrics(values: tuple[float, float, float], metric: str = "accuracy") -> dict[str, float]:
    train_loss, test_loss, test_metric = values
    return {
        "train_loss": train_loss,
        f"train_{metric}": test_metric,
        "valid_loss": test_loss,
        f"valid_{metric}": test_metric,
        "test_loss": test_loss,
        f"test_{metric}": test_metric,
        "l2_term": train_loss / 4,
    }


def null_metrics() -> dict[str, None]:
    return dict.fromkeys(metrics((0.0, 0.0, 0.0)))


def write_journal(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [{"event": "start", "attempt": 1}, *rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")


def evaluation(spent: float, step: int, lr: float | None, values: dict[str, Any]) -> dict[str, Any]:
    return {"event": "evaluation", "spent": spent, "step": step, "lr": lr, **values}


def run_rows(epoch: int, strategy: str, seed: int, metric: str = "accuracy") -> list[dict[str, Any]]:
    """Start, best halfway, a little worse at the end; Hessian-free with two steps, of which the second is rejected."""
    best = BEST[epoch, strategy][seed]
    end = (best[0] + 0.01, best[1] + 0.01, best[2] - 0.01)
    lr = LEARNING_RATES[strategy]
    rows = [evaluation(0.0, 0, lr[0], metrics(START[epoch], metric))]
    losses = {"evaluation_loss": START[epoch][0], "new_evaluation_loss": best[0]}
    if strategy.startswith("hf"):
        step = {"event": "step", "step": 1, "spent": 0.5, "accepted": True, "damping": 1.0, **losses}
        rows.append({**step, "cg_iterations": [5, 9], "cg_status": ["progress", "max_iterations"]})
    rows.append(evaluation(1.0, 5, lr[1], metrics(best, metric)))
    if strategy.startswith("hf"):
        step = {"event": "step", "step": 2, "spent": 1.5, "accepted": False, "damping": 1.5, **losses}
        rows.append({**step, "cg_iterations": [20, 3], "cg_status": ["progress", "progress"]})
    rows.append(evaluation(BUDGET, 10, lr[2], metrics(end, metric)))
    if strategy.startswith("hf"):  # ended after the budget
        rows.append({"event": "step", "step": 3, "spent": 2.25, "accepted": True, "damping": 9.0, **losses})
    return rows


def write_plan(root: Path, unit: str, scale: float) -> None:
    text = f"""name = "known"
description = "A study with known answers & <angles>."
problem = "toy"
problem_version = 3
seeds = [0, 1, 2]
jobs = 1
threads = 1
evaluations = 2
checkpoints = {list(START)}
baseline = "constant"
target = "cosine"
scale = {scale}

[budget]
unit = "{unit}"
share = 0.1

[training]
epochs = 20
lr = 0.1
batch_size = 32
optimizer = "sgd"
seed = 0
save_every = 10
evaluate_every = 1
"""
    for name, kind, label in STRATEGIES:
        text += f'\n[[strategies]]\nname = "{name}"\nkind = "{kind}"\nlabel = "{label}"\noptions = {{ size = 64 }}\n'
    (root / "study.toml").write_text(text, encoding="utf-8")


def write_training(root: Path, metric: str) -> None:
    rows = []
    for epoch in range(21):
        values = START.get(epoch, (2.0 - epoch / 20, 2.2 - epoch / 20, 0.1 + epoch / 50))
        rows.append({"event": "evaluation", "epoch": epoch, "seconds": float(epoch), "step": 4 * epoch, "lr": 0.1})
        rows[-1] |= metrics(values, metric)
    write_journal(root / "training" / "rows.jsonl", rows)
    status = {"status": "finished", "seconds": 20.0, "epochs": 20, "steps": 20, "gradients": 20, "lr": 0.1}
    status |= {"batch_size": 32, "checkpoint_epochs": [5, 10, 15, 20]}
    (root / "training" / "status.json").write_text(json.dumps(status), encoding="utf-8")


def write_run(
    root: Path,
    epoch: int,
    strategy: str,
    seed: int,
    rows: list[dict[str, Any]],
    status: dict[str, Any],
    unit: str = "seconds",
) -> None:
    folder = root / "runs" / f"checkpoint-{epoch:04d}_{strategy}_seed-{seed}"
    write_journal(folder / "rows.jsonl", rows)
    evaluations = [row for row in rows if row["event"] == "evaluation"]
    clock = [
        {"event": "clock", "spent": r["spent"], "step": r["step"], "scored_seconds": 1.5 * r["spent"]}
        | {"evaluation_seconds": 0.1}
        for r in evaluations
    ]
    write_journal(folder / "clocks.jsonl", clock)
    run = {"run_id": folder.name, "identity": "abc", "problem": "toy", "checkpoint_epoch": epoch, "strategy": strategy}
    run |= {"seed": seed, "unit": unit, "budget": BUDGET}
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    (folder / "status.json").write_text(json.dumps(status), encoding="utf-8")


FINISHED = {
    "status": "finished",
    "steps": 11,
    "samples": 352,
    "gradients": 11,
    "products": 7,
    "scored_seconds": 2.25,
    "cold_seconds": 3.25,
    "warmup_seconds": 0.5,
    "evaluation_seconds": 0.3,
    "overshoot": 0.25,
    "spent": 2.25,
}


def write_files(
    root: Path,
    skip: tuple[tuple[int, str, int], ...] = (),
    unit: str = "seconds",
    scale: float = 1.0,
    metric: str = "accuracy",
) -> Path:
    root.mkdir()
    write_plan(root, unit, scale)
    write_training(root, metric)
    environment = {"device": "cpu", "cpu": "A processor", "cores": 2, "threads": 1, "jobs": 2, "git_commit": "abc"}
    (root / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    problem = {
        "name": "toy",
        "version": 3,
        "options": {},
        "title": "A toy",
        "description": "Known.",
        "parameters": 1234,
    }
    problem["metrics"] = [{"name": metric, "higher_is_better": metric == "accuracy", "on_train": True}]
    problem["rows"] = {"train": 640, "valid": 64, "test": 128}
    (root / "problem.json").write_text(json.dumps(problem), encoding="utf-8")
    for (epoch, strategy), seeds in BEST.items():
        for seed in range(len(seeds)):
            if (epoch, strategy, seed) not in skip:
                write_run(root, epoch, strategy, seed, run_rows(epoch, strategy, seed, metric), FINISHED, unit)
    return root


@pytest.fixture
def write_study(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes the study; ``skip`` names runs (epoch, strategy, seed) that have not started."""

    def write(skip: tuple[tuple[int, str, int], ...] = (), name: str = "study", **changes: Any) -> Path:
        return write_files(tmp_path / name, skip, **changes)

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
        rows[-2] = evaluation(BUDGET, 10, None, null_metrics())
        write_run(root, 10, "hf-64", 1, rows, {"status": "finished", "scored_seconds": 2.0, "steps": 2})
        rows = run_rows(10, "cosine", 2)[:2]
        write_run(root, 10, "cosine", 2, rows, {"status": "failed", "error": "ValueError: <script>alert(1)</script>"})

    return change


@pytest.fixture
def judge_both_ways() -> Callable[[Path], None]:
    """A function that turns the cosine strategy into Hessian-free steps that are judged on their own batch."""

    def change(root: Path) -> None:
        text = (root / "study.toml").read_text(encoding="utf-8")
        before, name, after = text.partition('name = "cosine"\nkind = "first_order"\nlabel = "SGD, cosine"\n')
        assert name
        changed = 'name = "cosine"\nkind = "hessian_free"\nlabel = "HF, own batch"\nevaluation_batch_size = 0\n'
        (root / "study.toml").write_text(before + changed + after, encoding="utf-8")
        for epoch in START:
            for seed in range(3):
                write_run(root, epoch, "cosine", seed, run_rows(epoch, "hf-64", seed), FINISHED)

    return change
