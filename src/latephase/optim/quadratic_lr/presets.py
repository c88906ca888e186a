"""AdamQLR and SGDQLR, with the named settings of their paper."""

from collections.abc import Iterable
from typing import Any, Self, Unpack

import torch

from .optimizer import QuadraticLearningRate
from .options import (
    AMPLIFIED,
    HESSIAN,
    HESSIAN_UNTUNED,
    SGD_QLR,
    TUNED,
    UNDAMPED,
    UNTUNED,
    UNTUNED_CLIPPED,
    QuadraticOptions,
    Settings,
)


class AdamQLR(QuadraticLearningRate):
    """Adam's direction with the learning rate of a damped quadratic model (Clarke and Hernandez-Lobato, ICML 2024).

    The defaults are the paper's "Untuned". Its settings are made for large batches (3200 rows there): on small ones set
    `lr_clip`. Adam's first direction is +-1 in every entry, so that lambda d'd is lambda times the number of parameters
    there: the same damping holds a larger model back more.

    Args:
        params: parameters or param groups.
        betas: decays of Adam's moments. Default 0.9 and 0.999 (Kingma and Ba 2015).
        eps: added to the root of the second moment. Default 1e-8, from the same source.
        **options: of `QuadraticLearningRate`, with its defaults.

    Raises:
        TypeError: an unknown option.
        ValueError: an option with a value that will not do.
    """

    def __init__(
        self,
        params: Iterable[Any],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        **options: Unpack[QuadraticOptions],
    ):
        super().__init__(torch.optim.Adam(params, lr=1.0, betas=betas, eps=eps), **options)

    @classmethod
    def untuned(cls, params: Iterable[Any], **overrides: Any) -> Self:
        """The paper's "AdamQLR (Untuned)": damping 1e-3, factors 1/2 and 2; batches of 3200 rows.

        Args:
            params: parameters or param groups.
            **overrides: options in place of these, or beside them; so in every named setting.
        """
        return cls(params, **(UNTUNED | overrides))

    @classmethod
    def tuned(cls, params: Iterable[Any], **overrides: Any) -> Self:
        """The paper's "AdamQLR (Tuned)" where its search starts: damping 1, factors 0.95 and 1.0526.

        Batch size, damping and both factors are what is searched for.
        """
        return cls(params, **(TUNED | overrides))

    @classmethod
    def untuned_clipped(cls, params: Iterable[Any], **overrides: Any) -> Self:
        """The paper's "Untuned" with learning rates of at most 0.1."""
        return cls(params, **(UNTUNED_CLIPPED | overrides))

    @classmethod
    def undamped(cls, params: Iterable[Any], **overrides: Any) -> Self:
        """The paper's ablation without damping; one forward pass less in each step."""
        return cls(params, **(UNDAMPED | overrides))

    @classmethod
    def hessian(cls, params: Iterable[Any], **overrides: Any) -> Self:
        """The paper's "Tuned" with the Hessian in place of the Fisher matrix."""
        return cls(params, **(HESSIAN | overrides))

    @classmethod
    def hessian_untuned(cls, params: Iterable[Any], **overrides: Any) -> Self:
        """The paper's untuned setting with the absolute curvature of the Hessian.

        Damping 1e-4, factors 0.75 and 2, and a step that would raise the loss is rejected; batches of 3200 rows.
        """
        return cls(params, **(HESSIAN_UNTUNED | overrides))

    @classmethod
    def amplified(cls, params: Iterable[Any], **overrides: Any) -> Self:
        """The paper's ablation with learning rates times 0.5.

        Damping 1, factors 0.9 and 2, and a step that would raise the loss is rejected.
        """
        return cls(params, **(AMPLIFIED | overrides))


class SGDQLR(QuadraticLearningRate):
    """Gradient descent with the learning rate of a damped quadratic model, the paper's "SGDQLR".

    Without damping and with a quadratic loss this is steepest descent with exact line minimisation. For momentum give
    `QuadraticLearningRate` a base that has it.

    Args:
        params: parameters or param groups.
        **options: of `QuadraticLearningRate`. Default as in the paper: damping 1, factors 0.9 and 2 without bounds, and
            a step that would raise the loss is rejected.

    Raises:
        TypeError: an unknown option.
        ValueError: an option with a value that will not do.
    """

    def __init__(self, params: Iterable[Any], **options: Unpack[QuadraticOptions]):
        settings: Settings = {**SGD_QLR, **options}
        super().__init__(torch.optim.SGD(params, lr=1.0), **settings)
