"""The objective linearised at the current parameters: loss, gradient, and products that share one linearisation."""

from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..objective import Objective
from ..parameters import Versions
from .chunk import METHODS, ChunkCurvature, fitting
from .chunk_task import ChunkTask
from .row_methods import RowMethods

Term = Callable[[ChunkCurvature, bool], Tensor]
"""(a chunk, whether it is kept for further products) -> its share."""

CURVATURES = ("ggn", "hessian")


def linearize(
    objective: Objective,
    curvature: str = "ggn",
    parameters: Sequence[nn.Parameter] | None = None,
    dtype: torch.dtype | None = None,
    method: str = "auto",
    products: bool = True,
    at_once: bool = False,
    compile: bool = False,
) -> "Linearization":
    """Linearise an objective at the current parameters.

    Args:
        objective: what to linearise.
        curvature: "ggn", the generalised Gauss-Newton matrix J' H_L J (Schraudolph 2002), positive semi-definite where
            the loss is convex in the outputs; or "hessian".
        parameters: the parameters of the flat vectors [P], in order. Default: the model's trainable parameters in
            `model.parameters()` order.
        dtype: dtype in which the products run, the loss kept in the outputs' own. Default: the parameters' own.
        method: how products are computed: "traced" (a graph partially evaluated, made once per shape and kept for later
            steps), "linearize" (`torch.func.linearize`, which traces at every call), "double_backward" (through the
            pull-back of a retained graph), or "auto": traced from the second time that a shape is seen, otherwise the
            one of the others that is expected to be faster, or the one that supports every layer. The Hessian does
            not know "linearize".
        products: whether products will be asked for. Without, the loss and the gradient are computed and each chunk's
            graph is let go. With, what they need is kept for as many chunks as the objective's `memory_limit` allows;
            the other chunks are linearised anew at every product.
        at_once: with "auto", trace a shape when it is seen for the first time. Default False: tracing costs some
            products, and a shape may come once only.
        compile: send traced products through `torch.compile`. Default False: it takes some tens of seconds per shape.
            Where compilation fails, a warning says so and products run uncompiled.

    Raises:
        ValueError: an unknown option, a parameter that is not the model's, none that is trainable, or data that is not
            finite.
        RuntimeError: method "traced", and the model cannot be traced.
    """
    if curvature not in CURVATURES:
        raise ValueError(f"curvature must be one of {', '.join(CURVATURES)}; got {curvature!r}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    if curvature == "hessian" and method == "linearize":
        raise ValueError(
            "torch.func.linearize does not serve the Hessian; method must be auto, traced or double_backward"
        )
    return Linearization(objective, curvature, parameters, dtype, method, products, at_once, compile)


class Linearization(RowMethods):
    """Loss, gradient and curvature products at the parameters of one moment.

    Attributes:
        loss: f(theta), scalar.
        objective: without terms that were added to it, such as structural damping.
        source: what was linearised: the objective with them.
        space: order, shapes and dtype of the flat vectors [P].
        buffers: the model's buffers by name, as this linearisation's forward pass leaves them.
        products: how many products have been computed.
        recomputed: how many chunks are linearised anew at every product, for want of memory.
        kept: what else was made of this linearisation and lives as long, such as products by blocks.
    """

    def __init__(self, objective, curvature, parameters, dtype, method, products, at_once, compile):
        self.objective: Objective = objective.plain
        self.source: Objective = objective
        self.curvature: str = curvature
        self.space = objective.space(parameters)
        self._versions = Versions(self.space.parameters, values=products)
        self.products = 0
        self._options = (method if products else "double_backward", at_once, compile)
        self._parts: list[ChunkCurvature | ChunkTask] = []
        self.kept: dict[Hashable, Any] = {}
        self._ways: dict[int, tuple[str, str | None]] = {}
        self.buffers: dict[str, Tensor] = objective.buffers()
        self._decay = objective.weight_decay.of(self.space.parameters)
        fits = fitting(objective, self.space.device)

        def term(chunk, index):
            task = ChunkTask(objective, chunk, index, self.space, self.buffers, curvature == "hessian", dtype)
            part = ChunkCurvature(task, *self._options)
            self.buffers = part.buffers
            if not products:
                return part.loss, part.gradient()
            self._parts.append(part if fits(part) else task)
            return (part.loss,)

        loss, *gradient = objective.sum(term)
        if gradient:
            self.gradient = self._decayed(gradient[0], self.space.values())
        self.loss: Tensor = loss + objective.weight_decay.value()
        self.recomputed = sum(not isinstance(part, ChunkCurvature) for part in self._parts)
        self._of_data = Versions(self._constants(), values=False) if products else None
        if not self.loss.isfinite():
            objective.check_data()

    def unwatched(self) -> "Linearization":
        """Itself, with products that see only the writes into parameters that torch counts.

        For an optimizer, which writes nothing within its step: comparing values takes a product's thousandth to
        hundredth and, on CUDA, a halt.
        """
        self._versions.forget_values()
        self._of_data = None
        return self

    @cached_property
    def gradient(self) -> Tensor:
        """Gradient of f [P]."""
        self._check_unchanged()
        return self.sum_of_chunks(lambda part, _: part.gradient(), self.space.values())

    def matvec(self, v: Tensor) -> Tensor:
        """The curvature matrix times a vector.

        Args:
            v: vector [P].

        Returns:
            The product [P], in the dtype of the flat vectors.

        Raises:
            RuntimeError: the parameters changed since, or a layer has neither derivative that products need.
            ValueError: v is not of shape [P].
        """
        v = self.checked(v)
        self.products += 1
        return self.sum_of_chunks(lambda part, _: part.product(v), v)

    def quadratic_form(self, v: Tensor) -> Tensor:
        """v'Cv, scalar; with the Gauss-Newton matrix one tangent pass and no backward pass.

        Args:
            v: vector [P].

        Raises:
            RuntimeError: as `matvec`.
            ValueError: as `matvec`.
        """
        v = self.checked(v)
        form = self._each(lambda part, _: part.quadratic_form(v).to(v.dtype))
        for piece, decay in zip(v.split(self.space.sizes), self._decay, strict=True):
            if decay:
                form = form + decay * torch.dot(piece, piece)
        return form

    @property
    def method(self) -> str:
        """How products are computed: "traced", "linearize" or "double_backward"; the last of these that a chunk needed.

        Known from the first product on; before it, "auto" for chunks that are not traced.
        """
        return max((method for method, _ in self._used()), key=METHODS.index)

    @property
    def reason(self) -> str | None:
        """Why a chunk is not traced, in words; None where all are, or where another method was asked for."""
        return next((reason for _, reason in self._used() if reason), None)

    def _used(self) -> list[tuple[str, str | None]]:
        kept = [(part.method, part.reason) for part in self._parts if isinstance(part, ChunkCurvature)]
        return [*kept, *self._ways.values()] or [(self._options[0], None)]

    def _each(self, term: Term) -> Tensor:
        """Sum of a term over the chunks, each kept or linearised anew."""

        def of_chunk(_, index):
            part = self._parts[index]
            if isinstance(part, ChunkCurvature):
                return (term(part, True),)
            part = ChunkCurvature(part, *self._options)
            result = term(part, False)
            self._ways[index] = part.method, part.reason
            return (result,)

        return self.source.sum(of_chunk)[0]

    def sum_of_chunks(self, term: Term, decayed: Tensor) -> Tensor:
        """Sum of the chunks' vectors, and the L2 term's share: the coefficient times `decayed`."""
        return self._decayed(self._each(term), decayed)

    def _decayed(self, total: Tensor, decayed: Tensor) -> Tensor:
        pieces = zip(total.split(self.space.sizes), decayed.split(self.space.sizes), self._decay, strict=True)
        for piece, value, decay in pieces:
            if decay:
                piece.add_(value, alpha=decay)
        return total

    def checked(self, v: Tensor) -> Tensor:
        """A vector [P] that products can be computed of, in the dtype of the flat vectors."""
        self._check_unchanged()
        self._check_parts()
        if v.device != self.space.device:
            raise ValueError(f"the vector is on {v.device}, the parameters are on {self.space.device}")
        if v.shape != (self.space.size,):
            raise ValueError(f"the vector must have shape [{self.space.size}], got {list(v.shape)}")
        return v.detach().to(self.space.dtype)

    def _check_parts(self) -> None:
        if not self._parts:
            raise RuntimeError("linearised with products=False; call linearize again to multiply")

    def _check_unchanged(self) -> None:
        if not self._versions.hold():
            raise RuntimeError("the parameters changed since the objective was linearised; call linearize again")
        if self._of_data is not None and not self._of_data.hold():
            raise RuntimeError(
                "inputs, targets or parameters that do not move were written in place since the objective was "
                "linearised; call linearize again, or give the objective a copy of them"
            )

    def _constants(self) -> list[Tensor]:
        """What products read beside the parameters of the space: data, and the model's other parameters."""
        chunks, own = self.source.chunks, {id(p) for p in self.space.parameters}
        data = [leaf for chunk in chunks for leaf in tree_leaves((chunk.inputs, chunk.targets))]
        others = [p for p in self.objective.model.parameters() if id(p) not in own]
        return [*(leaf for leaf in data if isinstance(leaf, Tensor)), *others]
