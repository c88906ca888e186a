"""The parts of a Newton step beside its solver: curvature, blocks and line search."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.distributed as dist

from ..parts import Part, is_number


@dataclass(frozen=True)
class _Curvature(Part):
    """What the curvature matrices have in common."""

    dtype: torch.dtype | None = None
    compile: bool = False
    structural_damping: float = 0.0

    def __post_init__(self):
        if isinstance(self.dtype, str):  # from a file
            object.__setattr__(self, "dtype", getattr(torch, self.dtype, self.dtype))
        floating = isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point
        self._check(self.dtype is None or floating, "dtype", "None or a floating-point torch.dtype")
        self._check_flag("compile")
        self._check_number("structural_damping")


@dataclass(frozen=True)
class GGN(_Curvature):
    """The Gauss-Newton matrix; positive semi-definite for convex losses, which conjugate gradients need.

    Args:
        dtype: in which products run, loss and gradient staying in the parameters' own; a torch.dtype or its name.
            Default that.
        compile: send products through `torch.compile` once a shape is traced, and on CUDA capture each iteration of
            conjugate gradients as a graph that is replayed; not with several blocks. Default False: compiling takes
            some tens of seconds for each shape, so that it pays in long runs only.
        structural_damping: mu: the curvature gains lambda mu J_h' phi'(h) J_h for hidden units h of a recurrent
            network, whose model returns `WithHidden` (Martens and Sutskever 2011, Section 3; they take 1/30). It counts
            as curvature in the reduction ratio, as in Sutskever's program. Default 0, none.

    Raises:
        ValueError: naming the field.
    """

    kind: ClassVar[str] = "ggn"


@dataclass(frozen=True)
class Hessian(_Curvature):
    """The Hessian, which may be indefinite: see `nonpositive_curvature` of `CG`.

    Args:
        dtype: as in `GGN`.
        compile: as in `GGN`.
        structural_damping: as in `GGN`.

    Raises:
        ValueError: naming the field.
    """

    kind: ClassVar[str] = "hessian"


@dataclass(frozen=True)
class Armijo(Part):
    """Armijo's rule on the evaluation objective (`solve.armijo`), from the step size of the param groups downwards.

    Args:
        c: share of the predicted decrease that is asked for. Default 0.01 (Martens and Sutskever 2012, Section 8.8).
        factor: ratio of neighbouring trials. Default 0.8, from the same source.
        max_trials: how many times the step is scaled back. Default 20 (Tatzel et al. 2022, Appendix A.1).

    Raises:
        ValueError: naming the field.
    """

    kind: ClassVar[str] = "armijo"

    c: float = 0.01
    factor: float = 0.8
    max_trials: int = 20

    def __post_init__(self):
        self._check(is_number(self.c) and 0 <= self.c < 1, "c", "a number >= 0 and < 1")
        self._check(is_number(self.factor) and 0 < self.factor < 1, "factor", "a number > 0 and < 1")
        self._check_whole("max_trials")


@dataclass(frozen=True)
class Blocks(Part):
    """Curvature only within each param group (Zhang et al. 2017), see `layerwise` and `by_module`.

    Blocks are solved side by side; how their products are computed is in `report.block_methods`
    (`curvature.OverBlocks`).

    Args:
        samples: estimate the blocks' products from this many random columns where that is cheaper than from all
            outputs. Default none, exact products.
        group: ranks that share the blocks between them, each solving its own; parameters and data must be the same on
            all. Not kept by pickling. Default none, this process solves all.

    Raises:
        ValueError: naming the field.
    """

    kind: ClassVar[str] = "blocks"
    LOCAL: ClassVar[tuple[str, ...]] = ("group",)

    samples: int | None = None
    group: dist.ProcessGroup | None = field(default=None, repr=False)

    def __post_init__(self):
        self._check_whole("samples", optional=True)

    def __getstate__(self) -> dict[str, Any]:
        """What pickling and copying keep: no group, which is of this process."""
        return {"samples": self.samples, "group": None}
