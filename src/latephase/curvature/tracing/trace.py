"""Partial evaluation: one chunk's loss, gradient and curvature product as a graph that is made once per shape.

The graph (`record`) computes v -> C v as a function of parameters, buffers, data and v, and is cut into stages
(`partition`): what does not depend on v runs once per step (`forward`; `gradient`, where it is asked for) and hands
over residuals; the rest is the product, and the quadratic form v'Cv.
"""

import contextlib
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor, fx

from ...objective import LossOfOutputs, is_exhaustion, plain_operators
from ..chunk_task import ChunkTask
from .computation import Inputs, record
from .operations import VALUE_READ, CannotTrace
from .rewrite import dtypes_of, is_random, simplify
from .signature import held_tensors
from .stages import Values, ancestors, cut, part_of

Tensors = Sequence[Tensor]


class Trace:
    """The stages of one traced chunk, valid for every chunk of the same signature.

    Args:
        task: the chunk to record; nothing of it is kept.

    Attributes:
        random: whether the pass draws random numbers.
        precision: machine epsilon of the narrowest numbers in it.
        stages: the graphs.

    Where the computation read truth values or whole numbers of its data (whether a mask masks anything), the trace is
    of the course that it took then, and serves only data of which the same would be read.

    Raises:
        CannotTrace: the computation depends on something that a graph cannot follow.
    """

    def __init__(self, task: ChunkTask):
        if not isinstance(task.objective.program, LossOfOutputs):
            raise CannotTrace("an objective made by from_forward reads data that a trace cannot see")
        inputs = Inputs.of(task)
        generator = torch.Generator().manual_seed(0)  # of its own: the user's random numbers stay as they are
        vectors = [torch.randn(x.shape, generator=generator).to(x) for x in inputs.leaves]
        graph, self._further, self._read = record(task, inputs, vectors)
        self._reading = _reading(graph, len(self._read), inputs, len(vectors))
        simplify(graph)
        self.random = any(is_random(node) for node in graph.nodes)
        self.precision = max(torch.finfo(x).eps for x in dtypes_of(graph) if x.is_floating_point)
        self.stages = cut(graph, len(inputs.flat()), len(vectors), 1 + len(inputs.buffers))
        self._buffer_names = list(inputs.buffers)

    def run(self, task: ChunkTask) -> "TracedPass | None":
        """What is computed once per step, on a chunk of the same signature; None where its data reads otherwise."""
        objective, index, space = task.objective, task.index, task.space
        inputs = Inputs.of(task)
        held = held_tensors(objective) if any(isinstance(x, str) for x in self._further) else {}
        further = [held[x] if isinstance(x, str) else x for x in self._further]
        if not self._serves([*inputs.flat(), *further]):
            return None
        numbers = objective.random_numbers(index) if self.random else contextlib.nullcontext()
        with plain_operators(space.device), numbers:
            loss, *values = self.stages.forward(*inputs.flat(), *further)
        moved = dict(zip(self._buffer_names, values, strict=False))

        def elsewhere() -> Values:
            with plain_operators(space.device), objective.random_numbers(index):
                return self.stages.forward(*inputs.moved().flat(), *further)[1 + len(moved) :]

        return TracedPass(self, loss, moved, values[len(moved) :], elsewhere)

    def _serves(self, given: list[Tensor]) -> bool:
        """Whether the same is read of these inputs as was when the trace was made."""
        if not self._read:
            return True
        with plain_operators(given[0].device):
            found = torch.stack([x.to(torch.int64).reshape(()) for x in self._reading(*given)])
        return found.tolist() == [int(value) for value in self._read]

    @cached_property
    def compiled_product(self) -> Callable[..., Tensors]:
        """The product through `torch.compile`, or as it is where there is no compiler."""
        return _compiled(self.stages.product)


class TracedPass:
    """One chunk at one point, its residuals kept for gradient and products.

    Attributes:
        loss: the chunk's loss, scalar.
        buffers: the model's buffers after the pass.
        residuals: what the first stages hand over to the product; None for those that were let go.
        elsewhere: the residuals of a pass at random parameters.
    """

    def __init__(
        self,
        trace: Trace,
        loss: Tensor,
        buffers: dict[str, Tensor],
        residuals: list[Tensor | None],
        elsewhere: Callable[[], Values],
    ):
        self.trace, self.loss, self.buffers = trace, loss, buffers
        self.residuals, self.elsewhere = residuals, elsewhere

    def gradient(self) -> Tensors:
        """Gradient of the loss in the leaves; may be asked for once, before it lets go of what only it needs."""
        stages = self.trace.stages
        with plain_operators(self.loss.device):
            gradient = stages.gradient(*(self.residuals[i] for i in stages.of_gradient))
        for i in set(stages.of_gradient) - set(stages.of_product) - set(stages.of_form):
            self.residuals[i] = None
        return gradient

    def product(self, v: Tensors, compiled: bool = False) -> Tensors:
        """C v; through `torch.compile` if wished."""
        stages = self.trace.stages
        stage = self.trace.compiled_product if compiled else stages.product
        with plain_operators(self.loss.device):
            return stage(*(self.residuals[i] for i in stages.of_product), *v)

    def quadratic_form(self, v: Tensors) -> Tensor:
        """The quadratic form v'Cv, scalar."""
        stages = self.trace.stages
        with plain_operators(self.loss.device):
            return stages.form(*(self.residuals[i] for i in stages.of_form), *v)[0]

    def storages(self) -> dict[int, int]:
        """Bytes of each storage that the residuals hold, by its address."""
        storages = (x.untyped_storage() for x in self.residuals if x is not None)
        return {storage.data_ptr(): storage.nbytes() for storage in storages}


def _reading(graph: fx.Graph, count: int, inputs: Inputs, vectors: int) -> Callable[..., Tensors]:
    """What gives the values that were read, of the inputs and further ones; they are outputs of the graph no longer.

    Raises:
        CannotTrace: they depend on parameters or vectors, which are others at every use.
    """
    nodes = list(graph.nodes)
    outputs = list(nodes[-1].args[0])
    ends, nodes[-1].args = outputs[len(outputs) - count :], (outputs[: len(outputs) - count],)
    places = [node for node in nodes if node.op == "placeholder"]
    first = len(inputs.flat())
    moving = {*places[: len(inputs.leaves)], *places[first : first + vectors]}
    if moving & ancestors(ends):
        raise CannotTrace(VALUE_READ)
    return part_of(nodes, places[:first] + places[first + vectors :], ends)


def _compiled(stage: Callable[..., Tensors]) -> Callable[..., Tensors]:
    compiled: Callable[..., Tensors] = torch.compile(stage, dynamic=False)
    failed = False

    def call(*tensors: Tensor) -> Tensors:
        nonlocal failed
        if failed:
            return stage(*tensors)
        try:
            return compiled(*tensors)
        except Exception as error:  # dynamo, inductor and the compilers behind it raise errors of every kind
            if is_exhaustion(error):
                raise
            failed = True
            first = str(error).strip().splitlines()
            warnings.warn(
                f"torch.compile failed ({type(error).__name__}: {first[0] if first else ''}); products run uncompiled. "
                "Inductor needs a C++ compiler on a CPU and Triton on a GPU; compile=False avoids this warning",
                RuntimeWarning,
                stacklevel=2,
            )
            return stage(*tensors)

    return call
