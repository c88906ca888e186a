"""The size of a study that should end within some minutes: a short trial measures the machine, and the size follows."""

import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ..config import ConfigError, Study, scaled
from ..outline import Budget, Fitted
from ..results import read_plan
from .conducting import held, in_words, perform, runs_of
from .progress import StudyProgress
from .train import training_status

TRIAL_BUDGET = 1.0
"""Seconds of each of the trial's runs: enough for evaluations at most of the points where a whole run has them."""
TRIAL_EPOCHS = 80
"""A trial trains for one in so many epochs, and at least for one."""
AIM = 0.9
"""Of the minutes: what a trial does not see (figures, page, a machine that is slower later) has the rest."""
SCALES = [step / 20 for step in range(19, 0, -1)]


def fitted(study: Study, directory: Path, minutes: float, progress: StudyProgress) -> Study:
    """The study in a size with which it ends within some minutes on this machine.

    Seeds are left out first, down to two, without which nothing can be tested; then epochs and checkpoints, as
    `scaled` does it. A folder that holds the study already keeps its size.

    Args:
        study: the resolved study.
        directory: its folder, which may not be there yet.
        minutes: that it may take, the trial included.
        progress: told what is running.

    Raises:
        ConfigError: minutes that are no finite number above 0, or a budget that is not in seconds, whose runs take as
            long as they take.
        StudyError: the trial died.
    """
    if not 0 < minutes < math.inf:
        raise ConfigError(f"minutes must be a finite number above 0, got {minutes:g}")
    if study.budget.unit != "seconds":
        raise ConfigError(
            f"--minutes needs a budget in seconds, and that of {study.name} is in {study.budget.unit}; give --scale"
        )
    path = directory / "study.toml"
    if path.is_file():
        plan = read_plan(path)
        kept = ("fitted", "scale", "seeds", "checkpoints", "training")
        return study.model_copy(update={name: getattr(plan, name) for name in kept})
    return sized(study, minutes, *_measured(study, progress))


def sized(study: Study, minutes: float, trial_seconds: float, epoch_seconds: float, run_seconds: float) -> Study:
    """The largest size of a study that should end within some minutes, or the smallest that there is.

    Args:
        study: the resolved study.
        minutes: that it may take, the trial included.
        trial_seconds: that the trial took.
        epoch_seconds: that an epoch of the training took in it.
        run_seconds: that a run took beside its budget.
    """
    sizes = [(size, trial_seconds + _expected(size, epoch_seconds, run_seconds)) for size in _sizes(study)]
    size, seconds = next((each for each in sizes if each[1] <= AIM * 60 * minutes), sizes[-1])
    fit = Fitted(
        minutes=minutes,
        trial_seconds=trial_seconds,
        epoch_seconds=epoch_seconds,
        run_seconds=run_seconds,
        expected_minutes=seconds / 60,
        seeds=len(study.seeds),
        checkpoints=len(study.checkpoints),
        epochs=study.training.epochs,
    )
    return size.model_copy(update={"fitted": fit})


def _sizes(study: Study) -> Iterator[Study]:
    """The study in sizes that become smaller."""
    least = min(2, len(study.seeds))
    for count in range(len(study.seeds), least - 1, -1):
        yield study.model_copy(update={"seeds": study.seeds[:count]})
    smallest = study.model_copy(update={"seeds": study.seeds[:least]})
    yield from (scaled(smallest, scale) for scale in SCALES)


def _expected(study: Study, epoch_seconds: float, run_seconds: float) -> float:
    """Seconds that a study should take."""
    training = study.training.epochs * epoch_seconds
    rounds = math.ceil(len(runs_of(study, (1, 1))) / study.jobs)
    return training + rounds * (study.budget.of(training) + run_seconds)


def _measured(study: Study, progress: StudyProgress) -> tuple[float, float, float]:
    """Seconds that a trial took, that an epoch of training takes, and a run beside its budget.

    The trial has all strategies, as many at a time as the study: what they share slows it as it will slow the study.
    """
    began = time.perf_counter()
    epochs = max(1, study.training.epochs // TRIAL_EPOCHS)
    training = study.training.model_copy(update={"epochs": epochs, "evaluate_every": epochs, "save_every": epochs})
    changes = {
        "training": training,
        "checkpoints": [0] if 0 in study.checkpoints else [epochs],
        "seeds": study.seeds[:1],
        "budget": Budget(unit="seconds", amount=TRIAL_BUDGET),
    }
    progress.note("A short trial of each strategy measures how fast this machine is.")
    with tempfile.TemporaryDirectory() as folder, in_words():
        trial = study.model_copy(update=changes)
        with held(trial, Path(folder) / "trial", progress, (1, 1)) as conditions:
            epoch_seconds = training_status(conditions.directory)["seconds"] / epochs
            keys = runs_of(trial, (1, 1))
            started = time.perf_counter()
            perform([(conditions, key) for key in keys], progress, "local")
            each = (time.perf_counter() - started) * study.jobs / len(keys)
    return time.perf_counter() - began, epoch_seconds, max(0.0, each - TRIAL_BUDGET)
