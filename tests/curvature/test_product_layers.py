"""Products through one layer of each kind against dense matrices."""

from collections.abc import Callable

import pytest
import torch
from dense_oracle import dense_oracle
from product_cases import CLASSES, CURVATURES, VECTORS, check_or_refusal, seeded
from torch import Tensor, nn

from latephase import Objective


class Layer(nn.Module):
    """Linear, the function or module under test on [N, 4], and a linear layer on what comes out."""

    def __init__(self, function: Callable[[Tensor], Tensor], width: int = 4):
        super().__init__()
        self.first, self.function, self.last = nn.Linear(4, 4), function, nn.Linear(width, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.function(self.first(inputs)).flatten(1))


class Reshaped(nn.Module):
    """A module applied to [N, *shape]."""

    def __init__(self, shape: tuple[int, ...], module: nn.Module):
        super().__init__()
        self.shape, self.module = shape, module

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.module(inputs.view(-1, *self.shape))
        return outputs[0] if isinstance(outputs, tuple) else outputs


def residual_in_place(inputs: Tensor) -> Tensor:
    outputs = torch.sin(inputs)
    outputs += inputs  # as residual networks are written
    return torch.relu_(outputs)


class Attention(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        x = inputs.view(-1, 1, 2, 2)
        return nn.functional.scaled_dot_product_attention(x, 2.0 * x, x * x, is_causal=True)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "relu_in_place": lambda: Layer(nn.ReLU(inplace=True)),
    "leaky_relu": lambda: Layer(nn.LeakyReLU(0.1)),
    "elu": lambda: Layer(nn.ELU()),
    "selu": lambda: Layer(nn.SELU()),
    "gelu": lambda: Layer(nn.GELU()),
    "gelu_tanh": lambda: Layer(nn.GELU(approximate="tanh")),
    "silu": lambda: Layer(nn.SiLU()),
    "mish": lambda: Layer(nn.Mish()),
    "sigmoid": lambda: Layer(nn.Sigmoid()),
    "log_sigmoid": lambda: Layer(nn.LogSigmoid()),
    "softplus": lambda: Layer(nn.Softplus()),
    "hardswish": lambda: Layer(nn.Hardswish()),
    "hardtanh": lambda: Layer(nn.Hardtanh()),
    "prelu": lambda: Layer(nn.PReLU()),
    "softmax": lambda: Layer(nn.Softmax(dim=1)),
    "log_softmax": lambda: Layer(nn.LogSoftmax(dim=1)),
    "layer_norm": lambda: Layer(nn.LayerNorm(4)),
    "group_norm": lambda: Layer(nn.GroupNorm(2, 4)),
    "average_pooling": lambda: Layer(Reshaped((1, 2, 2), nn.AvgPool2d(2, padding=1)), width=4),
    "adaptive_pooling": lambda: Layer(Reshaped((1, 2, 2), nn.AdaptiveAvgPool2d(1)), width=1),
    "max_pooling_1d": lambda: Layer(Reshaped((1, 4), nn.MaxPool1d(2)), width=2),
    "upsampling": lambda: Layer(Reshaped((1, 2, 2), nn.Upsample(scale_factor=2, mode="bilinear")), width=16),
    "transposed_convolution": lambda: Layer(Reshaped((2, 2), nn.ConvTranspose1d(2, 4, 1)), width=8),
    "lstm": lambda: Layer(Reshaped((2, 2), nn.LSTM(2, 3, batch_first=True)), width=6),
    "gru": lambda: Layer(Reshaped((2, 2), nn.GRU(2, 3, batch_first=True)), width=6),
    "attention": lambda: Layer(Attention()),
    "normalize": lambda: Layer(lambda x: nn.functional.normalize(x, dim=1)),
    "product_and_sum": lambda: Layer(lambda x: torch.cumsum(x, dim=1) * x.prod(dim=1, keepdim=True)),
    "standard_deviation": lambda: Layer(lambda x: (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)),
    "assignment_in_place": lambda: Layer(lambda x: x.clone().mul_(x).add_(1.0).tanh_()),
    "residual_in_place": lambda: Layer(residual_in_place),
    "rms_norm": lambda: Layer(nn.RMSNorm(4)),
    "instance_norm": lambda: Layer(Reshaped((2, 2), nn.InstanceNorm1d(2, affine=True))),
    "batch_norm": lambda: Layer(nn.BatchNorm1d(4)),
    "batch_norm_eval": lambda: Layer(nn.BatchNorm1d(4)).eval(),
    "batch_norm_running_average": lambda: Layer(nn.BatchNorm1d(4, momentum=None)),
    "dilated_convolution": lambda: Layer(Reshaped((1, 4), nn.Conv1d(1, 2, 2, dilation=2)), width=4),
    "strided_convolution": lambda: Layer(Reshaped((1, 4), nn.Conv1d(1, 3, 2, stride=2)), width=6),
    "grouped_convolution": lambda: Layer(Reshaped((2, 2), nn.Conv1d(2, 4, 2, groups=2)), width=4),
    "padded_convolution": lambda: Layer(Reshaped((1, 2, 2), nn.Conv2d(1, 2, 3, padding="same")), width=8),
    "adaptive_max_pooling": lambda: Layer(Reshaped((1, 2, 2), nn.AdaptiveMaxPool2d((1, 2))), width=2),
    "max_pooling_with_overlap": lambda: Layer(Reshaped((1, 2, 2), nn.MaxPool2d(2, 1, padding=1)), width=9),
    "rnn": lambda: Layer(Reshaped((2, 2), nn.RNN(2, 3, batch_first=True)), width=6),
    "layer_norm_without_affine": lambda: Layer(nn.LayerNorm(4, elementwise_affine=False)),
    "indexing": lambda: Layer(lambda x: x[:, [3, 0, 0]], width=3),
    "masking": lambda: Layer(lambda x: x.masked_fill(x > 0.3, 0.5) + torch.where(x > 0, x, x.exp())),
    "sorting": lambda: Layer(lambda x: x.sort(dim=1).values * x.topk(1, dim=1).values),
    "dropout_off": lambda: Layer(nn.Dropout(0.5)).eval(),
}


@pytest.mark.parametrize(
    ("layer", "curvature", "method"),
    [(layer, curvature, "auto") for layer in LAYERS for curvature in CURVATURES]
    + [pytest.param(layer, "ggn", "linearize", marks=pytest.mark.slow) for layer in LAYERS]
    # The second rung of "auto" is the trace already.
    + [
        pytest.param(layer, curvature, "traced", marks=pytest.mark.slow) for layer in LAYERS for curvature in CURVATURES
    ],
)
def test_layers(layer, curvature, method):
    # Each product is asked for more than once: a trace that writes into its own constants is right only the first time.
    model = seeded(LAYERS[layer])
    expected = dense_oracle(model, nn.CrossEntropyLoss(), VECTORS, CLASSES)
    objective = Objective(model, nn.CrossEntropyLoss(), (VECTORS, CLASSES))
    check_or_refusal(objective, expected, curvature, method)
