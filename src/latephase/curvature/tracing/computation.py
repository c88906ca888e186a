"""Recording one chunk's whole computation as a functional graph.

The ordinary autograd engine runs under a recorder of tensor operations, the model on dual numbers (forward mode) whose
primal parts are leaves of reverse mode. One forward pass thus gives loss, tangents of the outputs and the graph for
vector-Jacobian products, and dropout has one mask. What plain autograd can do can be recorded: layers that work in
place, batch norm in training mode, gradients taken inside the model.
"""

import contextlib
import pickle
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, fx
from torch.autograd import grad
from torch.func import functionalize
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from ...objective import Chunk, differentiable_kernels, is_exhaustion, quiet_forward_mode
from ..chunk_task import ChunkTask
from ..loss import loss_curvature
from .forward_mode import FORWARD_MODE, NoForwardMode, TangentsLikeGradients
from .operations import CannotTrace, Read, record_operations
from .rewrite import mutates
from .signature import held_tensors

Tensors = Sequence[Tensor]


@dataclass
class Inputs:
    """What a trace is a function of, beside the vector.

    Attributes:
        leaves: the parameters of the space, in the dtype of the pass.
        constants: the model's other parameters by name.
        buffers: buffers by name, before the pass.
        data: the tensors among inputs and targets.
    """

    leaves: list[Tensor]
    constants: dict[str, Tensor]
    buffers: dict[str, Tensor]
    data: list[Tensor]

    @classmethod
    def of(cls, task: ChunkTask) -> "Inputs":
        """The inputs at the current parameters, those of the model in the task's dtype where it has one."""
        chunk, space, dtype = task.chunk, task.space, task.dtype

        def narrowed(tensor: Tensor) -> Tensor:
            return tensor.detach().to(dtype if dtype and tensor.is_floating_point() else tensor.dtype)

        own = set(space.names)
        return cls(
            leaves=[narrowed(p) for p in space.parameters],
            constants={name: narrowed(p) for name, p in task.objective.model.named_parameters() if name not in own},
            buffers={name: narrowed(buffer) for name, buffer in task.buffers.items()},
            # An object of its own for each: the recorder tells tensors by identity.
            data=[x.detach() for x in tree_flatten((chunk.inputs, chunk.targets))[0] if isinstance(x, Tensor)],
        )

    def moved(self) -> "Inputs":
        """The same data at other parameters, constants and buffers, drawn around them; variances stay positive."""
        generator = torch.Generator().manual_seed(0)

        def around(x: Tensor, upwards: bool = False) -> Tensor:
            if not x.is_floating_point():
                return x
            noise = torch.randn(x.shape, generator=generator).to(x) / max(x[0].numel() if x.dim() > 1 else 4, 1) ** 0.5
            return x + (noise.abs() if upwards else noise)

        return Inputs(
            leaves=[around(x) for x in self.leaves],
            constants={name: around(x) for name, x in self.constants.items()},
            buffers={name: around(x, upwards=True) for name, x in self.buffers.items()},
            data=self.data,
        )

    def flat(self) -> list[Tensor]:
        """All tensors in a fixed order."""
        return [*self.leaves, *self.constants.values(), *self.buffers.values(), *self.data]


def record(task: ChunkTask, inputs: Inputs, vectors: list[Tensor]) -> tuple[fx.Graph, list[str | Tensor], Read]:
    """The computation as a graph without mutations, its further inputs, and what it read of its data.

    See `operations.record_operations`; the parameters of the space and the vectors move.

    Placeholders: the inputs, the vectors, the further inputs. Outputs, flat: loss, buffers, gradient, product, v'Cv;
    and for the Gauss-Newton matrix J v and H_L J v, by output of the model.

    Raises:
        CannotTrace: the computation reads a tensor of unknown origin, or draws random numbers outside torch.
    """
    objective, chunk, index = task.objective, task.chunk, task.index
    leaves_of_data, structure = tree_flatten((chunk.inputs, chunk.targets))

    def computation(*tensors: Tensor) -> list[Tensor]:
        parts = iter(tensors)
        leaves = [next(parts).detach().requires_grad_() for _ in inputs.leaves]
        constants = {name: next(parts) for name in inputs.constants}
        moved = {name: next(parts).clone() for name in inputs.buffers}
        data = [next(parts) if isinstance(leaf, Tensor) else leaf for leaf in leaves_of_data]
        new_inputs, new_targets = tree_unflatten(data, structure)
        new_chunk = Chunk(new_inputs, new_targets, chunk.counted)
        one_pass = _Pass(replace(task, chunk=new_chunk), constants, moved)
        derive = one_pass.hessian if task.hessian else one_pass.gauss_newton
        loss, gradient, product, form = derive(leaves, list(parts))
        dense = [g.to_dense() if g.is_sparse else g for g in (*gradient, *product)]
        inner = [*one_pass.tangents, *one_pass.times]
        return [loss.detach(), *(moved[name].detach() for name in inputs.buffers), *dense, form, *inner]

    given, held = [*inputs.flat(), *vectors], held_tensors(objective)
    try:
        kernels = differentiable_kernels(objective.model)
        with torch.enable_grad(), objective.random_numbers(index), _only_torch_draws(), quiet_forward_mode(), kernels:
            graph, further, read = record_operations(computation, given, held, [*inputs.leaves, *vectors])
        if any(mutates(node) for node in graph.nodes):
            given += [held[x] if isinstance(x, str) else x for x in further]
            functional = functionalize(fx.GraphModule(torch.nn.Module(), graph).forward, remove="mutations")
            with torch.no_grad(), objective.random_numbers(index):
                graph, _, _ = record_operations(functional, given, {})
    except (RuntimeError, NotImplementedError) as error:
        if is_exhaustion(error):
            raise
        raise CannotTrace(str(error)) from error
    return graph, further, read


class _Pass:
    """Derivatives of one forward pass: loss, gradient, product and v'Cv, as functions of leaves and vectors.

    Args:
        task: with the recorder's tensors for data.
        constants: the model's other parameters by name.
        buffers: by name; moved by the pass.
    """

    def __init__(self, task: ChunkTask, constants: dict[str, Tensor], buffers: dict[str, Tensor]):
        self.objective, self.chunk, self.names, self.dtype = task.objective, task.chunk, task.space.names, task.dtype
        self.constants, self.buffers = constants, buffers
        self.outputs: list[Tensor] = []
        self.tangents: list[Tensor] = []
        self.times: list[Tensor] = []

    def gauss_newton(self, leaves: Tensors, v: Tensors) -> tuple[Tensor, Tensors, Tensors, Tensor]:
        """J' H_L J v."""
        with forward_ad.dual_level(), TangentsLikeGradients():
            try:
                loss = forward_ad.unpack_dual(self._loss(_duals(leaves, v), self._part)).primal
            except RuntimeError as error:
                if "Nested forward mode" in str(error):  # torch's words, of a level within the recorder's
                    raise CannotTrace(FORWARD_MODE) from error
                raise
        if not self.outputs:
            raise CannotTrace("no output depends on the parameters")
        times = loss_curvature(self.objective.program, self.chunk.targets, loss, self.outputs)(self.tangents)
        self.times = [x.detach() for x in times]
        gradient = grad(loss, leaves, retain_graph=True, materialize_grads=True)
        product = grad(self.outputs, leaves, times, materialize_grads=True)
        return loss, gradient, product, _dot(self.tangents, times)

    def hessian(self, leaves: Tensors, v: Tensors) -> tuple[Tensor, Tensors, Tensors, Tensor]:
        """H v as the gradient of g'v: forward mode through a backward pass ends the process for some losses."""
        with NoForwardMode():
            loss = self._loss(leaves)
        gradient = grad(loss, leaves, create_graph=True, materialize_grads=True)
        curved = [(g, x) for g, x in zip(gradient, v, strict=True) if g.requires_grad]
        slopes, vectors = zip(*curved, strict=True) if curved else ([loss], [torch.zeros_like(loss)])
        product = grad(slopes, leaves, vectors, materialize_grads=True)
        return loss, [g.detach() for g in gradient], product, _dot(v, product)

    def _loss(self, leaves: Tensors, between=None) -> Tensor:
        point = self.constants | dict(zip(self.names, leaves, strict=True))
        loss, _ = self.objective.forward_pass(self.chunk, point, self.buffers, self.dtype, between)
        if not loss.requires_grad:
            raise CannotTrace("the loss does not depend on the parameters")
        return loss

    def _part(self, outputs: Any) -> Any:
        """Primal parts for the loss, as nodes of their own; keeps them and their tangents."""

        def part(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
                return leaf
            primal, tangent = forward_ad.unpack_dual(leaf)
            primal = primal.view_as(primal)
            if primal.requires_grad:
                self.outputs.append(primal)
                self.tangents.append(torch.zeros_like(primal) if tangent is None else tangent.detach())
            return primal

        return tree_map(part, outputs)


def _duals(leaves: Tensors, v: Tensors) -> list[Tensor]:
    return [forward_ad.make_dual(leaf, tangent) for leaf, tangent in zip(leaves, v, strict=True)]


def _dot(u: Tensors, w: Tensors) -> Tensor:
    return torch.stack([(x.detach() * y.detach()).sum() for x, y in zip(u, w, strict=True)]).sum()


@contextlib.contextmanager
def _only_torch_draws() -> Iterator[None]:
    """Refuses a pass that draws from Python's or NumPy's generators: the trace would repeat one draw for ever."""
    before = random.getstate(), pickle.dumps(np.random.get_state())  # noqa: NPY002
    yield
    if before != (random.getstate(), pickle.dumps(np.random.get_state())):  # noqa: NPY002
        raise CannotTrace("the forward pass draws random numbers from Python or NumPy; draw them with torch")
