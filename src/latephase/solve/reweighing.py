"""Steps along the directions of one quadratic model with the lengths that another one asks for."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Reweighing:
    """Iterates along given directions, each step minimising a second quadratic model.

    Directions that conjugate gradients find on a mini-batch overfit it: slope and curvature along them, computed on the
    same data, are too large in size, and the decrease that they promise is not kept. On data of its own, a second model
    m(x) = 0.5 x'Ax - b'x knows both without that bias (Tatzel et al. 2024, "Debiasing Mini-Batch Quadratics for
    Applications in Deep Learning", arXiv 2410.14325). Since the directions are not conjugate in the second matrix, the
    slope is taken at the point reached: s = d'(b - A x), k = d'A d, x <- x + (s / k) d. A direction along which k is
    not positive is left out.

    Reads nothing back, and writes in place, as `Iteration` does.

    Args:
        matvec: v [P] -> A v [P] of the second model, block-diagonal where the first is.
        b: its right-hand side [P], in the dtype of the computation.
        sizes: sizes of the B blocks, each with a step size of its own.
        share: as in `conjugate_gradient`.
        wide: dtype of the scalars.

    Attributes:
        x: iterate [P].
        values: m of each block at the iterate [B].
    """

    def __init__(
        self,
        matvec: Callable[[Tensor], Tensor],
        b: Tensor,
        sizes: Sequence[int],
        share: Callable[[Tensor], Tensor],
        wide: torch.dtype,
    ):
        self.matvec, self.share, self.sizes = matvec, share, list(sizes)
        self.x, self.residual = torch.zeros_like(b), b.clone()
        self.values = torch.zeros(len(self.sizes), dtype=wide, device=b.device)
        self._x_blocks, self._residual_blocks = self.x.split(self.sizes), self.residual.split(self.sizes)

    def follow(self, direction: Tensor, step: Tensor | None = None) -> None:
        """Step along a direction [P], at one product.

        Args:
            direction: d; zero on blocks that stand still.
            step: blocks that step [B]. Default all.
        """
        # A block that makes no step may have a NaN in its product, which times zero would still be one.
        product = self.matvec(direction).detach().to(self.x.dtype).nan_to_num()
        directions, products = direction.split(self.sizes), product.split(self.sizes)
        slopes = [torch.dot(d, r) for d, r in zip(directions, self._residual_blocks, strict=True)]
        curvatures = [torch.dot(d, q) for d, q in zip(directions, products, strict=True)]
        dots = self.share(torch.stack([*slopes, *curvatures]).to(self.values.dtype))
        slope, curvature = dots.view(2, -1).unbind()
        usable = curvature > 0 if step is None else (curvature > 0) & step
        length = torch.where(usable, slope / curvature, 0.0)
        self.values.add_(length * slope, alpha=-0.5)
        for x, r, d, q, c in zip(
            self._x_blocks, self._residual_blocks, directions, products, length.to(self.x.dtype).unbind(), strict=True
        ):
            x.addcmul_(d, c)
            r.addcmul_(q, c, value=-1)
