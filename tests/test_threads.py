"""Several threads at once, as parallel trials of a tuner are: generators and kernel settings are the process's."""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latephase import AdamQLR, HessianFree, Objective
from latephase.curvature import linearize

THREADS = 4


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0].mean(1)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.drop = nn.LSTM(4, 4, batch_first=True), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.lstm(x)[0].mean(1))


KINDS: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Dropout(0.4), nn.Tanh(), nn.Linear(8, 4)),
    "attention": Attention,
    "lstm": Recurrent,
    "norm": lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Dropout(0.2), nn.Flatten(), nn.Linear(12, 4)),
}


def second_derivatives(model: nn.Module, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    u = model(x)
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    return u + torch.autograd.grad(slope[:, 0].sum(), x, create_graph=True)[0].sum(1)


@pytest.fixture(autouse=True)
def _switch_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def settings() -> list[object]:
    cuda = torch.backends.cuda
    names = [torch.layer_norm, torch.embedding, torch.utils.checkpoint.CheckpointFunction]
    flags = [cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()]
    others = [cuda.cudnn_sdp_enabled(), torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled]
    return [*names, *flags, *others, torch.backends.mha.get_fastpath_enabled()]


def objective_of(kind: str, seed: int) -> Objective:
    generator = torch.Generator().manual_seed(seed)
    model = KINDS[kind]()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.4 * torch.randn(p.shape, generator=generator))
    data = torch.randn(6, 3, 4, generator=generator), torch.randint(4, (6,), generator=generator)
    forward = second_derivatives if kind == "norm" else None
    objective = Objective(model, nn.CrossEntropyLoss(), data, forward=forward)
    objective.seed = seed
    return objective


def data_of(objective: Objective) -> tuple[Tensor, Tensor]:
    (chunk,) = objective.chunks
    return chunk.inputs, chunk.targets


def numbers(objective: Objective) -> list[Tensor]:
    """Loss, gradient and a product; all are determined by the objective and its seed."""
    curved = linearize(objective, method="double_backward")
    product = curved.matvec(torch.ones(curved.space.size))
    return [objective.value(), objective.value(), curved.gradient, product]


def at_once(work: Callable[[int], object]) -> list[object]:
    start = threading.Barrier(THREADS)

    def begin(index: int) -> object:
        start.wait()
        return work(index)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(begin, range(THREADS)))


@pytest.mark.parametrize("kind", KINDS)
def test_threads_get_the_numbers_of_one_thread(kind):
    before = settings()
    alone = [numbers(objective_of(kind, seed)) for seed in range(THREADS)]
    objectives = [objective_of(kind, seed) for seed in range(THREADS)]
    together = at_once(lambda index: [numbers(objectives[index]) for _ in range(5)])
    for expected, rounds in zip(alone, together, strict=True):
        for found in rounds:
            assert all(torch.equal(x, y) for x, y in zip(expected, found, strict=True))
    assert settings() == before


def test_one_model_in_several_threads():
    """The tensors of a pass are swapped into the model while it runs."""
    objective = objective_of("dropout", 3)
    space = objective.space()
    points = [space.named(space.values() * (1 + index)) for index in range(THREADS)]
    expected = [objective.value(point) for point in points]
    found = at_once(lambda index: [objective.value(points[index]) for _ in range(20)])
    assert all(torch.equal(value, expected[index]) for index, values in enumerate(found) for value in values)


@pytest.mark.parametrize("make", [HessianFree, AdamQLR])
def test_steps_with_dropout_judge_one_function(make):
    before = settings()
    objectives = [objective_of(kind, index) for index, kind in enumerate(("dropout", "attention", "lstm", "dropout"))]

    def train(index: int) -> list[bool]:
        objective = objectives[index]
        optimizer, same = make(objective.model.parameters()), []
        for _ in range(4):
            optimizer.step(objective)
            same.append(torch.equal(objective.value(), objective.value()))
        return same

    assert all(all(same) for same in at_once(train))
    assert settings() == before


def test_an_error_in_one_thread_leaves_the_others_and_the_settings_alone():
    class Broken(Recurrent):
        def forward(self, x: Tensor) -> Tensor:
            self.lstm(x)
            raise OSError("broken")

    before = settings()
    objectives = [objective_of("lstm", index) for index in range(THREADS - 1)]
    x = torch.randn(2, 3, 4)
    broken = Objective(Broken(), nn.CrossEntropyLoss(), (x, torch.tensor([0, 1])))

    def work(index: int) -> bool:
        if index < THREADS - 1:
            return torch.equal(objectives[index].value(), objectives[index].value())
        for _ in range(10):
            with pytest.raises(OSError, match="broken"):
                broken.value()
        return True

    assert all(at_once(work))
    assert settings() == before


def test_another_thread_keeps_torch_s_own_functions_during_a_pass():
    """Its layer norm is torch's kernel, its embedding writes its weight as torch's does, its checkpoint recomputes."""
    seen: list[str] = []

    def outside() -> None:
        weight = torch.full((2, 3), 2.0)
        F.embedding(torch.tensor([0]), weight, max_norm=1.0)
        seen.append("renormed" if float(weight[0].norm()) < 1.001 else "kept")
        x = torch.randn(2, 3, requires_grad=True)
        seen.append(type(F.layer_norm(x, [3]).grad_fn).__name__)
        calls: list[int] = []
        torch.utils.checkpoint.checkpoint(lambda y: calls.append(1) or y.sin(), x, use_reentrant=False).sum().backward()
        seen.append(f"{len(calls)} calls")

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        thread = threading.Thread(target=outside)
        thread.start()
        thread.join()
        return second_derivatives(model, x)

    objective = objective_of("norm", 0)
    Objective(objective.model, nn.CrossEntropyLoss(), data_of(objective), forward=forward).value()
    assert set(seen) == {"renormed", "NativeLayerNormBackward0", "2 calls"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_process_forked_during_another_thread_s_pass_can_run_passes():
    inside, leave, status = threading.Event(), threading.Event(), []

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        inside.set()
        leave.wait(20)
        return model(x)

    base = objective_of("dropout", 0)
    slow = Objective(base.model, nn.CrossEntropyLoss(), data_of(base), forward=forward)
    thread = threading.Thread(target=slow.value)
    thread.start()
    inside.wait(20)
    child = os.fork()
    if not child:
        alarm = threading.Timer(10, os._exit, [1])
        alarm.daemon = True
        alarm.start()
        objective_of("norm", 1).value()
        os._exit(0)
    status.append(os.waitpid(child, 0)[1])
    leave.set()
    thread.join()
    assert status == [0]
