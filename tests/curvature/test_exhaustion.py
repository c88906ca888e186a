"""Memory that is used up is told as such, and is not kept as something that a model cannot do."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latephase import Objective, check
from latephase.curvature import linearize
from latephase.curvature.loss.roots import _blocks
from latephase.curvature.preconditioners import EmpiricalFisher, example_gradients
from latephase.objective import memory
from latephase.objective.memory import available, is_exhaustion

MOST = 2**50
"""Bytes that no machine has, and that a container may hand out as address space no more than others."""


class Greedy(nn.Module):
    """Asks for more memory than there is, at the given passes."""

    def __init__(self, *passes: int):
        super().__init__()
        self.linear, self.shift = nn.Linear(4, 3), nn.Parameter(torch.zeros(3))
        self.bag = {"passes": passes, "done": 0}

    def forward(self, x: Tensor) -> Tensor:
        self.bag["done"] += 1
        if self.bag["done"] in self.bag["passes"]:
            torch.empty(MOST, dtype=torch.int8)
        return torch.tanh(self.linear(x) + self.shift)


class Once(torch.autograd.Function):
    """Runs out of memory where its backward pass is differentiated, as long as `Once.short`."""

    short = True

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        if Once.short and torch.is_grad_enabled():
            torch.empty(MOST, dtype=torch.int8)
        return g * ctx.saved_tensors[0].cos()


def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(5, 4), torch.randn(5, 3)


def exhausted(call) -> BaseException:
    with pytest.raises((RuntimeError, MemoryError), match="allocate") as caught:
        call()
    assert is_exhaustion(caught.value)
    return caught.value


def test_what_torch_numpy_and_python_raise_is_recognised():
    for call in (
        lambda: torch.empty(MOST, dtype=torch.int8),
        lambda: np.empty(MOST, dtype=np.int8),
        lambda: torch.zeros(2**25, 2**25),
    ):
        exhausted(call)
    with pytest.raises(MemoryError) as caught:
        bytearray(2**62)
    assert is_exhaustion(caught.value)
    wrapped = RuntimeError("the layer failed")
    wrapped.__cause__ = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert is_exhaustion(wrapped)
    for error in (RuntimeError("shapes differ"), ValueError("not enough memory"), None):
        assert not is_exhaustion(error)


def test_a_trace_that_found_no_memory_is_made_later(monkeypatch):
    class Unseen(nn.Module):
        """What memory there is belongs to no key."""

        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            torch.empty(int(os.environ["LATEPHASE_TEST_BYTES"]), dtype=torch.int8)
            return self.linear(x)

    objective = Objective(Unseen(), nn.MSELoss(), data())
    monkeypatch.setenv("LATEPHASE_TEST_BYTES", str(MOST))
    exhausted(lambda: linearize(objective, method="traced"))
    monkeypatch.setenv("LATEPHASE_TEST_BYTES", "1")
    assert linearize(objective, method="traced").method == "traced"


def test_a_derivative_for_which_there_is_no_memory_is_not_missing():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return Once.apply(self.linear(x))

    objective = Objective(Twice(), nn.MSELoss(), data())
    Once.short = True
    v = torch.ones(15)
    assert "differentiated neither" not in str(exhausted(lambda: linearize(objective).matvec(v)))
    Once.short = False
    try:
        expected = linearize(objective, method="double_backward").matvec(v)
        assert expected.norm() > 0
    finally:
        Once.short = True


def test_gradients_of_examples_are_tried_at_once_again():
    model = Greedy()
    objective = Objective(model, nn.MSELoss(), data())
    curved, fisher = linearize(objective), EmpiricalFisher()
    raised = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "example by example"
        for done in range(1, 6):
            model.bag = {"passes": (done,), "done": 0}
            try:
                fisher.estimate(curved, [18])
            except (RuntimeError, MemoryError) as error:
                raised.append(error)
        assert len(raised) > 1  # one of them the pass over all examples at once
        assert all(map(is_exhaustion, raised))
        model.bag = {"passes": (), "done": 0}
        assert fisher.estimate(curved, [18])["diagonal"].isfinite().all()
    assert model not in example_gradients._refused


def test_the_curvature_of_a_loss_is_not_called_missing():
    def loss(z: Tensor, y: Tensor) -> Tensor:
        torch.empty(MOST, dtype=torch.int8)
        return ((z - y) ** 2).mean()

    exhausted(lambda: _blocks(loss, torch.ones(2, 3), torch.zeros(2, 3)))


def test_check_says_what_it_is():
    model = Greedy(*range(1, 1000))
    report = check(model, nn.MSELoss(), data())
    assert "runs out of memory" in str(report)


def control_group(folder: Path, version: int, limits: dict[str, str], used: int, cache: int = 0) -> Path:
    """A process's folder and the groups that it is in, as Linux lays them out."""
    kind, controller = ("cgroup2", "") if version == 2 else ("cgroup", "memory")
    mount = folder / "mount"
    for group, limit in limits.items():
        (mount / group).mkdir(parents=True, exist_ok=True)
        names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        (mount / group / names[0]).write_text(f"{limit}\n")
        (mount / group / names[1]).write_text(f"{used}\n")
        stat = f"inactive_file {cache}\n" if version == 2 else f"inactive_file 7\ntotal_inactive_file {cache}\n"
        (mount / group / "memory.stat").write_text(stat)
    inner = max(limits, key=len)
    (folder / "cgroup").write_text(f"3:cpu,cpuacct:/elsewhere\n1:{controller}:/{inner}\n")
    line = f"32 31 0:29 / {mount} rw,relatime shared:9 - {kind} {kind} rw,{controller or 'nsdelegate'}\n"
    (folder / "mountinfo").write_text(f"21 1 8:1 / / rw - ext4 /dev/sda rw\n{line}")
    return folder


@pytest.mark.parametrize("version", [1, 2])
def test_control_groups_around_the_own_one_count(version, tmp_path):
    unlimited = "max" if version == 2 else "9223372036854771712"
    groups = {"": unlimited, "slice": "1000", "slice/inner": "5000"}
    assert sorted(memory._of_containers(control_group(tmp_path, version, groups, used=400, cache=100))) == [700, 4700]


def test_a_group_is_found_from_within_a_container(tmp_path):
    folder = control_group(tmp_path, 2, {"": "1000"}, used=400)
    (folder / "cgroup").write_text("0::/docker/abc\n")
    text = (folder / "mountinfo").read_text().replace("0:29 / ", "0:29 /docker/abc ")
    (folder / "mountinfo").write_text(text)
    assert memory._of_containers(folder) == [600]
    (folder / "cgroup").write_text("0::/../../other\n")
    (folder / "mountinfo").write_text(text.replace("/docker/abc", "/"))
    assert memory._of_containers(folder) == [600]


def test_nothing_is_guessed_in_silence(monkeypatch):
    monkeypatch.setattr(memory, "_of_machine", lambda: None)
    assert available(torch.device("cpu")) > 0  # what is built in is known
    monkeypatch.setattr(memory, "_of_hardware", lambda: None)
    with pytest.warns(RuntimeWarning, match="memory_limit"):
        assert available(torch.device("cpu")) <= memory.ASSUMED
