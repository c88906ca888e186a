"""Ten thousand steps: what an optimizer holds does not grow."""

import gc
import io
import os
import pickle
import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from flat_parts import parts
from latephase import HessianFree, JSONLinesWriter, Objective
from latephase.curvature.preconditioners import EmpiricalFisher, GGNDiagonal, Nystrom

EARLY, LATE = 1_000, 10_000


@dataclass(frozen=True)
class Held:
    """Bytes of the saved state and of the pickle, tensors alive, and the process's memory in MiB."""

    saved: int
    pickled: int
    tensors: int
    resident: float


def held(optimizer: HessianFree) -> Held:
    gc.collect()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
    with open("/proc/self/statm") as statm:
        pages = int(statm.read().split()[1])
    return Held(file.tell(), len(pickle.dumps(optimizer)), tensors, pages * os.sysconf("SC_PAGE_SIZE") / 2**20)


def run(optimizer: HessianFree, model: nn.Module, two: bool) -> list[Held]:
    """Fresh batches of a problem with noisy labels, so that there is always something to move for."""
    generator = torch.Generator().manual_seed(0)

    def batch() -> Objective:
        inputs = torch.randn(8, 3, generator=generator)
        noise = torch.randn(8, 2, generator=generator)
        return Objective(model, nn.CrossEntropyLoss(), (inputs, (inputs[:, :2] + noise).argmax(dim=1)))

    measured, moved = [], 0
    for step in range(1, LATE + 1):
        optimizer.step(batch(), batch() if two else None)
        moved += optimizer.report is not None and optimizer.report.step_norm > 0
        if step in (EARLY, LATE):
            measured.append(held(optimizer))
    assert moved > LATE // 10
    return measured


def last_only(reports: list) -> object:
    def hook(optimizer, args, kwargs):
        reports[:] = [optimizer.report.as_dict()]

    return hook


CASES = {
    "plain": {},
    "nystrom": {"preconditioner": Nystrom(rank=3, every=7)},
    "fisher_and_debias": {"preconditioner": EmpiricalFisher(every=7), "debias": True},
    "diagonal_and_blocks": {"preconditioner": GGNDiagonal(probes=2, every=7), "blocks": True},
}


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads the process's memory from Linux's /proc")
@pytest.mark.parametrize("case", CASES)
def test_nothing_grows(case, tmp_path):
    callbacks = case != "plain"
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
    groups = [{"params": list(model[0].parameters())}, {"params": list(model[2].parameters())}]
    # The damping is kept where steps are useful; the ratio of batches of eight says little.
    options = {"max_iter": 3, "damping": 1.0, "range": (0.1, 10.0), **CASES[case]}
    optimizer, reports = HessianFree(groups, **parts(**options)), []
    if callbacks:
        optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: None)
        optimizer.register_step_post_hook(last_only(reports))
        optimizer.register_step_post_hook(JSONLinesWriter(tmp_path / "steps.jsonl"))
        optimizer.register_state_dict_post_hook(lambda optimizer, state: None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the damping has arrived")
        early, late = run(optimizer, model, two=bool(CASES[case].get("debias")))
    assert late.saved <= early.saved + 64  # numbers of other lengths
    assert late.pickled <= early.pickled + 64
    assert late.tensors <= early.tensors + 10
    assert late.resident <= early.resident + 8.0  # less than 1 kB a step
    assert len(reports) == callbacks
