"""Curvature of one chunk: which method computes its tangents, its products and quadratic forms."""

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from ..chunks import Chunk
from ..objective import Objective
from ..parameters import ParameterSpace
from .forward_pass import ForwardPass, Tensors
from .loss_curvature import LossCurvature
from .tangents import Push, double_backward, double_backward_gradient, linearized

METHODS = ("auto", "linearize", "double_backward")

TRACE_PAYS = 15_000_000
"""Parameters times rows of a chunk from which tracing it at every step pays on a CPU.

Measured on a small convolutional network (38,282 parameters, one thread, torch 2.13), set-up and 13 products: with the
trace 0.28 s, 0.52 s and 1.06 s at 128, 384 and 896 rows, without it 0.17 s, 0.56 s and 1.35 s. Networks without
convolutions gain nothing from it.
"""


class ChunkCurvature:
    """Loss, gradient and products of one chunk. What is not asked for is not computed.

    Attributes:
        main: the forward pass of loss and gradient.
        method: "linearize" or "double_backward" once there is a product; "auto" until then, if that was asked for.
    """

    def __init__(
        self,
        objective: Objective,
        chunk: Chunk,
        index: int,
        space: ParameterSpace,
        buffers: Mapping[str, Tensor],
        hessian: bool,
        dtype: torch.dtype | None,
        method: str,
    ):
        self.space, self.hessian, self.method = space, hessian, method
        self.main = ForwardPass(objective, chunk, index, space, buffers)
        self._arguments = (objective, chunk, index, space, buffers)
        self._dtype = dtype
        self._push: Push | None = None

    def gradient(self) -> Tensor:
        """The chunk's gradient [P]."""
        return self.space.flatten(self.main.gradient())

    def product(self, v: Tensor) -> Tensor:
        """The chunk's curvature matrix times v [P]."""
        pushed = self._tangents(self._split(v))
        if self.hessian:
            return self.space.flatten(pushed)
        return self.space.flatten(self._curved.pull(self._loss_curvature.multiply(pushed)))

    def quadratic_form(self, v: Tensor) -> Tensor:
        """v'Cv, scalar."""
        split = self._split(v)
        pushed = self._tangents(split)
        times = split if self.hessian else self._loss_curvature.multiply(pushed)
        terms = [
            torch.dot(x.reshape(-1).to(v.dtype), y.reshape(-1).to(v.dtype)) for x, y in zip(pushed, times, strict=True)
        ]
        return torch.stack(terms).sum() if terms else v.new_zeros(())

    def _split(self, v: Tensor) -> list[Tensor]:
        return self.space.unflatten(v, self._dtype)

    @cached_property
    def _curved(self) -> ForwardPass:
        """The forward pass of the products: the main one, or one in another dtype."""
        return self.main if self._dtype is None else ForwardPass(*self._arguments, dtype=self._dtype)

    @cached_property
    def _loss_curvature(self) -> LossCurvature:
        return LossCurvature(self._curved)

    def _tangents(self, v: Tensors) -> Tensors:
        """Tangents of the outputs (of the gradient, for the Hessian) along v, by the first method that works."""
        forward = self._curved
        if not (forward.loss.requires_grad if self.hessian else forward.outputs):
            return [torch.zeros_like(leaf) for leaf in forward.leaves] if self.hessian else []
        if self._push is not None:
            return self._push(v)
        if self.method != "auto":
            self._push = self._build(self.method)
            return self._push(v)
        failures: list[Exception] = []
        for method in self._ladder():
            try:
                push = self._build(method)
                tangents = push(v)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, NotImplementedError, AssertionError) as error:
                failures.append(error)
            else:
                self._push, self.method = push, method
                return tangents
        raise RuntimeError(
            f"{type(forward.objective.model).__name__} has a layer that can be differentiated neither twice nor in "
            f"forward mode: {failures[0]}. Replace that layer, or leave its parameters out of the optimizer"
        ) from failures[0]

    def _build(self, method: str) -> Push:
        if self.hessian:
            return double_backward_gradient(self._curved)
        return linearized(self._curved) if method == "linearize" else double_backward(self._curved)

    def _ladder(self) -> list[str]:
        """The methods in the order in which they are tried."""
        forward = self._curved
        if self.hessian or forward.random:  # tracing would draw the random numbers anew
            return ["double_backward"]
        model = forward.objective.model
        traces = (
            self.space.device.type == "cpu"
            and self.space.size * forward.chunk.rows >= TRACE_PAYS
            and any(isinstance(module, _ConvNd) for module in model.modules())
        )
        return ["linearize", "double_backward"] if traces else ["double_backward", "linearize"]
