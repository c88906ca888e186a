"""Curvature of one chunk: by a trace, or by a graph of autograd that is kept."""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from ..objective import Objective, available
from .chunk_task import ChunkTask
from .eager import ForwardPass, Retained, trace_pays
from .tracing import TracedPass, traced_pass

METHODS = ("auto", "traced", "linearize", "double_backward")


class ChunkCurvature:
    """Loss, gradient and products of one chunk. What is not asked for is not computed.

    Args:
        task: the chunk, where, and which products. The loss and the gradient are in the parameters' own dtype.
        method: how products are computed, one of `METHODS`.
        at_once: trace a shape that is seen for the first time.
        compile: send traced products through `torch.compile`.

    Attributes:
        task: what was asked for.
        loss: the chunk's loss, scalar.
        buffers: the model's buffers after the pass.
        reason: why it is not traced, in words; None where it is, or where another method was asked for.
    """

    def __init__(self, task: ChunkTask, method: str, at_once: bool, compile: bool):
        self.task, self.reason = task, None
        self._space, self._dtype = task.space, task.dtype
        self._asked, self._compile = method, compile
        self._at_once = at_once or method == "traced"
        self._traced = self._trace() if method in ("auto", "traced") else None
        main = ForwardPass(task.in_own_dtype()) if self._traced is None or task.dtype else self._traced
        self.loss, self.buffers = main.loss.detach(), main.buffers
        self._main: ForwardPass | TracedPass | None = main

    @property
    def method(self) -> str:
        """How products are computed; without a trace "auto" until there is one."""
        return "traced" if self._traced is not None else self._retained.method

    @property
    def has_graph(self) -> bool:
        """Whether a pass with its graph, in the parameters' own dtype, is kept."""
        return isinstance(self._main, ForwardPass)

    def forward(self) -> ForwardPass:
        """The pass with its graph, in the parameters' own dtype: the one that is kept, or another."""
        return self._main if isinstance(self._main, ForwardPass) else ForwardPass(self.task.in_own_dtype())

    def gradient(self) -> Tensor:
        """The chunk's gradient [P]; asked for once."""
        main = self._main
        if main is None:
            main = ForwardPass(self.task.in_own_dtype())
        if self._dtype is not None:  # the products have a pass of their own, so that this one may go
            self._main = None
        return self._space.flatten(main.gradient())

    def product(self, v: Tensor) -> Tensor:
        """The chunk's curvature matrix times v [P]."""
        split = self.split(v)
        if self._traced is not None:
            return self._space.flatten(self._traced.product(split, self._compile))
        return self._space.flatten(self._retained.product(split))

    def quadratic_form(self, v: Tensor) -> Tensor:
        """v'Cv, scalar."""
        return self._products.quadratic_form(self.split(v))

    @property
    def traced(self) -> TracedPass | None:
        """The pass of the products by a trace; None where the chunk is not traced."""
        return self._traced

    def storages(self) -> dict[int, int]:
        """Bytes of each storage that is kept for products, by its address."""
        return self._products.storages()

    @property
    def _products(self) -> TracedPass | Retained:
        return self._retained if self._traced is None else self._traced

    @cached_property
    def _retained(self) -> Retained:
        """The graph of the products: the main pass's, or one in another dtype."""
        shared = self._main if self._dtype is None and isinstance(self._main, ForwardPass) else None
        forward = shared or ForwardPass(self.task)
        return Retained(forward, self.task.hessian, self._asked)

    def _trace(self) -> TracedPass | None:
        """The pass of the products by a trace; None where there is none, with the reason."""
        at_once = self._at_once or trace_pays(self.task.objective.model, self._space, self.task.chunk.extent)
        found = traced_pass(self.task, self._reference, at_once, insist=self._asked == "traced")
        if not isinstance(found, str):
            return found
        if self._asked == "traced":
            raise RuntimeError(f"method 'traced' is not possible: {found}; use method='auto'")
        self.reason = found
        return None

    def _reference(self) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Loss and product of the products' pass by another method, to check a trace with."""
        other = Retained(ForwardPass(self.task), self.task.hessian, "double_backward")
        return other.forward.loss.detach(), lambda v: self._space.flatten(other.product(self.split(v)))

    def split(self, v: Tensor) -> list[Tensor]:
        """Vector [P] -> tensors in the parameters' shapes, in the dtype of the products."""
        return self._space.unflatten(v, self._dtype)


def fitting(objective: Objective, device: torch.device) -> Callable[[ChunkCurvature], bool]:
    """A function of the chunks in order: whether what products need of each may be kept beside what is kept already."""
    if len(objective.chunks) == 1:  # there is nothing to gain from letting go of it
        return lambda part: True
    limit = available(device) // 2 if objective.memory_limit is None else objective.memory_limit
    stored: dict[int, int] = {}

    def fits(part: ChunkCurvature) -> bool:
        more = part.storages()
        if sum((stored | more).values()) > limit:
            return False
        stored.update(more)
        return True

    return fits
