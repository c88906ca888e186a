"""AdamQLR and SGDQLR: quadratic learning rates on Adam and on gradient descent."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch

from .optimizer import QuadraticLearningRate
from .options import REJECTING, UNTUNED, AnyDamping


class AdamQLR(QuadraticLearningRate):
    """Adam's direction with the learning rate of a damped quadratic model (Clarke and Hernandez-Lobato, ICML 2024).

    The defaults are the paper's "Untuned". Its settings are made for large batches (3200 rows there): on small ones set
    `lr_clip`. Adam's first direction is +-1 in every entry, so that lambda d'd is lambda times the number of parameters
    there: the same damping holds a larger model back more.

    Args:
        params: parameters or param groups.
        betas: decays of Adam's moments. Default 0.9 and 0.999 (Kingma and Ba 2015).
        eps: added to the root of the second moment. Default 1e-8, from the same source.
        curvature: as in `QuadraticLearningRate`, like the next three.
        damping: lambda; see there.
        lr_clip: bound on the learning rate.
        amplification: factor on it.
        **former: nothing; an option of a former release is an error that says how it is written now.

    Raises:
        TypeError: an unknown option.
        ValueError: an option with a value that will not do.
    """

    def __init__(
        self,
        params: Iterable[Any],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        curvature: str = "ggn",
        damping: float | AnyDamping | Mapping[str, Any] = UNTUNED.initial,
        lr_clip: float | None = None,
        amplification: float = 1.0,
        **former: Any,
    ):
        base = torch.optim.Adam(params, lr=1.0, betas=betas, eps=eps)
        super().__init__(base, curvature, damping, lr_clip, amplification, **former)


class SGDQLR(QuadraticLearningRate):
    """Gradient descent with the learning rate of a damped quadratic model, the paper's "SGDQLR".

    Without damping and with a quadratic loss this is steepest descent with exact line minimisation. For momentum give
    `QuadraticLearningRate` a base that has it.

    Args:
        params: parameters or param groups.
        curvature: as in `QuadraticLearningRate`, like the next three.
        damping: lambda; a number or a dict changes `DecreasingLoss()`, the paper's rule: 1.0, factors 0.9 and 2 without
            bounds, and a step that would raise the loss is rejected.
        lr_clip: bound on the learning rate.
        amplification: factor on it.
        **former: nothing; an option of a former release is an error that says how it is written now.

    Raises:
        TypeError: an unknown option.
        ValueError: an option with a value that will not do.
    """

    _RULE: ClassVar[AnyDamping] = REJECTING

    def __init__(
        self,
        params: Iterable[Any],
        curvature: str = "ggn",
        damping: float | AnyDamping | Mapping[str, Any] = REJECTING.initial,
        lr_clip: float | None = None,
        amplification: float = 1.0,
        **former: Any,
    ):
        super().__init__(torch.optim.SGD(params, lr=1.0), curvature, damping, lr_clip, amplification, **former)


SGDQLR._OPTIONS = {**QuadraticLearningRate._OPTIONS, "damping": REJECTING}
