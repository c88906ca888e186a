"""Which layers a pass calls once and uses nowhere else: of an objective of terms, in each term, on all ranks."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor  # pyright: ignore[reportMissingImports]
from torch.utils._pytree import tree_leaves

from ...objective import Chunk, Objective, Residuals, cut, term_of
from .layer_uses import LayerUses

Pass = Callable[[Chunk], tuple[Counter[str], LayerUses]]
"""A chunk -> how often each layer is called, and what else becomes of its parameters."""


def called_once(objective: Objective, layers: Mapping[str, nn.Module], watched: Pass) -> dict[str, str | None]:
    """The layers that are called once, each with what is in the way of factors, in words, or None.

    An objective has one kind of pass, that of its first chunk. With terms, each has its own, and ranks may have
    different ones: a layer counts that at least one term calls once, and what any term does with it, or that it does
    nothing with it, is in the way.

    Args:
        objective: whose passes.
        layers: by name.
        watched: a pass.
    """
    if not isinstance(objective.program, Residuals):
        calls, uses = watched(objective.chunks[0])
        return {name: uses.obstacle(layer) for name, layer in layers.items() if calls[name] == 1}
    once, found = dict.fromkeys(layers, False), dict[str, str]()
    firsts = {term_of(chunk): chunk for chunk in reversed(objective.chunks)}
    for term, chunk in firsts.items():
        calls, uses = watched(chunk)
        for name, layer in layers.items():
            once[name] = once[name] or calls[name] == 1
            obstacle = uses.obstacle(layer) if calls[name] == 1 else f"it is called {calls[name]} times"
            if obstacle:
                found[name] = f"in term {term!r} {obstacle}"
    device = next(objective.model.parameters()).device
    flags = torch.tensor([[float(once[name]), float(name in found)] for name in layers], device=device)
    flags = objective.reduce.sum([flags], "how terms use layers")[0].tolist() if layers else []
    elsewhere = "a term of another rank uses it in another way than by one call"
    return {
        name: found.get(name, elsewhere) if in_the_way else None
        for name, (is_once, in_the_way) in zip(layers, flags, strict=True)
        if is_once
    }


def calls_of(
    objective: Objective, chunk: Chunk, layers: Mapping[str, nn.Module], inside: set[str]
) -> tuple[Counter[str], LayerUses]:
    """How often each layer is called in a pass, and what becomes of its parameters before the loss.

    Calls with more than a tensor count twice, and those that no backward pass comes through do not count.

    Args:
        objective: of the chunk.
        chunk: the data.
        layers: by name.
        inside: gets the names of layers whose parameters derivatives inside the pass use, too.
    """
    calls: Counter[str] = Counter()
    model = objective.model
    point = {name: p.detach().requires_grad_(p.requires_grad) for name, p in model.named_parameters()}
    uses = LayerUses(layers, point, model)
    outputs, passed = [], set[str]()

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            calls[name] += 1 if len(arguments) == 1 and isinstance(arguments[0], Tensor) else 2
            uses.called(module, arguments, output)
            if isinstance(output, Tensor) and output.requires_grad and not is_functorch_wrapped_tensor(output):
                output.register_hook(lambda slopes: passed.add(name))

        return hook

    def until_the_loss(tree: Any) -> Any:
        uses.watching = False
        outputs.extend(leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
        return tree

    hooks = [module.register_forward_hook(watch(name)) for name, module in layers.items()]
    try:
        with torch.enable_grad(), objective.random_numbers(0), uses:
            some = cut(chunk, 0, min(chunk.rows, 8))
            loss, _ = objective.forward_pass(some, point, objective.buffers(), between=until_the_loss)
    finally:
        for hook in hooks:
            hook.remove()
    uses.end(outputs or [loss])  # from_forward has nothing between
    for name, layer in layers.items():
        if calls[name] == 1 and uses.obstacle(layer) is None:
            own = (point[path] for key in layer._parameters if (path := f"{name}.{key}" if name else key) in point)
            if name in passed or not all(uses.enters_by_call(layer, p) for p in own):
                inside.add(name)
            if not (name in passed or uses.is_reached(layer)):
                calls[name] = 0
    return calls, uses
