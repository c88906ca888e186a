"""What several networks share: initialised layers, and the padding that keeps ceil(size / stride) rows and columns."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

Initialize = Callable[[Tensor], Tensor]


class SamePadding(nn.Module):
    """Zeros around images so that a convolution or pooling gives ceil(size / stride) rows and columns.

    An odd zero goes to the bottom and to the right, as TensorFlow's "same" has it.

    Args:
        kernel_size: of the layer that follows.
        stride: of the layer that follows.
    """

    def __init__(self, kernel_size: int, stride: int):
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = stride

    def forward(self, images: Tensor) -> Tensor:
        """Pad images [N, C, H, W]."""
        top, bottom = self._around(images.shape[-2])
        left, right = self._around(images.shape[-1])
        return functional.pad(images, (left, right, top, bottom))

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}"

    def _around(self, size: int) -> tuple[int, int]:
        total = max((-(-size // self.stride) - 1) * self.stride + self.kernel_size - size, 0)
        return total // 2, total - total // 2


def conv(
    channels: int,
    filters: int,
    kernel_size: int,
    stride: int = 1,
    same: bool = True,
    bias: float | None = 0.0,
    initialize: Initialize = nn.init.xavier_normal_,
) -> list[nn.Module]:
    """A convolution, preceded by a layer of padding where the layer's own cannot give "same".

    Args:
        channels: of the input.
        filters: channels of the output.
        kernel_size: odd.
        stride: of the filter.
        same: pad so that ceil(size / stride) rows and columns come out; otherwise do not pad.
        bias: the biases' initial value; None for a layer without.
        initialize: fills the weights.
    """
    inside = same and stride == 1
    layer = nn.Conv2d(channels, filters, kernel_size, stride, kernel_size // 2 if inside else 0, bias=bias is not None)
    fill(layer, bias, initialize)
    return [SamePadding(kernel_size, stride), layer] if same and not inside and kernel_size > 1 else [layer]


def dense(inputs: int, outputs: int, initialize: Initialize = nn.init.xavier_uniform_, bias: float = 0.0) -> nn.Linear:
    """A dense layer; its biases start at the given value."""
    layer = nn.Linear(inputs, outputs)
    fill(layer, bias, initialize)
    return layer


def fill(layer: nn.Conv2d | nn.Linear, bias: float | None, initialize: Initialize) -> None:
    """Initialise a layer's weights by the rule and its biases with the value."""
    initialize(layer.weight)
    if layer.bias is not None and bias is not None:
        nn.init.constant_(layer.bias, bias)


def sparse_(weight: Tensor, connections: int = 15, std: float = 1.0) -> Tensor:
    """Fill the weights of a dense layer so that each unit has a few strong incoming connections and no others.

    Sparse initialisation (Martens 2010, "Deep learning via Hessian-free optimization", Section 5): the sum into a unit
    has the same spread whatever the layer's width, and units differ from each other. `torch.nn.init.sparse_` counts the
    connections of each column, which for a layer's weight are those that leave an input; it is given the transpose.

    Args:
        weight: [units, inputs], filled in place from torch's default generator.
        connections: of each unit; all inputs where there are fewer. Default 15, Martens' number.
        std: of the connected weights, which are normal. Default 1.0, for logistic units.

    Returns:
        The weight.
    """
    if connections < 1:
        raise ValueError(f"connections must be at least 1, got {connections!r}")
    inputs = weight.shape[1]
    # torch sets ceil(sparsity * inputs) weights of a unit to zero: half a weight less leaves no doubt in rounding.
    unconnected = max(inputs - connections - 0.5, 0.0)
    nn.init.sparse_(weight.t(), unconnected / inputs, std)
    return weight


def truncated_normal_(weight: Tensor, std: float) -> Tensor:
    """Fill a tensor with normal numbers of mean 0 and the given scale, drawn again where they exceed two of it.

    The standard deviation of what is left is 0.88 times `std`. Drawn from torch's default generator.
    """
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
