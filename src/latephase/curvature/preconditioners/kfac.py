"""Kronecker-factored approximate curvature as a preconditioner (Martens and Grosse 2015)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..linearization import Linearization
from .base import Apply, Estimate, Preconditioner, check_whole, decay_of, diagonal_inverse, floored, shared_seed
from .ggn_diagonal import estimated_diagonal
from .kronecker_factors import WEIGHT_SHARING, Layer, kronecker_factors, supported_layers


@dataclass(frozen=True, kw_only=True)
class Kronecker(Preconditioner):
    """M with a block B kron A, damped, for each layer, and a diagonal for the other parameters.

    Martens and Grosse 2015, "Optimizing neural networks with Kronecker-factored approximate curvature"; for
    convolutions, and layers that are used at several positions, Eschenhagen et al. 2023. A is the second moment of a
    layer's inputs, B that of the slopes in its outputs under the model's own distribution. Weight and bias
    are one block where the param groups keep them together, otherwise two.

    The factors are decomposed when they are estimated, so that the inverse is exact at every damping. Linear and
    two-dimensional convolutional layers that are called once get factors, where nothing else uses their weights and no
    hook changes what goes in or comes out; of the convolutions those in one group. All other parameters (normalisation,
    embeddings, recurrent and shared layers) get the estimated diagonal of `GGNDiagonal`, with exponent 1 so that it has
    the scale of the blocks. The loss is one that `GGNDiagonal` finds the root S of.

    Where the pass takes derivatives of the network by `torch.autograd.grad`, as physics-informed residuals do, the
    factors are rough, and a warning says so: A knows the inputs of the layer's own call, B sums the slopes of all
    backward passes through it, those inside included. That is no published method: Dangel et al. 2024,
    "Kronecker-factored approximate curvature for physics-informed neural networks", have a factor for each derivative.
    On three such problems conjugate gradients took fifteen to twenty times the iterations that they take without, and a
    tenth to a quarter of these with Nystrom's method.

    An estimate costs about `probes` gradients, as many backward passes where there are other parameters, and the
    eigenvectors of both factors of each layer.

    Attributes:
        every: steps after which it is estimated anew. Default 10.
        probes: random vectors for B, and for the diagonal. Default 8; where a classifier is sure of most examples, few
            of them carry all of B.
        damping: "exact", B kron A + level, level = wd + lambda; or "factored" (default), (B + sqrt(level) / pi) kron
            (A + pi sqrt(level)), pi being the root of the ratio of their mean eigenvalues (Martens and Grosse 2015,
            Section 6.3). It is larger where one factor alone is small, where the product of the factors says least
            about the curvature, so that the first iterations do not go too far there.
        weight_sharing: what a layer makes of several positions of one example, as a convolution has them: "expand"
            (default), each is an example of its own; or "reduce", inputs are averaged and slopes summed over them
            first, which is cheaper, and better where the positions are averaged later on (Eschenhagen et al. 2023).
            Dimension 0 of a layer's inputs must count the examples for "reduce".

    Raises:
        ValueError: a setting that is none.
    """

    entries: ClassVar[tuple[str, ...]] = ("layers", "diagonal")

    every: int = 10
    probes: int = 8
    damping: str = "factored"
    weight_sharing: str = "expand"

    def __post_init__(self):
        if self.damping not in ("factored", "exact"):
            raise ValueError(f"damping must be 'factored' or 'exact', got {self.damping!r}")
        if self.weight_sharing not in WEIGHT_SHARING:
            raise ValueError(f"weight_sharing must be 'expand' or 'reduce', got {self.weight_sharing!r}")
        check_whole("every", self.every)
        check_whole("probes", self.probes)

    def estimate(self, curved: Linearization, blocks: Sequence[int]) -> Estimate:
        """The eigenvectors and eigenvalues of the factors, and the diagonal.

        "layers" and "diagonal" are those of `moments`; "i.inputs.values" and "i.inputs.vectors" belong to factor A of
        layer i, "i.slopes.values" and "i.slopes.vectors" to B.

        Raises:
            ValueError: a loss that will not do; says which ones do.
        """
        estimate = {}
        for name, moment in self.moments(curved, blocks).items():
            if name in ("layers", "diagonal"):
                estimate[name] = moment
            else:
                estimate[f"{name}.values"], estimate[f"{name}.vectors"] = _decomposed(moment)
        return estimate

    def moments(self, curved: Linearization, blocks: Sequence[int]) -> Estimate:
        """The factors as they are, and the diagonal: linear in the data, so that averages of them make sense.

        "layers" [layers, 4] holds, in whole numbers, where each layer's weight and its bias begin in the flat vector
        (-1 for none), and the columns and rows of the weight. "i.inputs" is factor A of layer i, which it has where its
        weight is in the space, "i.slopes" is B. "diagonal" [P] is that of the L2 term for the parameters of these
        layers, and D + wd for the others.

        Raises:
            ValueError: a loss that will not do; says which ones do.
        """
        layers, seed = supported_layers(curved, blocks), shared_seed(curved)
        factors = kronecker_factors(curved, layers, self.probes, seed, self.weight_sharing) if layers else []
        diagonal, covered = decay_of(curved), torch.zeros(curved.space.size, dtype=torch.bool)
        for start, size in [piece for layer in layers for piece in _pieces(layer)]:
            covered[start : start + size] = True
        if not covered.all():
            diagonal = torch.where(covered.to(diagonal.device), diagonal, estimated_diagonal(curved, self.probes))
        numbers = [[layer.weight, layer.bias, layer.inputs, layer.outputs] for layer in layers]
        names = [
            f"{index}.{name}"
            for index, layer in enumerate(layers)
            for name in (("inputs", "slopes") if layer.columns else ("slopes",))
        ]
        found = {"diagonal": diagonal, "layers": torch.tensor(numbers, dtype=torch.int64).reshape(-1, 4)}
        return found | dict(zip(names, factors, strict=True))

    def inverse(self, estimate: Estimate, damping: float | Tensor, blocks: Sequence[int]) -> Apply:
        """R -> M^-1 r.

        Where the damping differs within one block of M, the block gets the mean. Eigenvalues of a block below `eps`
        times the largest are raised to that.
        """
        diagonal = estimate["diagonal"]
        ridge = (diagonal + damping).to(diagonal.dtype)
        others = diagonal_inverse(diagonal, damping, 1.0, blocks)
        parts = []
        for block in blocks_of(estimate, "values"):
            b, a = (
                (estimate[f"{name}.values"], estimate[f"{name}.vectors"]) if name else None
                for name in (block.slopes, block.inputs)
            )
            assert b is not None
            parts.append(_Decomposed(block, a, b, ridge, self.damping))

        def apply(r: Tensor) -> Tensor:
            result = others(r)
            for part in parts:
                part.block.write(part.solve(part.block.read(r)), result)
            return result

        return apply


@dataclass(frozen=True)
class Block:
    """Parameters of a layer that share a block B kron A of M, or B alone.

    Attributes:
        pieces: start and size of the parameters in the flat vector, side by side the matrix [rows, columns] of a layer.
        rows: its rows.
        slopes: name of B.
        inputs: name of A; empty for B alone, which is a bias without its weight.
    """

    pieces: tuple[tuple[int, int], ...]
    rows: int
    slopes: str
    inputs: str

    def read(self, r: Tensor) -> Tensor:
        """The block's part of a vector [P], as a matrix [rows, columns]."""
        return torch.cat([r[start : start + size].view(self.rows, -1) for start, size in self.pieces], dim=1)

    def write(self, matrix: Tensor, result: Tensor) -> None:
        """Write a matrix [rows, columns] into the block's part of a vector [P]."""
        widths = [size // self.rows for _, size in self.pieces]
        for (start, size), part in zip(self.pieces, matrix.split(widths, dim=1), strict=True):
            result[start : start + size] = part.reshape(-1)

    def level(self, ridge: Tensor) -> Tensor:
        """The mean over the block of wd + lambda [P]."""
        return torch.cat([ridge[start : start + size] for start, size in self.pieces]).mean()


def blocks_of(estimate: Estimate, suffix: str = "") -> list[Block]:
    """The blocks of an estimate or of moments.

    Args:
        estimate: with "layers", and a tensor of each factor.
        suffix: of the name of that tensor, whose first dimension is the factor's.
    """
    found = []
    for index, numbers in enumerate(estimate["layers"].tolist()):
        weight, bias, inputs, outputs = (int(number) for number in numbers)
        slopes, columns = f"{index}.slopes", f"{index}.inputs"
        a = estimate.get(f"{columns}.{suffix}" if suffix else columns)
        pieces = [(start, size) for start, size in ((weight, inputs * outputs), (bias, outputs)) if start >= 0]
        if a is not None and len(a) > inputs:
            found.append(Block(tuple(pieces), outputs, slopes, columns))
        else:
            found += [Block((piece,), outputs, slopes, columns if piece[0] == weight else "") for piece in pieces]
    return found


def factored(level: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """What is added to A and to B: pi sqrt(level) and sqrt(level) / pi (Martens and Grosse 2015, Section 6.3).

    Args:
        level: wd + lambda.
        a: mean eigenvalue of A.
        b: of B.
    """
    tiny, root = torch.finfo(level.dtype).tiny, level.sqrt()
    pi = (a.clamp(min=tiny) / b.clamp(min=tiny)).sqrt().clamp(1e-4, 1e4)
    return pi * root, root / pi


Factor = tuple[Tensor, Tensor]
"""Eigenvalues [n] and eigenvectors [n, n], as columns."""


class _Decomposed:
    """The inverse of a block from its eigenvectors.

    Args:
        block: which.
        a: factor of its columns, none for B alone.
        b: of its rows.
        ridge: wd + lambda [P].
        damping: "factored" or "exact".
    """

    def __init__(self, block: Block, a: Factor | None, b: Factor, ridge: Tensor, damping: str):
        self.block, self.left = block, b[1]
        self.right = None if a is None else a[1]
        level = block.level(ridge)
        if a is None:
            products = b[0].unsqueeze(1) + level
        elif damping == "exact":
            products = torch.outer(b[0], a[0]) + level
        else:
            on_a, on_b = factored(level, a[0].mean(), b[0].mean())
            products = torch.outer(b[0] + on_b, a[0] + on_a)
        self.scale = floored(products).reciprocal()

    def solve(self, matrix: Tensor) -> Tensor:
        """The inverse times a matrix [rows, columns]."""
        matrix = self.left.T @ matrix
        if self.right is None:
            return self.left @ (self.scale * matrix)
        return self.left @ (self.scale * (matrix @ self.right)) @ self.right.T


def _pieces(layer: Layer) -> list[tuple[int, int]]:
    """Start and size of the layer's parameters in the flat vector."""
    pieces = [(layer.weight, layer.inputs * layer.outputs), (layer.bias, layer.outputs)]
    return [(start, size) for start, size in pieces if start >= 0]


def _decomposed(factor: Tensor) -> Factor:
    """Eigenvalues, not below zero, and eigenvectors; zeros where the factor is not finite."""
    factor = factor if factor.isfinite().all() else torch.zeros_like(factor)
    values, vectors = torch.linalg.eigh((factor + factor.T) / 2)
    return values.clamp_(min=0), vectors
