"""The runs of a study: which there are, and where each of them stands."""

from dataclasses import dataclass
from pathlib import Path

from ..problems.sampling import permutation
from .config import Study
from .plan import run_id
from .store import read_chained, read_json, set_aside
from .strategy_config import StrategyConfig

JOURNALS = ("rows", "clocks")
FILES = ("run.json", "status.json", *(f"{name}.jsonl" for name in JOURNALS))
"""Of a run; what else lies in its folder is for readers."""


@dataclass(frozen=True)
class RunKey:
    """Which run: epoch of the checkpoint, strategy, seed."""

    checkpoint_epoch: int
    strategy: StrategyConfig
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
    folder = directory / "runs" / key.run_id
    try:
        record = read_json(folder / "status.json") or {}
        status = record.get("status", "to run")
        if not isinstance(status, str):
            return "damaged"
        if status == "finished":
            (rows, of_rows), (clocks, of_clocks) = (read_chained(folder / f"{name}.jsonl") for name in JOURNALS)
            if record.get("chains") != {"rows": of_rows, "clocks": of_clocks}:
                return "damaged"
            rows = [row for row in rows if row.get("event") == "evaluation"]
            if not len(rows) == len(clocks) == study.evaluations + 1 or not read_json(folder / "run.json"):
                return "damaged"
    except ValueError:
        return "damaged"
    return status


def set_damaged_aside(directory: Path, key: RunKey) -> list[Path]:
    """Rename the files of a damaged run, so that it runs anew; the new names."""
    folder = directory / "runs" / key.run_id
    return [aside for name in FILES if (aside := set_aside(folder / name)) is not None]
