"""Kronecker-factored approximate curvature as a preconditioner (Martens and Grosse 2015)."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..linearization import Linearization
from .base import Apply, Estimate, Preconditioner, check_whole, decay_of, diagonal_inverse, floored, shared_seed
from .ggn_diagonal import estimated_diagonal
from .kronecker_factors import Layer, kronecker_factors, supported_layers


@dataclass(frozen=True, kw_only=True)
class KFAC(Preconditioner):
    """M with a block B kron A, damped, for each layer, and a diagonal for the other parameters.

    Martens and Grosse 2015, "Optimizing neural networks with Kronecker-factored approximate curvature"; for
    convolutions, and layers that are used at several positions, Eschenhagen et al. 2023 ("expand"). A is the second
    moment of a layer's inputs, B that of the slopes in its outputs under the model's own distribution. Weight and bias
    are one block where the param groups keep them together, otherwise two. The factors are computed by the package
    curvlinops, which is no dependency of this one: `pip install "latephase[kfac]"`.

    The factors are decomposed when they are estimated, so that the inverse is exact at every damping. Linear and
    two-dimensional convolutional layers that are called once get factors. All other parameters (normalisation,
    embeddings, recurrent and shared layers) get the estimated diagonal of `GGNDiagonal`, with exponent 1 so that it has
    the scale of the blocks. The loss is one of those that `GGNDiagonal` knows the root S of.

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

    Raises:
        ValueError: a setting that is none.
    """

    every: int = 10
    probes: int = 8
    damping: str = "factored"

    def __post_init__(self):
        if self.damping not in ("factored", "exact"):
            raise ValueError(f"damping must be 'factored' or 'exact', got {self.damping!r}")
        check_whole("every", self.every)
        check_whole("probes", self.probes)

    def estimate(self, curved: Linearization, blocks: Sequence[int]) -> Estimate:
        """The eigenvectors and eigenvalues of the factors, and the diagonal.

        "layers" [layers, 4] holds, in whole numbers, where each layer's weight and its bias begin in the flat vector
        (-1 for none), and the columns and rows of the weight; "i.inputs.values" and "i.inputs.vectors" belong to factor
        A of layer i, "i.slopes.values" and "i.slopes.vectors" to B. "diagonal" [P] is that of the L2 term for the
        parameters of these layers, and D + wd for the others.

        Raises:
            ImportError: curvlinops is not installed.
            ValueError: a loss that is not known, with the names of those that are.
        """
        if importlib.util.find_spec("curvlinops") is None:
            raise ImportError(
                "the preconditioner 'kfac' needs the package curvlinops: pip install \"latephase[kfac]\", or use "
                "'ggn_diagonal' or 'nystrom'"
            )
        layers, seed = supported_layers(curved, blocks), shared_seed(curved)
        factors = iter(kronecker_factors(curved, layers, self.probes, seed) if layers else [])
        diagonal, covered = decay_of(curved), torch.zeros(curved.space.size, dtype=torch.bool)
        for start, size in [piece for layer in layers for piece in _pieces(layer)]:
            covered[start : start + size] = True
        if not covered.all():
            diagonal = torch.where(covered.to(diagonal.device), diagonal, estimated_diagonal(curved, self.probes))
        numbers = [[layer.weight, layer.bias, layer.inputs, layer.outputs] for layer in layers]
        estimate = {"diagonal": diagonal, "layers": torch.tensor(numbers, dtype=torch.int64).reshape(-1, 4)}
        for index, layer in enumerate(layers):
            for name in ("inputs", "slopes") if layer.columns else ("slopes",):
                values, vectors = _decomposed(next(factors))
                estimate |= {f"{index}.{name}.values": values, f"{index}.{name}.vectors": vectors}
        return estimate

    def inverse(self, estimate: Estimate, damping: float | Tensor, blocks: Sequence[int]) -> Apply:
        """R -> M^-1 r.

        Where the damping differs within one block of M, the block gets the mean. Eigenvalues of a block below `eps`
        times the largest are raised to that.
        """
        diagonal = estimate["diagonal"]
        ridge = (diagonal + damping).to(diagonal.dtype)
        others = diagonal_inverse(diagonal, damping, 1.0, blocks)
        parts = []
        for index, numbers in enumerate(estimate["layers"].tolist()):
            weight, bias, inputs, outputs = (int(number) for number in numbers)
            a, b = (
                (estimate[f"{index}.{name}.values"], estimate[f"{index}.{name}.vectors"])
                if f"{index}.{name}.values" in estimate
                else None
                for name in ("inputs", "slopes")
            )
            assert b is not None
            pieces = [(start, size) for start, size in ((weight, inputs * outputs), (bias, outputs)) if start >= 0]
            if a is not None and len(a[0]) > inputs:
                parts.append(_Block(pieces, outputs, a, b, ridge, self.damping))
            else:
                for piece in pieces:
                    own = a if piece[0] == weight else None
                    parts.append(_Block([piece], outputs, own, b, ridge, self.damping))

        def apply(r: Tensor) -> Tensor:
            result = others(r)
            for part in parts:
                part.write(r, result)
            return result

        return apply


Factor = tuple[Tensor, Tensor]
"""Eigenvalues [n] and eigenvectors [n, n], as columns."""


class _Block:
    """The inverse of B kron A with damping, or of B + level without A.

    Args:
        pieces: start and size of the parameters in the flat vector, side by side the matrix [rows, columns] of a layer.
        rows: its rows.
        a: of its columns.
        b: of its rows.
        ridge: wd + lambda [P], whose mean over the block is the level.
        damping: "factored" or "exact".
    """

    def __init__(
        self, pieces: list[tuple[int, int]], rows: int, a: Factor | None, b: Factor, ridge: Tensor, damping: str
    ):
        self.pieces, self.rows, self.left = pieces, rows, b[1]
        self.right = None if a is None else a[1]
        level = torch.cat([ridge[start : start + size] for start, size in pieces]).mean()
        if a is None:
            products = b[0].unsqueeze(1) + level
        elif damping == "exact":
            products = torch.outer(b[0], a[0]) + level
        else:
            tiny, root = torch.finfo(level.dtype).tiny, level.sqrt()
            pi = (a[0].mean().clamp(min=tiny) / b[0].mean().clamp(min=tiny)).sqrt().clamp(1e-4, 1e4)
            products = torch.outer(b[0] + root / pi, a[0] + pi * root)
        self.scale = floored(products).reciprocal()

    def write(self, r: Tensor, result: Tensor) -> None:
        """Write the block's part of M^-1 r [P] into a result [P]."""
        matrix = torch.cat([r[start : start + size].view(self.rows, -1) for start, size in self.pieces], dim=1)
        matrix = self.left.T @ matrix
        if self.right is None:
            matrix = self.left @ (self.scale * matrix)
        else:
            matrix = self.left @ (self.scale * (matrix @ self.right)) @ self.right.T
        widths = [size // self.rows for _, size in self.pieces]
        for (start, size), part in zip(self.pieces, matrix.split(widths, dim=1), strict=True):
            result[start : start + size] = part.reshape(-1)


def _pieces(layer: Layer) -> list[tuple[int, int]]:
    """Start and size of the layer's parameters in the flat vector."""
    pieces = [(layer.weight, layer.inputs * layer.outputs), (layer.bias, layer.outputs)]
    return [(start, size) for start, size in pieces if start >= 0]


def _decomposed(factor: Tensor) -> Factor:
    """Eigenvalues, not below zero, and eigenvectors; zeros where the factor is not finite."""
    factor = factor if factor.isfinite().all() else torch.zeros_like(factor)
    values, vectors = torch.linalg.eigh((factor + factor.T) / 2)
    return values.clamp_(min=0), vectors
