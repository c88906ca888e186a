"""Puts configurations that are drawn at random to a few steps each, and counts what became of them.

    python -m benchmarks.fuzz --trials 10000 --out runs/fuzz.jsonl
    python -m benchmarks.fuzz --trial 1234

Options, models, losses, dtypes, scales from 1e-12 to 1e12 and degenerate data are drawn by a trial's number, so that a
trial is the same one wherever it is run. What has to hold, whatever the configuration is: documented errors and
warnings only; parameters that are finite; with line search a judged loss that does not rise; reports that say what
happened to the parameters; an exception leaves everything as it was (`checks`). Each trial is one row of the file; the
command goes on after the last row, and its exit status is 1 where a row has a problem.
"""

import argparse
import json
import sys
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from .cases import draw
from .checks import documented, perform


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description="Try configurations at random.")
    parser.add_argument("--trials", type=int, default=100, help="how many, the first numbers (default: 100)")
    parser.add_argument("--out", type=Path, help="rows of JSON, one per trial; goes on where it ends")
    parser.add_argument("--trial", type=int, help="only the trial of this number, with its configuration and traceback")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.trial is not None:
        return _one(given.trial)
    rows = _read(given.out)
    if given.out is not None and given.out.exists():
        _mend(given.out)
    with (given.out or Path("/dev/null")).open("a") as file:
        for number in sorted(set(range(given.trials)) - {row["trial"] for row in rows}):
            trial = draw(number)
            outcome = perform(trial)
            row = {"trial": number, "optimizer": trial.setting["optimizer"], "statuses": outcome.statuses}
            if outcome.problem is not None:
                row |= {"problem": outcome.problem} | trial.as_text()
                print(f"{number}: {outcome.problem}", flush=True)
            rows.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
    return _tell(rows)


def _read(path: Path | None) -> list[dict[str, Any]]:
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def _mend(path: Path) -> None:
    """End a line that a killed process had begun, so that the next row has its own."""
    if not path.read_text().endswith("\n"):
        with path.open("a") as file:
            file.write("\n")


def _one(number: int) -> int:
    trial = draw(number)
    print(json.dumps(trial.as_text(), indent=1))
    from latephase import checks  # what an undocumented error hides

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        statuses: list[str] = []
        try:
            checks._steps(trial, statuses)
        except Exception as error:
            print(statuses)
            traceback.print_exc()
            return int(isinstance(error, checks.Violation) or documented(error) is None)
    print(statuses)
    return 0


def _tell(rows: list[dict[str, Any]]) -> int:
    """Print the counts by optimizer and status; whether there are problems."""
    counts = Counter((row["optimizer"], status) for row in rows for status in row["statuses"])
    for (optimizer, status), count in sorted(counts.items()):
        print(f"{optimizer:12} {status:60} {count}")
    problems = [row for row in rows if "problem" in row]
    print(f"{len(rows)} trials, {sum(counts.values())} steps, {len(problems)} problems")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
