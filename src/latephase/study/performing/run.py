"""One run: a strategy from a checkpoint with a seed, under the budget."""

from pathlib import Path
from typing import Any

import torch

from ...problems import Problem
from ...records import (
    DamagedFile,
    checksum,
    set_aside,
    set_aside_unless_file,
    using,
    write_json,
)
from ..results import JOURNALS, RECORDS, read_sealed_attempt, wrong_folder
from ..strategies import copied
from .active_run import ActiveRun
from .checkpoint import checkpoint_path, load_checkpoint
from .evaluate import Evaluator
from .identity import training_identity
from .runs import Conditions, RunKey


def make_way(folder: Path) -> None:
    """Set aside what a run that is to begin could not go on from: damaged journals, and what is no file."""
    if wrong_folder(folder):
        set_aside(folder)
    for name in (*RECORDS, "environment.json", "error.txt", "warnings.txt"):
        set_aside_unless_file(folder / name)
    for name in JOURNALS:
        try:
            read_sealed_attempt(folder / name, sealed=True)
        except DamagedFile:
            set_aside(folder / name)


def perform_run(conditions: Conditions, key: RunKey) -> str:
    """Perform a run and write its folder; an error ends this run only.

    Args:
        conditions: what the runs share.
        key: which run.

    Returns:
        "finished" or "failed".

    Raises:
        OSError: a file of the run cannot be written, or the disk is full; the run is retried when the study goes on.
    """
    folder = conditions.directory / "runs" / key.run_id
    strategy = key.strategy
    make_way(folder)
    what = {
        "run_id": key.run_id,
        "identity": conditions.identity(key),
        "problem": conditions.study.problem,
        "checkpoint_epoch": key.checkpoint_epoch,
        "strategy": strategy.name,
        "kind": strategy.kind,
        "label": strategy.label,
        "seed": key.seed,
        "unit": conditions.study.budget.unit,
        "budget": conditions.budget,
    }
    write_json(folder / "run.json", what)
    write_json(folder / "environment.json", conditions.environment)
    write_json(folder / "status.json", {"status": "running"})
    for name in ("error.txt", "warnings.txt"):
        with using(folder / name):
            (folder / name).unlink(missing_ok=True)
    count = conditions.study.evaluations
    run = ActiveRun(
        conditions,
        key,
        data=lambda problem: problem.load(),
        start=lambda problem: _checkpoint(conditions, key, problem),
        evaluator=Evaluator,
        due=[conditions.budget * i / count for i in range(count + 1)],
    )
    ended, error = run.perform()
    record = {"status": ended} | ({"error": error} if error else {})
    write_json(folder / "status.json", record | {"run": checksum(what)} | run.record())
    return ended


def _checkpoint(conditions: Conditions, key: RunKey, problem: Problem) -> dict[str, Any]:
    """What a run's strategy starts from: the checkpoint, or weights of the seed's own."""
    if conditions.study.fresh_weights and key.checkpoint_epoch == 0:
        return fresh_start(problem, key.seed)
    identity = training_identity(conditions.study, conditions.code)
    path = checkpoint_path(conditions.directory, key.checkpoint_epoch)
    with using(path):  # the folder may have been moved
        return load_checkpoint(path, identity, key.checkpoint_epoch)


def fresh_start(problem: Problem, seed: int) -> dict[str, Any]:
    """A checkpoint at epoch 0 with fresh weights, drawn by the seed."""
    torch.manual_seed(seed)
    return {"epoch": 0, "steps": 0, "model": copied(problem.model().state_dict()), "optimizer": None}
