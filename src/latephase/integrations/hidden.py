"""A function that hides what it reads."""

import contextvars
from collections.abc import Callable
from typing import Any

from torch import Tensor


class Hidden:
    """A function (model, points) -> residuals, hidden from those who ask what it reads: a whole package, at any depth.

    A context variable shows nobody what it holds. A trace that reaches one is compared with the plain loss at every
    use, which costs far less than to describe all that at every step.
    """

    def __init__(self, function: Callable[[Any, Any], Tensor]):
        self.held = contextvars.ContextVar("residuals", default=function)

    def __call__(self, model: Any, points: Any) -> Tensor:
        """The residuals."""
        return self.held.get()(model, points)
