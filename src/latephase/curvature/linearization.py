"""The objective linearised at the current parameters: loss, gradient, and products that share one linearisation."""

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from ..objective import Objective
from .chunk_curvature import METHODS, ChunkCurvature

CURVATURES = ("ggn", "hessian")


def linearize(
    objective: Objective,
    curvature: str = "ggn",
    parameters: Sequence[nn.Parameter] | None = None,
    dtype: torch.dtype | None = None,
    method: str = "auto",
    products: bool = True,
) -> "Linearization":
    """Linearise an objective at the current parameters.

    Args:
        objective: what to linearise.
        curvature: "ggn", the generalised Gauss-Newton matrix J' H_L J (Schraudolph 2002), positive semi-definite where
            the loss is convex in the outputs; or "hessian".
        parameters: the parameters of the flat vectors [P], in order. Default: the model's trainable parameters in
            `model.parameters()` order.
        dtype: dtype in which the products run, the loss kept in the outputs' own. Default: the parameters' own.
        method: how the tangents of the outputs are computed: "linearize" (`torch.func.linearize`, a forward-mode
            trace), "double_backward" (through the pull-back), or "auto": the one that is expected to be faster, and
            the other where a layer does not support it. Tracing pays for large convolutional problems on a CPU. The
            Hessian knows the second only.
        products: whether products will be asked for. The graphs of all chunks are kept for them; without, the loss and
            the gradient are computed and each chunk's graph is let go.

    Raises:
        ValueError: an unknown option, a parameter that is not the model's, none that is trainable, or data that is not
            finite.
    """
    if curvature not in CURVATURES:
        raise ValueError(f"curvature must be one of {', '.join(CURVATURES)}; got {curvature!r}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    if curvature == "hessian" and method == "linearize":
        raise ValueError("the Hessian is computed by double_backward only; method must be 'auto' or 'double_backward'")
    return Linearization(objective, curvature, parameters, dtype, method, products)


class Linearization:
    """Loss, gradient and curvature products at the parameters of one moment.

    Attributes:
        loss: f(theta), scalar.
        space: order, shapes and dtype of the flat vectors [P].
        products: how many products have been computed.
    """

    def __init__(self, objective, curvature, parameters, dtype, method, products):
        self.objective: Objective = objective
        self.curvature: str = curvature
        self.space = objective.space(parameters)
        self._versions = self.space.versions()
        self.products = 0
        self._parts: list[ChunkCurvature] = []
        self._buffers = objective.buffers()
        self._decay = objective.weight_decay.of(self.space.parameters)
        hessian = curvature == "hessian"

        def term(chunk, index):
            part = ChunkCurvature(objective, chunk, index, self.space, self._buffers, hessian, dtype, method)
            self._buffers = part.main.buffers
            if products:
                self._parts.append(part)
                return (part.main.loss.detach(),)
            return part.main.loss.detach(), part.gradient()

        loss, *gradient = objective.sum(term)
        if gradient:
            self.gradient = self._decayed(gradient[0], self.space.values())
        self.loss: Tensor = loss + objective.weight_decay.value()
        if not self.loss.isfinite():
            objective.check_data()

    @cached_property
    def gradient(self) -> Tensor:
        """Gradient of f [P]."""
        self._check_unchanged()
        return self._sum(lambda part: part.gradient(), self.space.values())

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
        v = self._checked(v)
        self.products += 1
        return self._sum(lambda part: part.product(v), v)

    def quadratic_form(self, v: Tensor) -> Tensor:
        """v'Cv, scalar; with the Gauss-Newton matrix one tangent pass and no backward pass.

        Args:
            v: vector [P].

        Raises:
            RuntimeError: as `matvec`.
            ValueError: as `matvec`.
        """
        v = self._checked(v)
        (form,) = self.objective.sum(lambda chunk, index: (self._parts[index].quadratic_form(v).to(v.dtype),))
        for piece, decay in zip(v.split(self.space.sizes), self._decay, strict=True):
            if decay:
                form = form + decay * torch.dot(piece, piece)
        return form

    @property
    def method(self) -> str:
        """How the tangents are computed: "linearize" or "double_backward" (the latter if any chunk needs it)."""
        return max((part.method for part in self._parts), key=METHODS.index)

    @property
    def buffers(self) -> dict[str, Tensor]:
        """The model's buffers by name, as this linearisation's forward pass leaves them."""
        return self._buffers

    def _sum(self, term: Callable[[ChunkCurvature], Tensor], decayed: Tensor) -> Tensor:
        """Sum of the chunks' vectors, and the L2 term's share: the coefficient times `decayed`."""
        (total,) = self.objective.sum(lambda chunk, index: (term(self._parts[index]),))
        return self._decayed(total, decayed)

    def _decayed(self, total: Tensor, decayed: Tensor) -> Tensor:
        pieces = zip(total.split(self.space.sizes), decayed.split(self.space.sizes), self._decay, strict=True)
        for piece, value, decay in pieces:
            if decay:
                piece.add_(value, alpha=decay)
        return total

    def _checked(self, v: Tensor) -> Tensor:
        self._check_unchanged()
        if not self._parts:
            raise RuntimeError("linearised with products=False; call linearize again to multiply")
        if v.device != self.space.device:
            raise ValueError(f"the vector is on {v.device}, the parameters are on {self.space.device}")
        if v.shape != (self.space.size,):
            raise ValueError(f"the vector must have shape [{self.space.size}], got {list(v.shape)}")
        return v.detach().to(self.space.dtype)

    def _check_unchanged(self) -> None:
        if self.space.versions() != self._versions:
            raise RuntimeError("the parameters changed since the objective was linearised; call linearize again")
