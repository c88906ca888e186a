"""Configurations drawn at random: the first few, as the command is given."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import latephase

ROOT = Path(__file__).parents[1]
SOURCE = Path(latephase.__file__).parents[1]


def fuzz(trials: int, out: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.fuzz", "--trials", str(trials), "--out", str(out)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_forty_trials_and_going_on(tmp_path):
    out = tmp_path / "rows.jsonl"
    assert "20 trials" in fuzz(20, out)
    first = out.read_text()
    out.write_text(first + '{"trial": 20, "opt')  # killed while it wrote
    assert "40 trials" in fuzz(40, out)
    rows = [json.loads(line) for line in out.read_text().splitlines() if line.endswith("}")]
    assert out.read_text().startswith(first)
    assert [row["trial"] for row in rows] == list(range(40))
    assert {"taken", "stationary"} <= {status for row in rows for status in row["statuses"]}
