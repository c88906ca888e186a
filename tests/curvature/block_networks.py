"""Small float64 networks, losses and batches on which products over blocks could go wrong."""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from product_cases import BITS, CLASSES, IMAGES, REALS, ROWS, VECTORS, Case, randn
from torch import Tensor, nn
from torch.nn.utils import parametrizations

TOKENS = torch.randint(0, 7, (ROWS, 4), generator=torch.Generator().manual_seed(21))
SEQUENCES = randn(ROWS, 3, 4, seed=22)
SIX = randn(ROWS, 6, seed=23)
CONDITIONS = randn(ROWS, 2, seed=24)
BITS_OF_SIX = (randn(ROWS, 6, seed=26) > 0).double()
CROSS_ENTROPY, BINARY, SQUARED = nn.CrossEntropyLoss(), nn.BCEWithLogitsLoss(), nn.MSELoss()


class Between(nn.Module):
    """Two layers, a function without parameters (or a module) on what they make, and two more layers."""

    def __init__(self, function: Callable[[Tensor], Tensor], width: int = 4, outputs: int = 3):
        super().__init__()
        self.first, self.code = nn.Linear(4, 5), nn.Linear(5, width)
        self.function, self.wide, self.last = function, nn.Linear(width, 5), nn.Linear(5, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(torch.tanh(self.wide(self.function(self.code(torch.tanh(self.first(inputs)))))))


class Autoencoder(nn.Module):
    """Encoder and decoder with a code of two numbers; the ways that lead past the code are options."""

    def __init__(self, tied: bool = False, skip: bool = False, conditional: bool = False, again: bool = False):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 2))
        self.decoder = nn.Sequential(nn.Linear(4 if conditional else 2, 5), nn.Sigmoid(), nn.Linear(5, 6))
        self.tied, self.skip, self.conditional, self.again = tied, skip, conditional, again
        if tied:  # the decoder's last weight is the encoder's first one, turned
            del self.decoder[2].weight

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        code = self.encoder(x)
        if condition is not None:
            code = torch.cat([code, condition], dim=1)
        hidden = self.decoder[:2](code)
        weight = self.encoder[0].weight.t() if self.tied else self.decoder[2].weight
        outputs = F.linear(hidden, weight, self.decoder[2].bias)
        if self.skip:
            outputs = outputs + self.encoder[0](x).repeat(1, 2)[:, :6]
        return outputs * self.decoder[2].bias.exp() + self.encoder[2].bias.sum() if self.again else outputs


class Heads(nn.Module):
    """A code that two heads read, put together again."""

    def __init__(self):
        super().__init__()
        self.encoder, self.left, self.right = nn.Linear(4, 2), nn.Linear(2, 3), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        code = torch.tanh(self.encoder(x))
        return torch.sin(self.left(code)) * self.right(code)


class Residual(nn.Module):
    """Residual blocks of convolution, normalisation and a shortcut."""

    def __init__(self, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.stem, self.short = nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.Conv2d(2, 4, 1, stride=2)
        self.one, self.two = nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.norms, self.head = nn.ModuleList([norm(2), norm(4)]), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.norms[0](self.stem(x)))
        y = self.norms[1](self.two(torch.tanh(self.one(x))))
        y += self.short(x)
        return self.head(F.adaptive_avg_pool2d(F.silu(y), 1).flatten(1))


class Recurrent(nn.Module):
    """Two recurrent layers as modules of their own, read out at the last place; the rows may be dimension 1 inside."""

    def __init__(self, layer: type[nn.RNNBase], rows_first: bool = True):
        super().__init__()
        self.one, self.two = layer(4, 2, batch_first=rows_first), layer(2, 2, batch_first=rows_first)
        self.head, self.rows_first = nn.Linear(2, 3), rows_first

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.rows_first else x.transpose(0, 1)
        x = self.two(self.one(x)[0])[0]
        return self.head(x[:, -1] if self.rows_first else x[-1])


class Attention(nn.Module):
    """A block of attention with norms, residuals and a feed-forward part; outputs [N, C, T]."""

    def __init__(self):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(4), nn.MultiheadAttention(4, 2, batch_first=True)
        self.again, self.wide, self.narrow = nn.LayerNorm(4), nn.Linear(4, 3), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return (x + self.narrow(F.gelu(self.wide(self.again(x))))).transpose(1, 2)


class Language(nn.Module):
    """Embedding, learned positions, causal attention and a head tied to the embedding; outputs [N, V, T]."""

    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(7, 3), nn.Parameter(randn(4, 3, seed=27))
        self.qkv, self.norm, self.head = nn.Linear(3, 9), nn.LayerNorm(3), nn.Linear(3, 7, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x) + self.positions
        h = h + F.scaled_dot_product_attention(*self.qkv(h).chunk(3, dim=2), is_causal=True)
        return self.head(self.norm(h)).transpose(1, 2)


class Own(nn.Module):
    """Parameters that enter otherwise than as a layer's: as a start, a scale, in an exponential, as a product."""

    def __init__(self):
        super().__init__()
        self.start, self.log_scale = nn.Parameter(randn(3, seed=28)), nn.Parameter(randn(3, seed=29) / 4)
        self.left, self.right = nn.Parameter(randn(4, 2, seed=30)), nn.Parameter(randn(2, 3, seed=31))
        self.temperature, self.last = nn.Parameter(torch.tensor(0.7)), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.start.expand(len(x), 3)
        h = torch.tanh(h * self.log_scale.exp() + x @ self.left @ self.right)
        return self.last(h * self.start) * self.temperature**2


class Branching(nn.Module):
    """A forward pass that reads a number back, which no trace can follow."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(h.tanh() if float(h.detach().sum()) > -1e6 else h)


def perceptron(*widths: int) -> nn.Module:
    layers = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


def norm_after(norm: Callable[[int], nn.Module]) -> nn.Module:
    """Layers with a normalisation behind each, scales and shifts away from one and zero."""
    model = nn.Sequential(nn.Linear(4, 4), norm(4), nn.Tanh(), nn.Linear(4, 4), norm(4), nn.Linear(4, 3))
    with torch.no_grad():
        for p in [*model[1].parameters(), *model[4].parameters()]:
            p.add_(0.3 * torch.randn_like(p))
    return model


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=2, dilation=2, padding_mode="circular"),
        nn.GroupNorm(2, 2),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.ConvTranspose2d(2, 2, 2, stride=2, bias=False),
        nn.InstanceNorm2d(2, affine=True),
        nn.SiLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def frozen_in_between() -> nn.Module:
    model = perceptron(4, 5, 4, 4, 3)
    for p in (*model[2].parameters(), model[4].bias):
        p.requires_grad_(False)
    return model


def reparametrised() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 3), nn.PReLU())


PERMUTATION = torch.tensor([3, 1, 2, 0, 10, 5, 6, 7, 8, 9, 4])
MIXED: dict[str, Callable[[Tensor], Tensor]] = {
    "centred": lambda x: x - x.mean(0),
    "turned": lambda x: x + 0.5 * x.flip(0),
    "permuted": lambda x: x[PERMUTATION],
    "softmax": lambda x: x.softmax(0),
    "sorted": lambda x: x.sort(dim=0).values,
    "gram": lambda x: x @ x.t() @ x / 9,
    "whole_norm": lambda x: x / x.norm(),
    "seen_otherwise": lambda x: x + 0.3 * x.t().reshape(x.shape),
}
"""Functions that make a row depend on others; each stands between a code of two numbers and what reads it."""

NETWORKS = {
    "classifier": Case(lambda: perceptron(4, 6, 5, 4, 3), CROSS_ENTROPY),
    "two_classes": Case(lambda: perceptron(4, 5, 2), CROSS_ENTROPY, targets=CLASSES % 2),
    "one_output": Case(lambda: perceptron(4, 5, 1), SQUARED, targets=REALS[:, :1]),
    "autoencoder": Case(Autoencoder, BINARY, inputs=SIX, targets=BITS_OF_SIX),
    "autoencoder_squared": Case(Autoencoder, nn.MSELoss(reduction="sum"), inputs=SIX, targets=SIX),
    "tied_autoencoder": Case(lambda: Autoencoder(tied=True), BINARY, inputs=SIX, targets=BITS_OF_SIX),
    "past_the_code": Case(lambda: Autoencoder(skip=True), BINARY, inputs=SIX, targets=BITS_OF_SIX),
    "parameters_past_the_code": Case(lambda: Autoencoder(again=True), SQUARED, inputs=SIX, targets=SIX),
    "conditional_decoder": Case(
        lambda: Autoencoder(conditional=True), BINARY, inputs=(SIX, CONDITIONS), targets=BITS_OF_SIX,
        forward=lambda model, inputs: model(*inputs),
    ),
    "coupled_autoencoder": Case(
        Autoencoder, lambda z, y: torch.sqrt(1.0 + (z - y).pow(2).sum()), inputs=SIX, targets=SIX, chunked=False
    ),
    "sequence_autoencoder": Case(
        lambda: perceptron(4, 3, 1, 3, 4), SQUARED, inputs=SEQUENCES, targets=SEQUENCES.flip(0)
    ),
    "two_heads": Case(Heads, SQUARED, targets=REALS),
    "narrow": Case(lambda: Between(nn.Identity(), width=1), BINARY, targets=BITS),
    "batch_norm_at_the_code": Case(lambda: Between(nn.BatchNorm1d(2), width=2), CROSS_ENTROPY),
    "rows_as_columns": Case(
        lambda: Between(lambda x: torch.tanh(x.t())), CROSS_ENTROPY, inputs=VECTORS[:4], targets=CLASSES[:4]
    ),
    "one_row": Case(lambda: perceptron(4, 5, 3), CROSS_ENTROPY, inputs=VECTORS[:1], targets=CLASSES[:1]),
    "rows_pooled": Case(
        lambda: Between(lambda x: x.mean(0, keepdim=True)),
        lambda z, y: (z - y.mean(0)).pow(4).sum(), targets=REALS, chunked=False,
    ),
    "indefinite_loss": Case(
        lambda: perceptron(4, 5, 3), lambda z, y: ((z - y) ** 4 - 3 * z * z.roll(1, 1)).mean(), targets=REALS,
        chunked=False,
    ),
    "frozen_in_between": Case(frozen_in_between, CROSS_ENTROPY),
    "layer_norm": Case(lambda: norm_after(nn.LayerNorm), CROSS_ENTROPY),
    "batch_norm": Case(lambda: norm_after(nn.BatchNorm1d), CROSS_ENTROPY),
    "batch_norm_eval": Case(lambda: norm_after(nn.BatchNorm1d).eval(), CROSS_ENTROPY),
    "convolutional": Case(convolutional, CROSS_ENTROPY, inputs=IMAGES),
    "residual": Case(lambda: Residual(nn.BatchNorm2d).eval(), CROSS_ENTROPY, inputs=IMAGES),
    "residual_training": Case(lambda: Residual(nn.BatchNorm2d), CROSS_ENTROPY, inputs=IMAGES),
    "residual_groups": Case(lambda: Residual(lambda width: nn.GroupNorm(2, width)), CROSS_ENTROPY, inputs=IMAGES),
    "lstm": Case(lambda: Recurrent(nn.LSTM), CROSS_ENTROPY, inputs=SEQUENCES),
    "gru_rows_second": Case(
        lambda: Recurrent(nn.GRU, rows_first=False), CROSS_ENTROPY, inputs=SEQUENCES[:3], targets=CLASSES[:3]
    ),
    "attention": Case(Attention, CROSS_ENTROPY, inputs=SEQUENCES, targets=TOKENS[:, :3] % 4),
    "language": Case(Language, CROSS_ENTROPY, inputs=TOKENS, targets=TOKENS.roll(-1, 1)),
    "embedding": Case(
        lambda: nn.Sequential(nn.Embedding(7, 3, padding_idx=0), nn.Flatten(), nn.Linear(12, 3)),
        CROSS_ENTROPY, inputs=TOKENS,
    ),
    "sparse_embedding": Case(
        lambda: nn.Sequential(nn.Embedding(7, 2, sparse=True), nn.Flatten(), nn.Linear(8, 3)),
        CROSS_ENTROPY, inputs=TOKENS,
    ),
    "positions": Case(
        lambda: nn.Sequential(nn.Conv1d(3, 3, 3, padding=1), nn.Tanh(), nn.Conv1d(3, 2, 1)), SQUARED,
        inputs=SEQUENCES, targets=SEQUENCES[:, :2],
    ),
    "own_parameters": Case(Own, CROSS_ENTROPY),
    "reparametrised": Case(reparametrised, CROSS_ENTROPY),
    "branching": Case(Branching, CROSS_ENTROPY),
    **{name: Case(lambda mix=mix: Between(mix, width=2), CROSS_ENTROPY) for name, mix in MIXED.items()},
}  # fmt: skip
