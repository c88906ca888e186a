"""The runs of a study: which there are, and where each of them stands."""

from dataclasses import dataclass
from pathlib import Path

from ...problems.sampling import permutation
from ...records import set_aside
from ..config import Study
from ..results import FILES, read_run_files, run_id, wrong_folder
from ..strategies import StrategyTable


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
