"""A tuning from its configuration to the best settings: trials in processes, until every strategy has its number."""

import os
import time
from pathlib import Path
from typing import Any

import optuna
import tomli_w
from filelock import FileLock

from ...problems import get
from ...problems.problem import row_count
from ...records import describe_environment, refuse_links, remove_leftovers, write_text_atomic
from ..config import ConfigError, Study, check_fit
from ..performing import (
    ALLOCATOR,
    Conditions,
    Pool,
    StudyError,
    StudyProgress,
    called_in_dtype,
    how_ended,
    resolve,
    stopped_by,
)
from .address import without_its_password
from .config import Tuning
from .outcome import Outcome, outcomes, write_best, write_table
from .page import write_tuning_report
from .storage import BEAT_EVERY, Claimed, Trials
from .trial import APART, TrialKey, perform_trial


def resolve_tuning(tuning: Tuning) -> tuple[Study, int]:
    """The study with everything filled in that depends on the data and the machine, and the training split's rows.

    Raises:
        ConfigError: batches to be tried do not fit the data, the runs at a time not the cores, or there is no such
            device.
        DataError: data is missing and cannot be downloaded.
    """
    study = resolve(tuning.study)
    problem = get(study.problem, **study.problem_options)
    rows = row_count(problem.load().train)
    for name in tuning.tuned:
        searches = tuning.searches[name]
        for number in range(max(len(search.ends()) for search in searches.values())):
            ends = {path: search.ends()[min(number, len(search.ends()) - 1)] for path, search in searches.items()}
            try:
                strategy = tuning.strategy(name, ends)
            except (ValueError, TypeError):  # refused together: a failed trial, should they be drawn
                continue
            check_fit(study.model_copy(update={"strategies": [strategy]}), problem, rows)
    return study, rows


def tune(tuning: Tuning, directory: Path, progress: StudyProgress, storage: str | None = None) -> list[Outcome]:
    """Perform the trials that are left, together with any other workers, and write what came out.

    Args:
        tuning: the tuning.
        directory: its folder; made where it is missing.
        progress: told what is running.
        storage: URL of the Optuna storage. Default: `tune.db` in the folder.

    Returns:
        What became of every trial.

    Raises:
        ConfigError: the storage holds another tuning of the name, or more trials; or something does not fit.
        StudyError: the disk is full, or the storage is gone; the message says how to go on.
    """
    refuse_links(directory)
    study, rows = resolve_tuning(tuning)
    directory.mkdir(parents=True, exist_ok=True)
    os.environ.update(ALLOCATOR)  # for the processes that are started from here on
    try:
        trials = Trials(tuning, directory, storage or f"sqlite:///{(directory / 'tune.db').resolve()}")
        try:
            if trials.alone():
                remove_leftovers(directory)
            if (places := trials.places()) > tuning.tune.trials:
                raise ConfigError(
                    f"the storage {trials.where} holds {places} trials of a strategy, more than the "
                    f"{tuning.tune.trials} asked for: give --trials {places}, or more"
                )
            write_text_atomic(directory / "tune.toml", tomli_w.dumps(tuning.given))
            _Worker(tuning, study, rows, directory, trials, progress).work()
            found = outcomes(trials)
        finally:
            trials.close()
        with FileLock(directory / ".lock"):  # of several workers one after the other
            write_table(found, directory / "trials.csv")
            write_best(tuning, found, directory / "best.toml")
            write_tuning_report(tuning, found, directory)
        return found
    except optuna.exceptions.StorageInternalError as error:
        cause = error.__cause__ or error  # the driver's own words; those around it are the same whatever happened
        said = without_its_password(str(cause).splitlines()[0], storage or "")
        raise StudyError(f"the storage fails ({said}); nothing in it is lost, and the same command goes on") from error
    except OSError as error:
        raise StudyError(stopped_by(error)) from error


class _Worker:
    """Performs trials, `study.jobs` at a time, until none is left."""

    def __init__(
        self, tuning: Tuning, study: Study, rows: int, directory: Path, trials: Trials, progress: StudyProgress
    ):
        self.tuning, self.study, self.rows, self.trials, self.progress = tuning, study, rows, trials, progress
        self.problem = get(study.problem, **study.problem_options)
        environment = describe_environment(study.threads, study.jobs, study.device)
        self.conditions = Conditions(directory, study, tuning.budget, 1.0, environment)
        self.pool = Pool(study.jobs, study.threads)

    def work(self) -> None:
        """Take trials until every strategy has all of its own concluded, here or elsewhere."""
        tuned, count = self.tuning.tuned, self.tuning.tune.trials
        self.progress.begin("trials", len(tuned) * count, self._done())
        beaten = time.monotonic()
        try:
            while self._done() < len(tuned) * count or self.pool.running:
                self.trials.find_lost()
                while self.pool.has_room and (claimed := self.trials.claim()) is not None:
                    self._start(claimed)
                self._wait()
                if time.monotonic() - beaten > BEAT_EVERY:
                    beaten = time.monotonic()
                    for job in self.pool.running:
                        self.trials.beat(job.what)
        finally:
            self.pool.close()
            for job in self.pool.running:
                self.trials.give_up(job.what)

    def _done(self) -> int:
        return sum(len(self.trials.concluded(name)) for name in self.tuning.tuned)

    def _start(self, claimed: Claimed) -> None:
        """Start a trial's process; settings that the strategy refuses are a failed trial."""
        try:
            strategy = self.tuning.strategy(claimed.strategy, claimed.values)
            only = self.study.model_copy(update={"strategies": [strategy]})
            strategy = check_fit(only, self.problem, self.rows).strategies[0]
        except (ConfigError, ValueError, TypeError) as error:
            self._conclude(claimed, {"outcome": "failed", "error": str(error)})
            return
        key = TrialKey(strategy, APART + self.tuning.tune.seed, claimed.trial.number)
        arguments = (self.conditions, key, self.tuning.tune.metric, self.tuning.points)
        try:
            self.pool.start(claimed, called_in_dtype, self.study, perform_trial, *arguments, talks=True)
        except BaseException:  # an interrupt above all: starting takes seconds the first time
            self.trials.give_up(claimed)
            raise

    def _wait(self) -> None:
        """Wait for what trials say or for their end; where none is running here, for other workers.

        Raises:
            KeyboardInterrupt: the interrupt reached a process first.
            OSError: a trial could not write a file of ours; it is not at fault, and is given up.
        """
        if not self.pool.running:
            if self._done() < len(self.tuning.tuned) * self.tuning.tune.trials:
                time.sleep(1.0)
                self.progress.advance(self._done(), "waiting for other workers")
            return
        for job, message in self.pool.wait(timeout=BEAT_EVERY):
            match message:
                case ("at", rung, value):
                    job.answer(self.trials.goes_on(job.what, rung, value))
                case ("end", record):
                    job.record = record
                case _:
                    failed = {"outcome": "failed", "error": job.how or how_ended(0)}
                    self._conclude(job.what, job.record or failed)

    def _conclude(self, claimed: Claimed, record: dict[str, Any]) -> None:
        kept = self.trials.conclude(claimed, record)
        value = record.get("value")
        said = f"{record['outcome']}{'' if value is None else f' at {value:.4g}'}" if kept else "lost to another worker"
        self.progress.advance(self._done(), f"{claimed.strategy} {claimed.place}: {said}")
