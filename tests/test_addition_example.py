"""The addition task, on short sequences for a few steps."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "examples" / "addition.py"


def test_short_sequences_are_learned_far_below_chance(tmp_path):
    size = ["--length", "10", "--units", "20", "--sequences", "300", "--curvature-sequences", "150"]
    run = ["--cg-max-iter", "20", "--max-steps", "25", "--structural-damping", "0.033", "0", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPT), *size, *run], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    for mu in ("0.033", "0.000"):
        lines = [json.loads(line) for line in (tmp_path / f"mu-{mu}.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(1, 26))
    # Always answering 1 has the variance of a sum of two numbers, 1/6.
    assert min(line["squared_error"] for line in lines) < 1 / 12
    assert (tmp_path / "addition.png").stat().st_size > 10_000
