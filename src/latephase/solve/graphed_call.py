"""Work on a CUDA device recorded once and replayed."""

import contextlib
import warnings
from collections.abc import Callable

import torch

WARM_UP = 3
"""Calls before the capture, as in PyTorch's own examples: kernels are chosen and workspaces allocated in them."""


class GraphedCall:
    """A function without arguments that works in place, called as it is at first and replayed as a CUDA graph then.

    The first calls are real ones, and the warm-up at once. Where the function cannot be captured, a warning says why
    and it is called as it is for good; the tensors are then as after the calls so far, since what is captured does not
    run.

    Args:
        function: what to call. Must enqueue the same work on the same tensors every time.
        device: a CUDA device.
    """

    def __init__(self, function: Callable[[], None], device: torch.device):
        self.function = function
        self.device = device
        current = torch.cuda.current_stream(device)
        # The default stream cannot be captured. Any other is kept: autograd runs a backward pass on the stream of its
        # forward pass, and that may be this one.
        usable = current != torch.cuda.default_stream(device)
        self.stream = current if usable else torch.cuda.Stream(device)
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Call the function, or replay it."""
        if self.calls == WARM_UP:
            self._capture()
        self.calls += 1
        if self.graph is not None:
            self.graph.replay()
        elif self.calls <= WARM_UP:
            self._call_aside()
        else:
            self.function()

    def _call_aside(self) -> None:
        """Call the function on the stream of the capture, in order with the current stream."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            self.function()
        torch.cuda.current_stream(self.device).wait_stream(self.stream)

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            self._record(self.function, graph)
        except RuntimeError as error:
            cause = error
            while isinstance(cause.__context__, RuntimeError):
                cause = cause.__context__  # the failure itself; what follows only says that the capture is void
            warnings.warn(
                f"an iteration could not be captured as a CUDA graph ({cause}); conjugate gradients go on without. "
                "Products that read the device or allocate outside of PyTorch cannot be captured",
                stacklevel=4,
            )
            # A void capture leaves PyTorch's random generator in capture mode (as of 2.11); a valid one ends that.
            with contextlib.suppress(RuntimeError):
                self._record(lambda: torch.zeros(1, device=self.device).add_(1), torch.cuda.CUDAGraph())
            return
        self.graph = graph

    def _record(self, function: Callable[[], object], graph: torch.cuda.CUDAGraph) -> None:
        # torch.cuda.graph leaves its stream current where ending the capture fails; the outer context puts it back.
        # "thread_local": other threads, as those that pin the memory of a data loader, may go on meanwhile.
        with (
            torch.cuda.device(self.device),
            torch.cuda.stream(self.stream),
            torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"),
        ):
            function()
