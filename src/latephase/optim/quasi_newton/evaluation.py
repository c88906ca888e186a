"""Loss and gradient at a point other than the parameters, and a gradient that the next step can begin with."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ...objective import FreeForm, Objective, cuda_devices, generator_states
from ...parameters import ParameterSpace, Versions
from ...solve import resolution


@dataclass(frozen=True)
class Evaluation:
    """What is known at one point.

    Attributes:
        loss: f, scalar.
        gradient: of f [P].
        buffers: the model's, as the pass leaves them, by name.
        repeatable: whether the pass drew no random numbers and moved no buffer.
    """

    loss: Tensor
    gradient: Tensor
    buffers: dict[str, Tensor]
    repeatable: bool


def evaluate(objective: Objective, space: ParameterSpace, vector: Tensor) -> Evaluation:
    """Loss and gradient at a vector [P]; parameters and buffers stay as they are."""
    leaves = [value.detach().requires_grad_() for value in space.unflatten(vector)]
    constants = {name: p.detach() for name, p in objective.model.named_parameters()}
    point = constants | dict(zip(space.names, leaves, strict=True))
    before = objective.buffers()
    buffers = {name: buffer.clone() for name, buffer in before.items()}
    devices, repeatable = cuda_devices(objective.model), True

    def term(chunk, index):
        nonlocal repeatable
        with torch.enable_grad(), objective.random_numbers(index):
            states = generator_states(devices)
            loss = objective.forward_pass(chunk, point, buffers)[0]
            repeatable &= all(map(torch.equal, states, generator_states(devices)))
            if not loss.requires_grad:
                return loss.detach(), torch.zeros_like(vector)
            return loss.detach(), space.flatten(torch.autograd.grad(loss, leaves, materialize_grads=True))

    loss, gradient = objective.sum(term)
    pieces = zip(gradient.split(space.sizes), space.unflatten(vector, space.dtype), strict=True)
    for decay, (piece, value) in zip(objective.weight_decay.of(space.parameters), pieces, strict=True):
        if decay:
            piece.add_(value.reshape(-1), alpha=decay)
    repeatable &= all(torch.equal(buffer, before[name]) for name, buffer in buffers.items())
    return Evaluation(loss + objective.weight_decay.value(point), gradient, buffers, repeatable)


class LastPoint:
    """Where the last step ended, so that the next one on the same data need not compute its gradient anew.

    It is taken where the objective is the same object, and neither parameters nor data nor buffers were written since.
    What else a function reads cannot be seen: at the uses number 1, 2, 4, 8, ... the gradient is computed all the same,
    and where the loss is another, no gradient of this objective is kept any more.

    Args:
        objective: of the step.
        space: its parameters, as the step has left them.
        found: what is known there.
        before: what the step began with.
    """

    def __init__(self, objective: Objective, space: ParameterSpace, found: Evaluation, before: "LastPoint | None"):
        again = before is not None and before._objective() is objective
        self._uses, self._trusted = (before._uses, before._trusted) if again and before is not None else (0, True)
        self._objective, self._found, self._names = weakref.ref(objective), found, space.names
        self._watched = Versions(list(objective.model.parameters()))
        self._data = Versions(_tensors(objective), values=False)

    def begin(self, objective: Objective, space: ParameterSpace) -> tuple[Evaluation, int]:
        """Loss and gradient at the parameters, and how often they were computed: once, or not at all."""
        if not self._holds(objective, space):
            return evaluate(objective, space, space.values()), 1
        self._uses += 1
        if self._uses & (self._uses - 1):
            return self._found, 0
        found = evaluate(objective, space, space.values())
        known = float(self._found.loss)
        near = resolution(known, torch.finfo(found.loss.dtype).eps)
        self._trusted = abs(float(found.loss) - known) <= near
        return found, 1

    def _holds(self, objective: Objective, space: ParameterSpace) -> bool:
        """Whether nothing is known to have changed, on any rank."""
        same = self._objective() is objective and self._trusted and self._found.repeatable
        same = same and not isinstance(objective.program, FreeForm) and self._names == space.names
        same = same and self._watched.hold() and self._data == Versions(_tensors(objective), values=False)
        if objective.process_group is None:
            return same
        (changed,) = objective.reduce.sum([torch.tensor(0.0 if same else 1.0, device=space.device)])
        return not bool(changed)


def begin(last: LastPoint | None, objective: Objective, space: ParameterSpace) -> tuple[Evaluation, int]:
    """Loss and gradient at the parameters, and how often they were computed."""
    return (evaluate(objective, space, space.values()), 1) if last is None else last.begin(objective, space)


def _tensors(objective: Objective) -> Sequence[Tensor]:
    """Data and the model's buffers."""
    leaves = [leaf for chunk in objective.chunks for leaf in tree_leaves((chunk.inputs, chunk.targets))]
    return [*(leaf for leaf in leaves if isinstance(leaf, Tensor)), *objective.model.buffers()]
