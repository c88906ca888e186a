"""An exception or a KeyboardInterrupt anywhere in a step leaves everything as it was, and the retry is the step."""

import contextlib
import inspect
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from step_cases import CASES, model_of, objectives_of
from torch import nn
from torch.utils._pytree import tree_map

import latephase
from latephase.optim.parts.transaction import Transaction

PASSES = ("forward_pass", "gradient", "product", "matvec", "quadratic_form", "pull", "inverse", "estimate", "moments")
WRITES = ("write", "write_buffers", "reseed", "sum", "share")
"""Functions at whose calls a step fails: forward and backward passes, products, estimates, writes."""


PACKAGE = str(Path(latephase.__file__).parent) + os.sep
"""Where the library is, and not merely a folder of its name, in which torch may be installed, too."""
OUTSIDE = (Transaction._restore.__code__, Transaction.__exit__.__code__)
"""Where the step has failed, or is taken."""


class Broken(Exception):
    """What is raised on purpose."""


class Calls:
    """Within, an exception is raised at the k-th call of a function; every function of `optim` counts, and some others.

    The profiler of Python raises it where the function begins, as a signal would; nothing of the library is replaced.
    """

    def __init__(self, k: int, error: type[BaseException]):
        self.k, self.error, self.count = k, error, 0

    def _counts(self, frame: FrameType) -> bool:
        name = frame.f_code.co_filename
        if not name.startswith(PACKAGE) or frame.f_code in OUTSIDE:
            return False
        if frame.f_code.co_flags & inspect.CO_GENERATOR:  # entered once more where it is closed: nobody would catch it
            return False
        return name.startswith(f"{PACKAGE}optim{os.sep}") or frame.f_code.co_name in (*PASSES, *WRITES)

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and self._counts(frame):
            self.count += 1
            if self.count == self.k:
                sys.setprofile(None)
                raise self.error(f"in {frame.f_code.co_qualname} of {frame.f_code.co_filename}")

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        sys.setprofile(self)
        try:
            yield
        finally:
            sys.setprofile(None)


def bits(tree: Any) -> Any:
    """A tree with every tensor as its dtype, shape and bytes."""
    return tree_map(lambda x: (str(x.dtype), tuple(x.shape), x.numpy().tobytes()) if torch.is_tensor(x) else x, tree)


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """All that a step may change, to be compared bit for bit."""
    return {
        "parameters": bits(dict(model.state_dict())),
        "gradients": bits([p.grad for p in model.parameters()]),
        "modes": [module.training for module in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "optimizer": repr(bits(optimizer.state_dict())),
        "damping": optimizer.damping,
        "report": repr(optimizer.report),
        "attributes": sorted(vars(optimizer)),
        "generator": bits(torch.get_rng_state()),
        "kernels": (torch.backends.cuda.flash_sdp_enabled(), torch.backends.mkldnn.enabled),
    }


def fails_everywhere(case: str, error: type[BaseException], before: int, stride: int) -> int:
    """Fail at call 1, 1 + stride, ... of step number `before`, until it ends; how many times it failed."""
    twin = model_of(case, norm=True)
    undisturbed = CASES[case](twin)
    model = model_of(case, norm=True)
    optimizer = CASES[case](model)
    for each, own in ((twin, undisturbed), (model, optimizer)):
        torch.manual_seed(1)
        for step in range(before):
            own.step(*objectives_of(case, each, step))
    drawn = torch.get_rng_state()
    undisturbed.step(*objectives_of(case, twin, before))
    expected = everything(twin, undisturbed)
    torch.set_rng_state(drawn)
    arguments, k, failed = objectives_of(case, model, before), 1, 0
    start = everything(model, optimizer)
    while True:
        calls = Calls(k, error)
        try:
            with calls.watching(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*example by example")
                optimizer.step(*arguments)
            if calls.count >= k:  # vmap seemed to refuse, and the examples were taken one by one
                return failed
        except error:
            failed += 1
            assert everything(model, optimizer) == start, f"call {k}"
        if calls.count < k:
            break
        k += stride
    found = everything(model, optimizer)
    for each in (found, expected):
        each["report"] = each["report"].partition("seconds=")[0]
    assert found == expected
    return failed


DEAR = ("blocks", "Kronecker over blocks")
"""Cases whose steps make so many calls that every 23rd takes ten seconds."""
ALL_OVER = [pytest.param(case, marks=pytest.mark.slow if case in DEAR else ()) for case in CASES]


@pytest.mark.parametrize("case", ALL_OVER)
def test_an_exception_at_calls_all_over_a_step(case):
    for error, before, stride in ((Broken, 0, 23), (KeyboardInterrupt, 3, 29)):
        assert fails_everywhere(case, error, before, stride) > 3


@pytest.mark.slow
@pytest.mark.parametrize("before", [0, 1, 3])
@pytest.mark.parametrize("case", CASES)
def test_an_exception_at_every_call_of_a_step(case, before):
    assert fails_everywhere(case, Broken, before, 1) > 50
