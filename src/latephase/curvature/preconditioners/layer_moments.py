"""Second moments of what goes into a layer, and of the slopes that come back to it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True)
class Layer:
    """A layer that gets factors.

    Attributes:
        name: of the module.
        weight: where its weight begins in the flat vector; -1 where that is outside the space.
        bias: the same of its bias.
        inputs: columns of the weight as a matrix.
        outputs: its rows.
        joint: whether weight and bias are in one block, the bias as a column more.
    """

    name: str
    weight: int
    bias: int
    inputs: int
    outputs: int
    joint: bool

    @property
    def columns(self) -> int:
        """Size of the factor of the inputs; 0 where there is none."""
        return self.inputs + self.joint if self.weight >= 0 else 0


class LayerMoments:
    """Sums the second moments of a layer's inputs and of the slopes in its outputs, while its context is entered.

    Args:
        layer: which.
        module: the same.
        count: what the inputs' moments are divided by, beside the positions of an example.
        weight_sharing: "expand" or "reduce".

    Attributes:
        layer: which.
        inputs: the sum over the passes [columns, columns]; None where there was none.
        slopes: the same [outputs, outputs], over the backward passes.
    """

    def __init__(self, layer: Layer, module: nn.Module, count: float, weight_sharing: str):
        self.layer, self._module, self._count = layer, module, count
        self._reduces = weight_sharing == "reduce"
        self.inputs: Tensor | None = None
        self.slopes: Tensor | None = None
        self._hook: RemovableHandle | None = None

    def __enter__(self) -> "LayerMoments":
        self._hook = self._module.register_forward_hook(self._called)
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._hook is not None
        self._hook.remove()

    def _called(self, module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        if self.layer.columns:
            self.inputs = _plus(self.inputs, self._of_inputs(arguments[0].detach()))
        if output.requires_grad:
            output.register_hook(self._arrived)

    def _of_inputs(self, inputs: Tensor) -> Tensor:
        """The second moment [columns, columns] of inputs [N, ..., columns], or of a convolution's patches."""
        if isinstance(self._module, nn.Conv2d):
            inputs = (_mean_patch if self._reduces else _patches)(self._module, inputs)
        positions = tuple(range(1, inputs.dim() - 1))
        if self._reduces and positions:
            inputs = inputs.mean(positions)
        rows = inputs.reshape(-1, inputs.shape[-1])
        if self.layer.joint:
            rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        return _moment(rows).div_(self._count * inputs.shape[1:-1].numel())

    def _arrived(self, slopes: Tensor) -> None:
        slopes = slopes.detach()
        if isinstance(self._module, nn.Conv2d):
            slopes = slopes.movedim(1, -1)
        positions = tuple(range(1, slopes.dim() - 1))
        if self._reduces and positions:
            slopes = slopes.sum(positions)
        rows = slopes.reshape(-1, slopes.shape[-1])
        self.slopes = _plus(self.slopes, _moment(rows))


def _plus(total: Tensor | None, term: Tensor) -> Tensor:
    return term if total is None else total.add_(term)


def _moment(rows: Tensor) -> Tensor:
    """The sum over the rows [N, n] of their outer products with themselves, [n, n]."""
    return torch.einsum("bi,bj->ij", rows, rows)


def _patches(module: nn.Conv2d, inputs: Tensor) -> Tensor:
    """What a convolution multiplies by its weight at each of its positions: [N, positions, columns]."""
    return F.unfold(inputs, module.kernel_size, module.dilation, _padding(module), module.stride).mT


def _mean_patch(module: nn.Conv2d, inputs: Tensor) -> Tensor:
    """Their mean over the positions, [N, columns], axis by axis and so without the patches themselves."""
    axes = zip(inputs.shape[2:], module.kernel_size, module.dilation, _padding(module), module.stride, strict=True)
    shares = [_shares(*axis, inputs) for axis in axes]
    return torch.einsum("nchw,ih,jw->ncij", inputs, *shares).flatten(1)


def _shares(size: int, kernel: int, dilation: int, padding: int, stride: int, like: Tensor) -> Tensor:
    """At which share of a convolution's positions along an axis a weight meets a pixel, [kernel, size]."""
    count = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    weights, positions, pixels = (torch.arange(n, device=like.device) for n in (kernel, count, size))
    met = weights[:, None, None] * dilation + positions[:, None] * stride - padding
    return (met == pixels).to(like.dtype).mean(1)


def _padding(module: nn.Conv2d) -> tuple[int, ...]:
    if module.padding == "same":
        return tuple(d * (k - 1) // 2 for d, k in zip(module.dilation, module.kernel_size, strict=True))
    return (0, 0) if isinstance(module.padding, str) else module.padding
