"""Kernels that have the derivatives curvature products need."""

import contextlib
import sys
import threading
import warnings
from collections.abc import Iterator

import torch
from torch import nn

from .exclusive import exclusive


@contextlib.contextmanager
def differentiable_kernels(model: nn.Module) -> Iterator[None]:
    """Within, attention and recurrent layers run on kernels that can be differentiated twice and forward.

    The fused attention kernels have neither forward-mode nor second derivatives, nor have the fused recurrent kernels
    of cuDNN and oneDNN. Attention goes to the math backend; cuDNN and oneDNN are off while a recurrent layer runs, and
    on again for what follows it; the inference fast path of multi-head attention is off; gradients of embeddings are
    dense; what is compiled runs as it was written. These settings are the process's, so that other threads wait to do
    the same.
    """
    with exclusive(), contextlib.ExitStack() as stack:
        fast_path = torch.backends.mha.get_fastpath_enabled()
        stack.enter_context(as_written())
        _attention_by_mathematics(stack)
        for module in model.modules():
            if isinstance(module, nn.RNNBase):
                stack.enter_context(_without_fused_kernels(module))
            elif isinstance(module, nn.Embedding) and module.sparse:  # a sparse gradient has no second derivative
                stack.callback(setattr, module, "sparse", True)
                module.sparse = False
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        torch.backends.mha.set_fastpath_enabled(False)
        yield


class _AsWritten:
    """The stance of torch.compile's that is shared by all threads that are within: the last to leave puts it back."""

    def __init__(self):
        self.lock, self.within, self.stance = threading.Lock(), 0, contextlib.ExitStack()

    def enter(self) -> None:
        with self.lock:
            if self.within == 0:
                self.stance.enter_context(torch.compiler.set_stance("force_eager"))
            self.within += 1

    def leave(self) -> None:
        with self.lock:
            self.within -= 1
            if self.within == 0:
                self.stance.close()


_as_written = _AsWritten()


@contextlib.contextmanager
def as_written() -> Iterator[None]:
    """Within, whatever went through `torch.compile` runs uncompiled: a submodule, a loss, a function that they call.

    Compiled code can be differentiated once. Its second derivatives raise or, worse, are zero.
    """
    if "torch._dynamo" not in sys.modules:  # nothing can have been compiled, and importing it takes seconds
        yield
        return
    _as_written.enter()
    try:
        yield
    finally:
        _as_written.leave()


def _attention_by_mathematics(stack: contextlib.ExitStack) -> None:
    """What `sdpa_kernel(SDPBackend.MATH)` does, at a tenth of its time, which shows in small passes."""
    backends, math = torch.backends.cuda, torch.backends.cuda.math_sdp_enabled()
    fused = [
        (backends.enable_flash_sdp, backends.flash_sdp_enabled()),
        (backends.enable_mem_efficient_sdp, backends.mem_efficient_sdp_enabled()),
        (backends.enable_cudnn_sdp, backends.cudnn_sdp_enabled()),
    ]
    for enable, enabled in fused:
        if enabled:
            stack.callback(enable, True)
            enable(False)
    if not math:
        stack.callback(backends.enable_math_sdp, False)
        backends.enable_math_sdp(True)


@contextlib.contextmanager
def _without_fused_kernels(module: nn.Module) -> Iterator[None]:
    """Within, cuDNN and oneDNN are off whenever the module runs."""
    running = contextlib.ExitStack()

    def enter(*_: object) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="TF32 acceleration on top of oneDNN")  # said by setting any flag
            running.enter_context(torch.backends.mkldnn.flags(enabled=False))
            running.enter_context(torch.backends.cudnn.flags(enabled=False))

    def leave(*_: object) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="TF32 acceleration on top of oneDNN")
            running.close()

    before = module.register_forward_pre_hook(enter, prepend=True)
    after = module.register_forward_hook(leave, always_call=True)
    try:
        yield
    finally:
        leave()
        before.remove()
        after.remove()


@contextlib.contextmanager
def quiet_forward_mode() -> Iterator[None]:
    """Within, torch's first use of forward mode imports its decompositions without a warning of its own workings."""
    with exclusive(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")
        yield


@contextlib.contextmanager
def plain_operators(device: torch.device) -> Iterator[None]:
    """Within, operators do what a graph says and no more: no autograd, no autocast."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield
