"""The first-order training of a study: SGD at the problem's constant rate, with equally spaced checkpoints."""

import copy
from pathlib import Path
from typing import Any

import torch

from ..problems import Problem, Splits, get
from .checkpoint import checkpoint_path, load_checkpoint, save_checkpoint
from .clock import Clock
from .config import Study
from .evaluate import Evaluator
from .store import Journal, read_journal, read_json, write_json
from .strategies import epochs_of_batches

WARM_UP_STEPS = 5


def train(directory: Path, study: Study) -> float:
    """Train, or go on from the last checkpoint of a training that was stopped.

    The clock runs during steps, data selection included, and stands still during evaluation and saving. A few steps on
    a throw-away copy come first, untimed.

    Args:
        directory: the study's folder.
        study: the study.

    Returns:
        Seconds of the whole training on the clock.
    """
    folder = directory / "training"
    status = read_json(folder / "status.json") or {}
    if status.get("status") == "finished":
        return status["seconds"]
    run = _Training(directory, study)
    run.warm_up()
    try:
        for epoch in range(run.epoch + 1, study.training.epochs + 1):
            run.train_epoch(epoch)
    finally:
        run.journal.close()
    write_json(
        folder / "status.json",
        {
            "status": "finished",
            "seconds": run.clock.seconds,
            "epochs": study.training.epochs,
            "steps": run.steps,
            "lr": study.training.lr,
            "batch_size": study.training.batch_size,
            "checkpoint_epochs": list(range(study.training.save_every, run.epoch + 1, study.training.save_every)),
        },
    )
    return run.clock.seconds


class _Training:
    """The state of a training: model, optimizer, clock, journal."""

    def __init__(self, directory: Path, study: Study):
        self.directory, self.study, self.setting = directory, study, study.training
        self.problem: Problem = get(study.problem)
        self.splits: Splits = self.problem.load()
        torch.manual_seed(self.setting.seed)
        self.model = self.problem.model().train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=self.setting.lr)
        self.evaluate = Evaluator(self.problem, self.model, self.splits)
        self.epoch, self.steps, self.clock = 0, 0, Clock()
        path = directory / "training" / "rows.jsonl"
        rows = [row for row in read_journal(path) if row["event"] == "evaluation"]
        self._resume(rows)
        self.journal = Journal(path)
        for row in rows:  # an attempt's rows are whole, so the ones that still hold are said again
            if row["epoch"] <= self.epoch:
                self.journal.write(**row)
        if not any(row["epoch"] == 0 for row in rows):
            self._log()

    def _resume(self, rows: list[dict[str, Any]]) -> None:
        """Load the last checkpoint up to which the journal is complete."""
        logged = {row["epoch"] for row in rows}
        for epoch in range(self.setting.epochs, 0, -self.setting.save_every):
            path = checkpoint_path(self.directory, epoch)
            if path.exists() and epoch in logged:
                state = load_checkpoint(path)
                self.model.load_state_dict(state["model"])
                self.optimizer.load_state_dict(state["optimizer"])
                torch.set_rng_state(state["rng"])
                self.epoch, self.steps, self.clock = epoch, state["steps"], Clock(seconds=state["seconds"])
                return

    def warm_up(self) -> None:
        """Take a few steps on a copy and forget them; torch's generator is put back."""
        model = copy.deepcopy(self.model)
        optimizer = torch.optim.SGD(model.parameters(), lr=self.setting.lr)
        objectives = self._objectives(model, self.epoch + 1)
        with torch.random.fork_rng(devices=[]):
            for _ in range(WARM_UP_STEPS):
                optimizer.step(next(objectives)[0])

    def _objectives(self, model: torch.nn.Module, epoch: int):
        return epochs_of_batches(self.problem, model, self.splits, self.setting.batch_size, self.setting.seed, epoch)

    def train_epoch(self, epoch: int) -> None:
        """One epoch, then what is due after it: an evaluation, a checkpoint."""
        objectives = self._objectives(self.model, epoch)
        last = False
        while not last:
            with self.clock:
                objective, last = next(objectives)
                self.optimizer.step(objective)
            self.steps += 1
        self.epoch = epoch
        if epoch % self.setting.evaluate_every == 0:
            self._log()
        if epoch % self.setting.save_every == 0:
            state = {
                "epoch": epoch,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "rng": torch.get_rng_state(),
                "steps": self.steps,
                "seconds": self.clock.seconds,
            }
            save_checkpoint(checkpoint_path(self.directory, epoch), state)

    def _log(self) -> None:
        self.journal.write(
            "evaluation",
            epoch=self.epoch,
            seconds=self.clock.seconds,
            step=self.steps,
            lr=self.setting.lr,
            **self.evaluate(self.model.state_dict()),
        )
