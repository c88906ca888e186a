"""Kernels that have the derivatives curvature products need."""

import contextlib
import warnings
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextlib.contextmanager
def differentiable_kernels(model: nn.Module) -> Iterator[None]:
    """Within, attention and recurrent layers run on kernels that can be differentiated twice and forward.

    The fused attention kernels have neither forward-mode nor second derivatives, nor have the fused recurrent kernels
    of cuDNN and oneDNN. Attention goes to the math backend; where the model has a recurrent layer, cuDNN and oneDNN
    are off; the inference fast path of multi-head attention is off.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with contextlib.ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message="TF32 acceleration on top of oneDNN")  # said by setting any flag
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        torch.backends.mha.set_fastpath_enabled(False)
        yield


@contextlib.contextmanager
def quiet_forward_mode() -> Iterator[None]:
    """Within, torch's first use of forward mode imports its decompositions without a warning of its own workings."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated", category=DeprecationWarning)
        yield
