"""The L2 term of an objective: 0.5 * wd * sum of theta_i^2 over the parameters that decay."""

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

Decay = float | tuple[float, Callable[[str, nn.Parameter], bool]]


class WeightDecay:
    """Which parameters of a model decay, and how much.

    Args:
        model: the module.
        weight_decay: a coefficient, or (coefficient, predicate) with predicate (name, parameter) -> bool.

    Raises:
        ValueError: not a finite number >= 0, nor a pair of one and a callable.
    """

    def __init__(self, model: nn.Module, weight_decay: Decay):
        coefficient, predicate = weight_decay if isinstance(weight_decay, tuple) else (weight_decay, None)
        number = isinstance(coefficient, (int, float)) and 0 <= coefficient < float("inf")
        if not number or not (predicate is None or callable(predicate)):
            raise ValueError(
                "weight_decay must be a number >= 0, or a pair of one and a predicate (name, parameter) -> bool; "
                f"got {weight_decay!r}"
            )
        self.given = weight_decay
        self._model, self._coefficient, self._predicate = model, float(coefficient), predicate

    def trainable(self) -> list[tuple[str, nn.Parameter, float]]:
        """Name, parameter and coefficient of each parameter of the model that requires a gradient."""
        named = [(name, p) for name, p in self._model.named_parameters() if p.requires_grad]
        return [(name, p, self._coefficient if self._decays(name, p) else 0.0) for name, p in named]

    def _decays(self, name: str, p: nn.Parameter) -> bool:
        return self._coefficient > 0 and (self._predicate is None or self._predicate(name, p))

    def of(self, parameters: Sequence[nn.Parameter]) -> list[float]:
        """The coefficient of each parameter."""
        coefficients = {id(p): coefficient for _, p, coefficient in self.trainable()}
        return [coefficients[id(p)] for p in parameters]

    def value(self, at: Mapping[str, Tensor] | None = None) -> Tensor | float:
        """The L2 term at the given parameters, by name, or at the model's own; in float32 or wider."""
        at = at or {}
        return self.value_of([at.get(name, p) for name, p, coefficient in self.trainable() if coefficient])

    @torch.no_grad()
    def value_of(self, decayed: Sequence[Tensor]) -> Tensor | float:
        """The L2 term of the parameters that decay."""
        if not decayed:
            return 0.0
        widest = functools.reduce(torch.promote_types, (value.dtype for value in decayed), torch.float32)
        norms = [torch.linalg.vector_norm(value, dtype=widest) for value in decayed]
        return 0.5 * self._coefficient * torch.stack(norms).square().sum()
