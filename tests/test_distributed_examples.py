"""The examples for several ranks run under torchrun, and lead all ranks to the same place."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples" / "distributed"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def losses_of(name: str, ranks: int) -> tuple[list[float], list[float]]:
    """The losses on the way, and each rank's at the end."""
    command = [*TORCHRUN, str(ranks), str(FOLDER / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    on_the_way = re.findall(r"loss(?: of the last batch)? ([\d.e+-]+),", done.stdout)
    at_the_end = re.findall(r"^rank \d+: loss ([\d.e+-]+)$", done.stdout, re.MULTILINE)
    return [float(each) for each in on_the_way], [float(each) for each in at_the_end]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.py")))
def test_an_example_runs_on_two_ranks(name):
    on_the_way, at_the_end = losses_of(name, 2)
    assert len(at_the_end) == 2
    assert at_the_end[0] == at_the_end[1]
    assert at_the_end[0] < on_the_way[0]


def test_every_example_is_on_the_page_with_its_launch_line():
    page = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")
    for path in FOLDER.glob("*.py"):
        line = f"torchrun --standalone --nproc-per-node 2 examples/distributed/{path.name}"
        assert line in page
        assert line in path.read_text(encoding="utf-8")
