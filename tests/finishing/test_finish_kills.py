"""A finish killed with SIGKILL at random moments, given again until it ends, is the one that nobody killed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

KILLS, STEPS = 20, 120
DRIVER = f"""
import sys, time
import torch
from small_tasks import noisy
import latephase
from latephase.finishing import folder

folder.SECONDS = folder.PAUSE = 0.0
torch.manual_seed(5)
given = noisy()
print("begun", flush=True)
latephase.finish(**given, steps={STEPS}, out=sys.argv[1], watch=lambda late: time.sleep(0.01))
"""


def start(folder):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", DRIVER, str(folder)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def killed(folder, draw):
    """Give the command, and kill it at a random moment; False where it ended before."""
    process = start(folder)
    process.stdout.readline()
    time.sleep(draw.uniform(0.0, 1.2))
    hit = process.poll() is None
    if hit:
        process.send_signal(signal.SIGKILL)
    _, error = process.communicate()
    assert hit or process.returncode == 0, error
    return hit


def outcome(folder):
    state = torch.load(folder / "state.pt", weights_only=True)
    return json.loads((folder / "events.json").read_text()), state["model"], torch.load(folder / "best.pt")


def best_of(folder):
    """The lowest held-out loss, from the state; infinite where none is written."""
    if not (folder / "state.pt").exists():
        return float("inf")
    saved = torch.load(folder / "state.pt", weights_only=True)["late"]["hand_over"]["race"]["best"][0]
    return float(saved.sum())


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path):
    draw = random.Random(0)
    process = start(tmp_path / "whole")
    _, error = process.communicate()
    assert process.returncode == 0, error
    events, model, best = outcome(tmp_path / "whole")
    assert events["phase"] == "done"
    kills = finished = 0
    while kills < KILLS or not finished:
        folder, before = tmp_path / f"run-{finished}", float("inf")
        while killed(folder, draw) if kills < KILLS else not start(folder).communicate():
            kills += 1
            now = best_of(folder)  # readable whenever it was killed
            assert now <= before
            before = now
        finished += 1
        again = outcome(folder)
        assert again[0] == events
        for ours, theirs in ((again[1], model), (again[2], best)):
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert not list(folder.glob("*unfinished*"))
        shutil.rmtree(folder)
