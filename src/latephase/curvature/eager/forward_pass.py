"""One chunk's forward pass, kept as a graph: loss, gradient and vector-Jacobian products."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import grad
from torch.utils._pytree import tree_flatten, tree_map

from ...objective import Between, cuda_devices, generator_states
from ..chunk_task import ChunkTask

Tensors = Sequence[Tensor]


def _aliases(outputs: Any) -> Any:
    """The outputs as nodes of their own: slopes in them are then partial, also where one output is made of another."""
    return tree_map(lambda leaf: leaf.view_as(leaf) if isinstance(leaf, Tensor) else leaf, outputs)


class ForwardPass:
    """Loss and outputs of one chunk with their graph, as a function of given leaves.

    Args:
        task: the chunk, where, and in which dtype; its `hessian` plays no part.

    Attributes:
        leaves: the parameters as leaves of the graph, in the space's order.
        loss: the chunk's loss, scalar.
        outputs: the output tensors that depend on the leaves.
        tree: what the loss got, or what `from_forward` returned beside it.
        has_one_tensor: whether the model's output is one tensor, in no container.
        buffers_before: the model's buffers before the pass.
        buffers: those after it.
        random: whether the pass drew random numbers.
    """

    def __init__(self, task: ChunkTask):
        self.objective, self.chunk, self.index, self.space = task.objective, task.chunk, task.index, task.space
        self.dtype = dtype = task.dtype
        self.leaves = [p.detach().to(dtype or p.dtype).requires_grad_() for p in self.space.parameters]
        own = set(self.space.names)
        self._constants = {
            name: p.detach().to(dtype if dtype and p.is_floating_point() else p.dtype)
            for name, p in self.objective.model.named_parameters()
            if name not in own and (p.requires_grad or dtype)
        }
        self.buffers_before = {
            name: buffer.to(dtype) if dtype and buffer.is_floating_point() else buffer
            for name, buffer in task.buffers.items()
        }
        self.buffers = self._fresh_buffers()
        devices = cuda_devices(self.objective.model)
        with torch.enable_grad(), self.objective.random_numbers(self.index):
            before = generator_states(devices)
            self.loss, tree = self._run(self.named(self.leaves), self.buffers, _aliases)
            self.random = not all(map(torch.equal, before, generator_states(devices)))
        self.tree, self.has_one_tensor = tree, isinstance(tree, Tensor)
        flat = tree_flatten(tree)[0]
        self._positions = [i for i, leaf in enumerate(flat) if isinstance(leaf, Tensor) and leaf.requires_grad]
        self.outputs: list[Tensor] = self._select(flat)

    def _run(
        self, leaves: Mapping[str, Tensor], buffers: dict[str, Tensor], between: Between | None = None
    ) -> tuple[Tensor, Any]:
        """Loss and tree of outputs; parameters outside the space are constants without a graph."""
        point = self._constants | dict(leaves)
        return self.objective.forward_pass(self.chunk, point, buffers, self.dtype, between)

    def _fresh_buffers(self) -> dict[str, Tensor]:
        return {name: buffer.clone() for name, buffer in self.buffers_before.items()}

    def _select(self, flat: Sequence[Any]) -> list[Any]:
        return [flat[i] for i in self._positions]

    def named(self, tensors: Tensors) -> dict[str, Tensor]:
        """Tensors in the space's order, by parameter name."""
        return dict(zip(self.space.names, tensors, strict=True))

    def function(self, leaves: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The same pass as a pure function, for function transforms: parameters by name -> loss and outputs."""
        with self.objective.random_numbers(self.index):
            loss, tree = self._run(leaves, self._fresh_buffers())
        return loss, self._select(tree_flatten(tree)[0])

    def gradient(self) -> Tensors:
        """Gradient of the loss in the leaves; zero where the loss does not depend on a leaf."""
        if not self.loss.requires_grad:
            return [torch.zeros_like(leaf) for leaf in self.leaves]
        return grad(self.loss, self.leaves, retain_graph=True, materialize_grads=True)

    def pull(self, u: Tensors) -> Tensors:
        """J'u, with J the Jacobian of the outputs in the leaves."""
        return grad(self.outputs, self.leaves, u, retain_graph=True, materialize_grads=True)
