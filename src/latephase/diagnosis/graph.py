"""What autograd's graph of the loss consists of."""

import re
from collections.abc import Iterator
from typing import Any

from ..curvature import ChunkTask, ForwardPass
from .report import some
from .subject import Subject

KINKS = re.compile(
    r"Relu|RELU|Threshold|Max|Min|Amax|Amin|Clamp|Abs|Hardtanh|Hardsigmoid|Hardswish|L1|Huber|Sort|Topk|Median|Prelu|Rrelu"
)
"""Nodes whose slopes jump."""


def has_kinks(subject: Subject) -> bool:
    """Whether there is a function whose slope jumps."""
    return any(KINKS.search(node.name()) for node in _nodes(subject))


def suspects(subject: Subject) -> str:
    """Where to look for a wrong derivative, in a sentence: the autograd.Functions that are not torch's, by name."""
    found = {}
    for node in _nodes(subject):
        function = getattr(type(node), "_forward_cls", None)
        if function is not None and not function.__module__.startswith("torch."):
            once = getattr(function.backward, "__wrapped__", None) is not None  # by its decorator
            found[function.__name__] = " (marked once_differentiable)" if once else ""
    if not found:
        return "Look for hooks that change gradients, and for values that change between two calls."
    return f"Look at the derivatives of the autograd.Function {some(name + once for name, once in found.items())}."


def _nodes(subject: Subject) -> Iterator[Any]:
    """The nodes of the largest chunk's loss, each once."""
    objective = subject.objective
    forward = ForwardPass(ChunkTask(objective, subject.largest, 0, subject.space, objective.buffers()))
    seen, waiting = set(), [forward.loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            yield node
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
