"""The trials in an Optuna storage: who does which, what became of it, and what is left to do.

Each strategy is an Optuna study. Its trials are numbered as they begin; beside that, each has a *place*, from 0 to
`tune.trials` - 1, which decides what random numbers it draws. A place whose trial was lost with its worker is given out
again, so that the count comes out right however often workers die, and a random search tries the same settings however
many workers there were.
"""

import re
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState

from ..config import ConfigError
from .address import without_its_password
from .claiming import claim_study, configuration
from .config import Tuning
from .record import sealed_record
from .sampler import SamplerByPlace, suggest

BEAT_EVERY = 10.0
"""Seconds between the signs of life of a worker."""
STALE_AFTER = 60.0
"""Seconds without one after which a worker on another machine counts as dead; here its lock says so at once."""

COUNTED = ("finished", "stopped", "diverged", "failed")
"""What a trial can come to. Beside these it may be lost (with its worker), or surplus (its place was another's)."""

_NAME_OF_A_WORKER = re.compile("[0-9a-f]{32}")

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass
class Claimed:
    """A trial that is this worker's to do.

    Attributes:
        strategy: name of the strategy.
        place: which of its trials.
        trial: Optuna's.
        values: the values of the strategy, by path.
    """

    strategy: str
    place: int
    trial: optuna.Trial
    values: dict[str, Any]


class Trials:
    """All trials of a tuning, as one worker sees them.

    Args:
        tuning: the tuning.
        directory: its folder, in which workers of the same folder find each other's locks.
        url: of the storage.

    Raises:
        ConfigError: the storage holds another tuning of the name, or cannot be reached.
    """

    def __init__(self, tuning: Tuning, directory: Path, url: str):
        self.tuning = tuning
        self._workers = directory / "workers"
        self._workers.mkdir(parents=True, exist_ok=True)
        self.worker = uuid.uuid4().hex
        self._alive = FileLock(self._workers / self.worker)
        self._alive.acquire(timeout=0)
        self._beats: dict[int, tuple[Any, float]] = {}
        self._dead: set[str] = set()
        self.where, self._storage = without_its_password(url, url), open_storage(url)
        direction = "maximize" if tuning.higher_is_better else "minimize"
        self.studies = {}
        for stream, name in enumerate(tuning.tuned):
            self.studies[name] = optuna.create_study(
                study_name=f"{tuning.study.name}/{name}",
                storage=self._storage,
                sampler=SamplerByPlace(tuning.tune.sampler, tuning.tune.seed, stream),
                direction=direction,
                load_if_exists=True,
            )
            claim_study(self.studies[name], configuration(tuning, name), self.where)

    def close(self) -> None:
        """Let others know that this worker is gone; the lock's file stays, and says so of trials that it left."""
        self._alive.release()

    def alone(self) -> bool:
        """Whether no other worker of this folder is alive."""
        others = (path for path in self._workers.iterdir() if path.name != self.worker)
        return all(_is_free(path) for path in others)

    def places(self) -> int:
        """How many places of a strategy have been given out, those beyond the number asked for now included."""
        trials = [trial for study in self.studies.values() for trial in study.get_trials(deepcopy=False)]
        return max((trial.user_attrs.get("place", -1) + 1 for trial in trials), default=0)

    def held(self, strategy: str) -> dict[int, FrozenTrial]:
        """The trial that counts for each place that has one, under way or concluded."""
        found: dict[int, FrozenTrial] = {}
        for trial in self.studies[strategy].get_trials(deepcopy=False):
            place, outcome = trial.user_attrs.get("place"), trial.user_attrs.get("outcome")
            if place is None or place >= self.tuning.tune.trials or outcome in ("lost", "surplus"):
                continue
            if not trial.state.is_finished() or outcome in COUNTED:
                found.setdefault(place, trial)  # in the order of their numbers: the first one holds it
        return found

    def concluded(self, strategy: str) -> dict[int, FrozenTrial]:
        """Of those the ones that have come to their end."""
        return {place: trial for place, trial in self.held(strategy).items() if trial.state.is_finished()}

    def claim(self) -> Claimed | None:
        """Take the next place that is free, strategies by turns; None where there is none.

        Two workers may take one place at once. The trial with the lower number, which is there before the other is
        looked for, holds it; the other one is surplus.
        """
        while True:
            free = [place for name in self.tuning.tuned if (place := self._free(name)) is not None]
            if not free:
                return None
            name, place = min(free, key=lambda entry: entry[1])
            study = self.studies[name]
            attributes = {"place": place, "worker": self.worker, "beat": 0}
            study.add_trial(optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=attributes))
            own = max(t.number for t in study.get_trials(deepcopy=False) if t.user_attrs.get("worker") == self.worker)
            if self.held(name)[place].number == own:
                return self._begun(name, place, own)
            self._conclude_as(name, own, "surplus")

    def _free(self, name: str) -> tuple[str, int] | None:
        held = self.held(name)
        return next(((name, place) for place in range(self.tuning.tune.trials) if place not in held), None)

    def _begun(self, name: str, place: int, number: int) -> Claimed:
        study = self.studies[name]
        trial = optuna.Trial(study, _id_of(study, number))
        searches = self.tuning.searches[name].items()
        return Claimed(
            name, place, trial, {path: search.value(suggest(trial, path, search)) for path, search in searches}
        )

    def goes_on(self, claimed: Claimed, rung: int, value: float) -> bool:
        """Report a value at a rung; whether the trial is among the best there, one in so many as the tuning says.

        Each place counts once: Optuna's own pruner also compares with trials that were lost at that rung with their
        worker, and so with a trial's own former self.
        """
        factor, number = self.tuning.tune.halving.factor, claimed.trial.number
        claimed.trial.report(value, factor**rung)
        held = (trial for trial in self.held(claimed.strategy).values() if trial.number != number)
        reached = [
            trial.intermediate_values[factor**rung] for trial in held if factor**rung in trial.intermediate_values
        ]
        values = sorted([*reached, value], reverse=self.tuning.higher_is_better)
        last = values[max(1, len(values) // factor) - 1]
        return value >= last if self.tuning.higher_is_better else value <= last

    def conclude(self, claimed: Claimed, record: dict[str, Any]) -> bool:
        """Write down what became of a trial; False where another worker has taken this one for dead meanwhile.

        Args:
            claimed: the trial.
            record: "outcome", one of `COUNTED`, and "value" at the end where it is "finished"; further plain values.
        """
        outcome, trial = record["outcome"], claimed.trial
        states = {"finished": TrialState.COMPLETE, "failed": TrialState.FAIL}
        state = states.get(outcome, TrialState.PRUNED)
        try:
            trial.set_user_attr("record", sealed_record(trial, record))
            trial.set_user_attr("outcome", outcome)
            self.studies[claimed.strategy].tell(trial, record["value"] if outcome == "finished" else None, state)
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
            return False
        return True

    def give_up(self, claimed: Claimed) -> None:
        """Leave a trial that was begun to whoever goes on."""
        self._conclude_as(claimed.strategy, claimed.trial.number, "lost")

    def beat(self, claimed: Claimed) -> None:
        """Give a sign of life."""
        try:
            claimed.trial.set_user_attr("beat", time.time())
        except optuna.exceptions.UpdateFinishedTrialError:  # taken for dead; `conclude` will find out
            return

    def find_lost(self) -> int:
        """Mark the trials of workers that are gone as lost, so that their places are free; how many there were."""
        lost = 0
        for name, study in self.studies.items():
            for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if trial.user_attrs.get("worker") != self.worker and self._is_dead(trial):
                    self._conclude_as(name, trial.number, "lost")
                    lost += 1
        return lost

    def _is_dead(self, trial: FrozenTrial) -> bool:
        """Whether a trial's worker is gone: it has left its lock, or given no sign for long by our own clock."""
        worker, now = str(trial.user_attrs.get("worker")), time.monotonic()
        if worker in self._dead:
            return True
        if _NAME_OF_A_WORKER.fullmatch(worker) and (self._workers / worker).exists():
            if _is_free(self._workers / worker):
                self._dead.add(worker)
            return worker in self._dead
        beat = trial.user_attrs.get("beat")
        seen, since = self._beats.get(trial._trial_id, (None, now))
        if seen != beat or trial._trial_id not in self._beats:
            self._beats[trial._trial_id] = (beat, now)
            return False
        return now - since > STALE_AFTER

    def _conclude_as(self, name: str, number: int, outcome: str) -> None:
        study = self.studies[name]
        try:
            self._storage.set_trial_user_attr(_id_of(study, number), "outcome", outcome)
            study.tell(number, state=TrialState.FAIL)
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError):  # concluded by another meanwhile
            return


def _is_free(path: Path) -> bool:
    """Whether nobody holds a lock."""
    try:
        with FileLock(path, timeout=0):
            return True
    except Timeout:
        return False


def _id_of(study: optuna.Study, number: int) -> int:
    return next(trial._trial_id for trial in study.get_trials(deepcopy=False) if trial.number == number)


def open_storage(url: str) -> optuna.storages.RDBStorage:
    """Connect to a storage; its tables are made where they are missing.

    Raises:
        ConfigError: it cannot be reached.
    """
    patient = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    for attempt in range(5):
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs=patient)
        except Exception as error:  # drivers raise what they like; two workers may make the tables at once
            if attempt == 4:
                what = without_its_password(f"{url}: {error}", url)
                raise ConfigError(f"cannot open the storage {what}") from None  # the cause would tell the password
            time.sleep(0.2 * 2**attempt)
    raise AssertionError
