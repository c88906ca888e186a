"""A small decoder-only transformer on characters."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

STANDARD_DEVIATION = 0.02
"""Of the initial weights."""


class Block(nn.Module):
    """Causal self-attention and a two-layer network, each behind a layer norm and beside a shortcut.

    Args:
        width: of the features.
        heads: of attention; a divisor of the width.
        dropout: probability, on attention and on what is added to the shortcut.
    """

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.attention_norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.network_norm = nn.LayerNorm(width)
        self.network_in = nn.Linear(width, 4 * width)
        self.network_out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Features [N, T, width] -> [N, T, width]."""
        x = x + self._drop(self.attention_out(self._attend(self.attention_norm(x))))
        return x + self._drop(self.network_out(functional.gelu(self.network_in(self.network_norm(x)))))

    def _attend(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        separate = self.queries_keys_values(x).view(rows, length, 3, self.heads, width // self.heads)
        queries, keys, values = separate.permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout, is_causal=True)
        return mixed.transpose(1, 2).reshape(rows, length, width)

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training) if self.dropout else x


class Transformer(nn.Module):
    """A decoder-only transformer: symbols int64 [N, T] -> logits [N, T, vocabulary], T at most the context.

    The form of GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"): learned positions,
    layer norm in front of attention and network (pre-norm), GELU. Weights are normal with standard deviation 0.02, in
    the layers that write to the shortcut divided by sqrt(2 layers); biases are zero. The last layer has weights of its
    own and no bias.

    Args:
        vocabulary: number of symbols.
        layers: blocks.
        width: of the features.
        heads: of attention in each block; a divisor of the width.
        context: the longest sequence.
        dropout: probability; zero by default.
    """

    def __init__(
        self,
        vocabulary: int,
        layers: int = 3,
        width: int = 128,
        heads: int = 4,
        context: int = 64,
        dropout: float = 0.0,
    ):
        super().__init__()
        if width % heads:
            raise ValueError(f"heads must divide the width {width}, got {heads}")
        self.symbols = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.logits = nn.Linear(width, vocabulary, bias=False)
        self._initialize(layers)

    def _initialize(self, layers: int) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() > 1:
                scale = 1 / math.sqrt(2 * layers) if name.endswith("_out.weight") else 1.0
                nn.init.normal_(parameter, std=STANDARD_DEVIATION * scale)

    def forward(self, symbols: Tensor) -> Tensor:
        """Logits of the symbol that follows each place."""
        places = torch.arange(symbols.shape[1], device=symbols.device)
        return self.logits(self.norm(self.blocks(self.symbols(symbols) + self.positions(places))))
