"""The first-order training of a study: the problem's setting, with checkpoints that the strategies start from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...problems import Problem, Splits, get
from ...problems.problem import row_count, start_optimizer
from ...records import DamagedFile, Journal, set_aside, write_json
from ..config import Study
from ..results import lost_rows, read_training_rows, read_training_status, wrong_folder
from ..strategies import StrategyContext, epochs_of_batches
from .checkpoint import checkpoint_path, load_checkpoint, random_states, restore_random_states, save_checkpoint
from .clock import Clock
from .evaluate import Evaluator
from .identity import training_identity

WARM_UP_STEPS = 5


def latest_path(directory: Path) -> Path:
    """Where the state lies from which a stopped training goes on."""
    return directory / "training" / "latest.pt"


Say = Callable[[str], None]
"""Told what a user should know."""


def _nobody(line: str) -> None:
    """Tell nobody."""


def is_whole(directory: Path, study: Study, say: Say = _nobody) -> bool:
    """Whether a training is finished with its rows and the checkpoints that strategies start from.

    Damaged files, and checkpoints of another training, are set aside.

    Args:
        directory: the study's folder.
        study: the study.
        say: told of each checkpoint that is set aside. Default: nobody is.
    """
    finished = _own_status(directory, study).get("status") == "finished"
    return finished and _has_rows(_rows(directory), study, study.training.epochs) and not _lost(directory, study, say)


def _lost(directory: Path, study: Study, say: Say = _nobody) -> list[int]:
    """Epochs of the checkpoints that are not there; damaged and foreign ones are set aside first."""
    checkpoints = {epoch: checkpoint_path(directory, epoch) for epoch in study.checkpoints}
    return [epoch for epoch, path in checkpoints.items() if _own(path, study, epoch, say) is None]


def _own(path: Path, study: Study, epoch: int | None = None, say: Say = _nobody) -> dict[str, Any] | None:
    """A state of this training; None where there is none, what is no such state being set aside."""
    try:
        return load_checkpoint(path, training_identity(study), epoch)
    except FileNotFoundError:
        return None
    except ValueError as error:
        say(f"{error}; it is {aside} now" if (aside := set_aside(path)) else str(error))
        return None


def _rows(directory: Path) -> list[dict[str, Any]]:
    """The rows of the training so far; a damaged journal is set aside."""
    path = directory / "training" / "rows.jsonl"
    status = training_status(directory)
    try:
        rows, journal = read_training_rows(path, sealed=True)
    except DamagedFile:
        set_aside(path)
        return []
    if status.get("status") == "finished" and lost_rows(path.parent, {path.name: journal}, status):
        set_aside(path)
        return []
    return rows


def _has_rows(rows: list[dict[str, Any]], study: Study, last: int) -> bool:
    """Whether every evaluation up to an epoch has its row."""
    return {epoch for epoch in range(last + 1) if _is_evaluated(study, epoch)} <= {row["epoch"] for row in rows}


def _is_evaluated(study: Study, epoch: int) -> bool:
    return epoch % study.training.evaluate_every == 0 or epoch in (*study.checkpoints, study.training.epochs)


def training_status(directory: Path) -> dict[str, Any]:
    """What the training's status file says; nothing where there is none or it is damaged."""
    try:
        return read_training_status(directory / "training" / "status.json", sealed=True)
    except DamagedFile:
        return {}


def _own_status(directory: Path, study: Study) -> dict[str, Any]:
    """The same; nothing where it is of another training."""
    status = training_status(directory)
    return status if status.get("identity") == training_identity(study) else {}


def train(directory: Path, study: Study) -> None:
    """Train, or go on from the last state of a training that was stopped.

    The clock runs during steps, data selection included, and stands still during evaluation and saving. A few untimed
    steps come first, after which everything is put back. Where the training had been finished and a checkpoint was
    lost, the part that leads to it is repeated; what the training took, by which budgets are set, stays what it was.

    Args:
        directory: the study's folder.
        study: the study.
    """
    folder = directory / "training"
    for part in (folder, folder / "checkpoints"):
        if wrong_folder(part):
            set_aside(part)
    path, status = folder / "status.json", _own_status(directory, study)
    if not status:
        set_aside(path)
    finished = status.get("status") == "finished"
    run = _Training(directory, study, finished)
    try:
        if run.epoch < run.last:
            run.warm_up()
        for epoch in range(run.epoch + 1, run.last + 1):
            run.train_epoch(epoch)
    finally:
        if run.journal is not None:
            run.journal.close()
    if not finished:
        status = {
            "status": "finished",
            "identity": run.identity,
            "seconds": run.clock.seconds,
            "epochs": study.training.epochs,
            "steps": run.steps,
            "gradients": run.steps,
            "lr": study.training.lr,
            "batch_size": study.training.batch_size,
            "checkpoint_epochs": study.checkpoints,
        }
    if run.journal is not None:  # which may have been begun anew, as rows were lost
        write_json(path, status | {"journals": {"rows.jsonl": run.journal.end}})


class _Training:
    """The state of a training: model, optimizer, clock, journal."""

    def __init__(self, directory: Path, study: Study, finished: bool):
        self.directory, self.study, self.setting = directory, study, study.training
        self.identity = training_identity(study)
        self.problem: Problem = get(study.problem, **study.problem_options)
        self.splits: Splits = self.problem.load().to(study.device)
        torch.manual_seed(self.setting.seed)
        self.model = self.problem.model().to(study.device).train()
        self.optimizer = self._fresh_optimizer()
        self.evaluate = Evaluator(self.problem, self.model, self.splits)
        self.epoch, self.steps, self.clock = 0, 0, Clock(study)
        self.journal: Journal | None = None
        rows = _rows(directory)
        self.to_save = _lost(directory, study) if finished else study.checkpoints
        self.last = study.training.epochs
        if finished and _has_rows(rows, study, self.last):  # only checkpoints are lost: the rows stay as they are
            self.last = max(self.to_save, default=0)
            self._resume(rows)
        else:
            self._resume(rows)
            kept = [row for row in rows if row["epoch"] <= self.epoch]
            self.journal = Journal(directory / "training" / "rows.jsonl", kept)
            if not kept:
                self._log()
        if self.epoch == 0 and 0 in self.to_save:
            self._save()

    def _resume(self, rows: list[dict[str, Any]]) -> None:
        """Load the latest state up to which rows and checkpoints are complete."""
        epochs = sorted(self.study.checkpoints, reverse=True)
        candidates = [(latest_path(self.directory), None)]
        candidates += [(checkpoint_path(self.directory, epoch), epoch) for epoch in epochs]
        for path, epoch in candidates:
            state = _own(path, self.study, epoch)
            if state is None:
                continue
            before = [epoch for epoch in epochs if epoch <= state["epoch"]]
            kept = all(checkpoint_path(self.directory, epoch).is_file() for epoch in before)
            if kept and _has_rows(rows, self.study, state["epoch"]):
                self._load(state)
                return

    def _load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        restore_random_states(state["random"])
        self.epoch, self.steps = state["epoch"], state["steps"]
        self.clock = Clock(self.study, state["seconds"])

    def _state(self) -> dict[str, Any]:
        return {
            "identity": self.identity,
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": random_states(),
            "steps": self.steps,
            "seconds": self.clock.seconds,
        }

    def warm_up(self) -> None:
        """Take a few steps and forget them: model, optimizer and random numbers are put back bit for bit."""
        model = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        random = random_states()
        optimizer = self._fresh_optimizer()
        objectives = self._objectives(self.epoch + 1)
        for _ in range(WARM_UP_STEPS):
            optimizer.step(next(objectives)[0])
        self.model.load_state_dict(model)
        restore_random_states(random)

    def _fresh_optimizer(self) -> torch.optim.SGD | torch.optim.Adam:
        setting = self.setting
        return start_optimizer(setting.optimizer, self.model.parameters(), setting.lr, setting.momentum)

    def _objectives(self, epoch: int):
        context = StrategyContext(self.problem, self.splits, self.model, self.setting, {}, self.setting.seed)
        return epochs_of_batches(context, epoch, self.setting.batch_size)

    def train_epoch(self, epoch: int) -> None:
        """One epoch, then what is due after it: an evaluation, a checkpoint."""
        objectives = self._objectives(epoch)
        last = False
        while not last:
            with self.clock:
                objective, _, last = next(objectives)
                self.optimizer.step(objective)
            self.steps += 1
        self.epoch = epoch
        if _is_evaluated(self.study, epoch):
            self._log()
        if epoch in self.to_save:
            self._save()
        if epoch % self.setting.save_every == 0 or epoch == self.setting.epochs:
            save_checkpoint(latest_path(self.directory), self._state())

    def _save(self) -> None:
        save_checkpoint(checkpoint_path(self.directory, self.epoch), self._state())

    def _log(self) -> None:
        if self.journal is None:
            return
        self.journal.write(
            "evaluation",
            epoch=self.epoch,
            seconds=self.clock.seconds,
            step=self.steps,
            lr=self.setting.lr,
            **self.evaluate(self.model.state_dict()),
        )


def problem_record(study: Study) -> dict[str, Any]:
    """What the results say of the problem, for readers that do without torch."""
    problem = get(study.problem, **study.problem_options)
    splits = problem.load()
    rows = {name: row_count(getattr(splits, name)) for name in ("train", "valid", "test")}
    metrics = [
        {"name": metric.name, "higher_is_better": metric.higher_is_better, "on_train": metric.on_train}
        for metric in problem.metrics
    ]
    return {
        "name": problem.name,
        "version": problem.version,
        "options": dict(problem.options),
        "title": problem.title,
        "description": problem.description,
        "parameters": sum(p.numel() for p in problem.model().parameters()),
        "metrics": metrics,
        "rows": rows,
    }
