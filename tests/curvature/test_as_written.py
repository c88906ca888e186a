"""What went through `torch.compile` runs as written in our passes: compiled code has one derivative."""

import threading
from collections.abc import Callable

import pytest
import torch
from dense_oracle import relative
from torch import Tensor, nn

from latephase import Objective
from latephase.curvature import linearize
from latephase.objective.kernels import as_written

compiled = torch.compile(backend="aot_eager")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


@compiled
def activation(h: Tensor) -> Tensor:
    return torch.tanh(h)


class Function(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return activation(h)


def quartic(z: Tensor, y: Tensor) -> Tensor:
    return ((z - y) ** 4).mean()


def with_submodule() -> nn.Module:
    model = network()
    model[0] = torch.compile(model[0], backend="aot_eager")
    return model


def with_compile() -> nn.Module:
    model = network()
    model.compile(backend="aot_eager")
    return model


def with_compile_inside() -> nn.Module:
    model = network()
    model[2].compile(backend="aot_eager")
    return model


def with_function() -> nn.Module:
    model = network()
    model[1] = Function()
    return model


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor, Tensor], Tensor]]] = {
    "submodule": (with_submodule, nn.MSELoss()),
    "compile()": (with_compile, nn.MSELoss()),
    "compile() of a submodule": (with_compile_inside, nn.MSELoss()),
    "function in forward": (with_function, nn.MSELoss()),
    "loss": (network, torch.compile(quartic, backend="aot_eager")),
    "module as loss": (network, torch.compile(nn.CrossEntropyLoss(), backend="aot_eager")),
}


@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
@pytest.mark.parametrize("name", CASES)
def test_products_are_those_of_the_program_as_written(name, curvature):
    build, loss = CASES[name]
    plain = {"loss": quartic, "module as loss": nn.CrossEntropyLoss()}.get(name, nn.MSELoss())
    torch.manual_seed(1)
    data = torch.randn(11, 4).double(), torch.randn(11, 3).softmax(1).double()
    model, v = build(), torch.ones(43).double()
    for p, own in zip(model.parameters(), network().parameters(), strict=True):
        assert torch.equal(p, own)
    expected = linearize(Objective(network(), plain, data), curvature, method="double_backward")
    objective = Objective(model, loss, data)
    for _ in range(3):
        curved = linearize(objective, curvature)
        assert relative(curved.loss, expected.loss) < 1e-12
        assert relative(curved.gradient, expected.gradient) < 1e-12
        assert relative(curved.matvec(v), expected.matvec(v)) < 1e-12
    assert curved.method == "traced", curved.reason


def test_a_compiled_module_as_loss_is_known_by_its_class():
    torch.manual_seed(0)
    data = torch.randn(6, 4).double(), torch.tensor([0, 1, -100, 2, -100, -100])
    loss = nn.CrossEntropyLoss()
    values = [
        Objective(network(), which, data, microbatch_size=2).value()
        for which in (loss, torch.compile(loss, backend="aot_eager"))
    ]
    assert torch.equal(*values)


def test_threads_leave_torch_compile_as_they_found_it():
    from torch._dynamo import eval_frame

    started, go_on = threading.Event(), threading.Event()

    def long_pass() -> None:
        with as_written():
            started.set()
            go_on.wait()

    thread = threading.Thread(target=long_pass)
    with as_written():
        thread.start()
        started.wait()
    assert eval_frame._stance.stance == "force_eager"  # the other thread is within
    go_on.set()
    thread.join()
    assert eval_frame._stance.stance == "default"
