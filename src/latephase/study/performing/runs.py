"""The runs of a study: which there are, what they share, and where each of them stands."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...problems.sampling import permutation
from ...records import set_aside
from ..config import Study
from ..results import FILES, read_run_files, run_id, wrong_folder
from ..strategies import StrategyTable
from .identity import code_version, identity_of


@dataclass(frozen=True)
class RunKey:
    """Which run: epoch of the checkpoint, strategy, seed."""

    checkpoint_epoch: int
    strategy: StrategyTable
    seed: int

    @property
    def run_id(self) -> str:
        """Name of the run's folder."""
        return run_id(self.checkpoint_epoch, self.strategy.name, self.seed)


@dataclass(frozen=True)
class Conditions:
    """All that the runs of a study share.

    Attributes:
        directory: the study's folder.
        study: the study.
        budget: in the study's unit.
        training_share: the budget as a share of the training.
        environment: written beside the results.
        code: version of the code that the study began with; workers may start long after.
    """

    directory: Path
    study: Study
    budget: float
    training_share: float
    environment: dict[str, Any]
    code: str = field(default_factory=code_version)

    def identity(self, key: RunKey) -> str:
        """The identity of a run."""
        return identity_of(self.study, key.strategy, key.checkpoint_epoch, key.seed, self.budget, self.code)


PlannedRun = tuple[Conditions, RunKey]
"""A run with what it shares with the others of its study."""


def plan_runs(study: Study) -> list[RunKey]:
    """All runs, strategies innermost and in a fixed random order.

    So slow drifts of the machine meet all strategies alike, and where two runs share it, every strategy has every other
    beside it.
    """
    return [
        RunKey(epoch, study.strategies[position], seed)
        for seed in study.seeds
        for epoch in study.checkpoints
        for position in permutation(len(study.strategies), seed, epoch).tolist()
    ]


def status_of(directory: Path, study: Study, key: RunKey) -> str:
    """Where a run stands, by its files; nothing is written.

    Returns:
        "finished", "failed", "running" (or broken off), "damaged", or "to run".
    """
    status = read_run_files(directory / "runs" / key.run_id, study.evaluations, sealed=True).status
    return "to run" if status == "missing" else status


def set_damaged_aside(directory: Path, key: RunKey) -> list[Path]:
    """Rename the files of a damaged run, so that it runs anew; the new names."""
    folder = directory / "runs" / key.run_id
    if wrong_folder(folder):
        return [aside] if (aside := set_aside(folder)) else []
    return [aside for name in FILES if (aside := set_aside(folder / name)) is not None]
