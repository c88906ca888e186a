"""A recorder of tensor operations: runs a function on real tensors and writes down what it did as a graph."""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from .rewrite import is_random
from .stages import ancestors

aten = torch.ops.aten

READING = ("tolist", "numpy", "__array__", "__dlpack__", "data_ptr", "storage", "untyped_storage")
"""Functions of a tensor that hand out its values or its memory."""

MOST_READ = 64
"""Values of the data that may be read into Python; whoever reads more goes through the examples one by one."""

Read = list[int]
"""Whole numbers and truth values that were read into Python, in order."""


VALUE_READ = "the value of a tensor is read into Python (item(), float(), a branch on it)"


class CannotTrace(RuntimeError):
    """A computation cannot be repeated as a graph; says why."""


def record_operations(
    function: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor],
    held: Mapping[str, Tensor],
    moving: Sequence[Tensor] = (),
) -> tuple[fx.Graph, list[str | Tensor], Read]:
    """Run a function and record every operation below autograd, those of its backward passes included.

    `torch.fx`'s own `make_fx` does the same with fake tensors beside the real ones, at several times the cost, and
    bakes in sizes that depend on the data.

    Args:
        function: of the inputs, to a flat sequence of tensors.
        inputs: the graph's inputs, in order.
        held: further tensors that the function may use, by name.
        moving: those of the inputs that are others at every use, so that nothing made of them may be read.

    Returns:
        The graph; its further inputs, which follow the given ones: held tensors that were used, by name, and
        constants that the function made of Python numbers; and the truth values and whole numbers that the function
        read of its other inputs, on which the course that it took may depend. What they were read from are the last
        outputs of the graph. Every node of a tensor has its shape, dtype, strides and device as `node.meta["layout"]`.

    Raises:
        CannotTrace: the function reads values of tensors into Python, makes shapes of them, or uses a tensor of
            unknown origin.
    """
    recorder = _Recorder(inputs, held, moving)
    with recorder, _NoReading():
        outputs = [*function(*inputs), *recorder.read_from]
    recorder.graph.output([recorder.node_of(output) for output in outputs])
    return recorder.graph, recorder.further, recorder.read


class _Recorder(TorchDispatchMode):
    """Records each operation that is dispatched, after running it."""

    def __init__(self, inputs: Sequence[Tensor], held: Mapping[str, Tensor], moving: Sequence[Tensor]):
        super().__init__()
        self.graph = fx.Graph()
        self.further: list[str | Tensor] = []
        self.read: Read = []
        self.read_from: list[Tensor] = []
        self._held = {id(tensor): name for name, tensor in held.items()}
        self._nodes = WeakTensorKeyDictionary()
        for position, tensor in enumerate(inputs):
            self._last = self.graph.placeholder(f"input_{position}")
            self._name(tensor, self._last)
        self._moving = {self._nodes[tensor] for tensor in moving}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default:
            return self._read(args[0])
        _refuse(func, args, kwargs)
        fresh = func in (aten.lift_fresh.default, aten.lift_fresh_copy.default)
        nodes = tree_map(lambda leaf: self.node_of(leaf, fresh) if isinstance(leaf, Tensor) else leaf, (args, kwargs))
        result = func(*args, **kwargs)
        if any(isinstance(leaf, Tensor) for leaf in tree_flatten(result)[0]):
            node = self.graph.call_function(func, *nodes)
            if isinstance(result, Tensor):
                self._name(result, node)
            else:
                for position, part in enumerate(result):
                    self._name_part(part, node, position)
        return result

    def _read(self, tensor: Tensor) -> int:
        """The value of a tensor for Python, kept with what it was read from.

        Raises:
            CannotTrace: it is another one at every use, or may be.
        """
        node = self.node_of(tensor)
        exact = not (tensor.is_floating_point() or tensor.is_complex())
        moves = any(each in self._moving or is_random(each) for each in ancestors([node]))
        if not exact or moves or len(self.read) == MOST_READ:
            raise CannotTrace(VALUE_READ)
        copy = tensor.clone()  # what is read may be written over later
        self._name(copy, self.graph.call_function(aten.clone.default, (node,)))
        self.read_from.append(copy)
        self.read.append(tensor.item())  # pyright: ignore[reportArgumentType]
        return self.read[-1]

    def node_of(self, tensor: Tensor, fresh: bool = False) -> fx.Node:
        """The node that a tensor comes from; one that nobody made becomes one more input."""
        node = self._nodes.get(tensor)
        if node is None:
            node = self._further_input(tensor, fresh)
            self._name(tensor, node)
        return node

    def _name(self, tensor: Tensor, node: fx.Node) -> None:
        strides = tensor.stride() if tensor.layout == torch.strided else None
        node.meta["layout"] = (tuple(tensor.shape), tensor.dtype, strides, tensor.device)
        self._nodes[tensor] = node

    def _name_part(self, part: Any, node: fx.Node, position: int) -> None:
        if isinstance(part, Tensor):
            self._name(part, self.graph.call_function(operator.getitem, (node, position)))
        elif isinstance(part, (tuple, list)):
            own = self.graph.call_function(operator.getitem, (node, position))
            for index, inner in enumerate(part):
                self._name_part(inner, own, index)

    def _further_input(self, tensor: Tensor, fresh: bool) -> fx.Node:
        if tensor._is_zerotensor():  # torch's own tangent of a frozen layer norm's weight, made where nobody records
            return self.graph.call_function(
                aten.zeros.default, (list(tensor.shape),), {"dtype": tensor.dtype, "device": tensor.device}
            )
        name = self._held.get(id(tensor))
        if name is None and not fresh:
            raise CannotTrace(
                f"a tensor of shape {tuple(tensor.shape)} is used that is neither parameter, buffer, data nor an "
                "attribute of a module; register it as a buffer"
            )
        with self.graph.inserting_after(self._last):
            self._last = self.graph.placeholder(f"further_{len(self.further)}")
        self.further.append(tensor.detach() if name is None else name)
        return self._last


class _NoReading(TorchFunctionMode):
    """Refuses to hand a tensor's memory to NumPy or Python, which no operation below autograd shows."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in READING:
            raise CannotTrace(f"the values of a tensor are read into Python ({func.__name__})")
        return func(*args, **(kwargs or {}))


def _refuse(func: Any, args: Any, kwargs: Any) -> None:
    """Raise where an operation cannot be repeated on other data."""
    if torch.Tag.data_dependent_output in func.tags:
        raise CannotTrace(VALUE_READ)
    if any(isinstance(leaf, torch.Generator) for leaf in tree_flatten((args, kwargs))[0]):
        raise CannotTrace("random numbers are drawn from a generator of its own")
    if torch.Tag.dynamic_output_shape in func.tags and not (func is aten.index.Tensor and _by_position(args[1])):
        raise CannotTrace(f"{func} makes a shape that depends on the values of the data")


def _by_position(indices: Sequence[Tensor | None]) -> bool:
    return all(index is None or index.dtype not in (torch.bool, torch.uint8) for index in indices)
