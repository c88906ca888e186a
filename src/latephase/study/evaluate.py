"""Metrics of a model on all rows of every split, without any effect on the model or on random numbers."""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from ..objective import Objective
from ..problems import Problem, Splits

ROWS_AT_ONCE = 2048


class Evaluator:
    """Evaluates states of a model on a copy of it, in eval mode.

    Args:
        problem: gives loss and L2 term.
        model: gives the structure; it is copied.
        splits: the data.
    """

    def __init__(self, problem: Problem, model: nn.Module, splits: Splits):
        self._model = copy.deepcopy(model).eval()
        self._objectives = {
            name: Objective(
                self._model,
                problem.loss,
                getattr(splits, name),
                microbatch_size=ROWS_AT_ONCE,
                weight_decay=problem.weight_decay,
            )
            for name in ("train", "valid", "test")
        }

    def __call__(self, state: dict[str, Tensor]) -> dict[str, float | None]:
        """Loss (L2 term included) and accuracy of a state dict on each split, and the L2 term alone.

        A loss that is not finite is None.

        Args:
            state: a state dict of the model.
        """
        self._model.load_state_dict(state)
        (objective, *_) = self._objectives.values()
        metrics: dict[str, float | None] = {"l2_term": float(objective.weight_decay.value())}
        for name, objective in self._objectives.items():
            loss, accuracy = self._measure(objective)
            metrics[f"{name}_loss"] = loss if math.isfinite(loss) else None
            metrics[f"{name}_accuracy"] = accuracy
        return metrics

    def _measure(self, objective: Objective) -> tuple[float, float]:
        def term(chunk: Any, index: int) -> tuple[Tensor, Tensor]:
            loss, outputs = objective.forward_pass(chunk, {}, {})
            return loss, (outputs.argmax(dim=1) == chunk.targets).double().mean()

        with torch.no_grad():
            loss, accuracy = objective.sum(term)
            return float(loss + objective.weight_decay.value()), float(accuracy)
