"""Which layers a pass calls once and uses nowhere else: of an objective of terms, in each term, on all ranks."""

from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch import nn

from ...objective import Chunk, Objective, Residuals, term_of
from .layer_uses import LayerUses

Pass = Callable[[Chunk], tuple[Counter[str], LayerUses]]
"""A chunk -> how often each layer is called, and what else becomes of its parameters."""


def called_once(objective: Objective, layers: Mapping[str, nn.Module], watched: Pass) -> dict[str, str | None]:
    """The layers that are called once, each with what is in the way of factors, in words, or None.

    An objective has one kind of pass, that of its first chunk. With terms, each has its own, and ranks may have
    different ones: a layer counts that at least one term calls once, and what any term does with it is in the way.

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
            if calls[name] and obstacle:
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
