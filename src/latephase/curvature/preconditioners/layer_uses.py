"""What a pass makes of the weights of its layers: whether a layer's call is all that there is of them."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor  # pyright: ignore[reportMissingImports]
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode

from .graph_readers import Readers, is_read_through, leaves_of, readers_of

OPERATIONS = (F.linear, F.conv2d)
"""Of the layers that are watched: (input, weight, bias, ...) -> output."""

Call = tuple[Any, Tensor, int, Node | None]
"""Of a layer's operation its input, and its result with version and node."""


class LayerUses(TorchFunctionMode):
    """Within, every use of the layers' parameters through which a gradient flows is counted.

    A preconditioner that reads a layer's input and the slope in its output knows the weight's gradient only where the
    layer's own operation is the one use of the weight, with that input and that output: not where a hook or the class
    changes them, nor where the weight is also used elsewhere, as a whole or in part. A derivative of the network inside
    the pass uses it in every backward pass that it takes, which calls no function of torch: the graph tells (`end`).

    Args:
        layers: by name, to be called at most once.
        at: the parameters of the pass by their names in the model, those that count requiring a gradient.
        model: whose layers they are.
    """

    def __init__(self, layers: Mapping[str, nn.Module], at: Mapping[str, Tensor], model: nn.Module):
        super().__init__()
        self.watching = True
        self._layer_of: dict[int, nn.Module] = {}
        self._parameters = dict(model.named_parameters(remove_duplicate=False))
        self._own: dict[nn.Module, list[Call]] = {layer: [] for layer in layers.values()}
        self._elsewhere: set[nn.Module] = set()
        self._changed: set[nn.Module] = set()
        self._readers: Readers = {}
        self._ends: set[Node | None] = set()
        self._nodes: dict[int, Node] = {}
        for name, layer in layers.items():
            for key in layer._parameters:
                path = f"{name}.{key}" if name else key
                # What a pass swaps in, and the model's own, which code may have kept aside.
                for p in (at.get(path), self._parameters[path] if layer._parameters[key] is not None else None):
                    if p is not None:
                        self._layer_of[id(p)] = layer

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.watching:
            used = {self._layer_of[id(leaf)] for leaf in _leaves((args, kwargs)) if id(leaf) in self._layer_of}
            if used and any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in _leaves(result)):
                own = self._owner(args[1:3]) if func in OPERATIONS else None
                if own is not None and id(args[0]) not in self._layer_of:
                    self._own[own].append((args[0], result, result._version, result.grad_fn))
                    used.discard(own)
                self._elsewhere |= used
        return result

    def _owner(self, arguments: tuple[Any, ...]) -> nn.Module | None:
        """Whose operation has this weight, or this bias where the weight is computed."""
        return next((self._layer_of[id(x)] for x in arguments if id(x) in self._layer_of), None)

    def called(self, layer: nn.Module, arguments: tuple[Any, ...], output: Any) -> bool:
        """Whether the layer's operation got what the layer got and returned what it returns; call it from a hook."""
        calls = self._own[layer]
        same = len(calls) == 1 and len(arguments) == 1 and arguments[0] is calls[0][0] and output is calls[0][1]
        same = same and output._version == calls[0][2] and not is_functorch_wrapped_tensor(output)
        if not same:
            self._changed.add(layer)
        return same

    def end(self, ends: Iterable[Tensor]) -> None:
        """Read the graph that the pass has left, from the tensors at its ends."""
        ends = list(ends)
        self._ends = {x.grad_fn for x in ends}
        self._readers = readers_of(ends)
        self._nodes = leaves_of(self._readers)

    def enters_by_call(self, layer: nn.Module, p: Tensor) -> bool:
        """After `end`: whether the layer's operation is all that a parameter's gradient comes through.

        Args:
            layer: without an obstacle.
            p: the layer's parameter, as the pass had it.
        """
        node = self._nodes.get(id(p))
        return node is None or is_read_through(self._readers, node, self._own[layer][0][3])

    def is_reached(self, layer: nn.Module) -> bool:
        """After `end`: whether what the layer's operation gives is in the graph."""
        node = self._own[layer][0][3] if self._own[layer] else None
        return node in self._readers or node in self._ends

    def is_seen_whole(self, layer: nn.Module) -> bool:
        """After `end`: whether what a hook makes of the output of the layer's operation is all that is made of it."""
        node = self._own[layer][0][3]
        return node is None or len(self._readers.get(node, [])) <= 1

    def obstacle(self, layer: nn.Module) -> str | None:
        """After the pass: why a gradient in the layer's weight does not come from its one call alone, in words."""
        if layer in self._changed:
            return "its inputs or outputs are changed on the way, by a hook or its class"
        if layer in self._elsewhere or len(self._own[layer]) > 1:
            return "its weight is also used outside its call"
        return None if self._own[layer] else "no gradient flows through its call"


def _leaves(tree: Any) -> Iterator[Any]:
    """What is in tuples, lists and dicts, at a tenth of the time that torch's own trees take at every operation."""
    if isinstance(tree, (tuple, list)):
        for each in tree:
            yield from _leaves(each)
    elif isinstance(tree, dict):
        yield from _leaves(tuple(tree.values()))
    else:
        yield tree
