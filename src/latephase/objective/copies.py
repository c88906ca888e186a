"""Data that a pass works on in place: every pass of a step must see the data as they were given."""

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack  # pyright: ignore[reportMissingImports]
from torch.utils._pytree import tree_leaves, tree_map

_judged: "weakref.WeakKeyDictionary[nn.Module, dict[Any, bool]]" = weakref.WeakKeyDictionary()
"""Whether a pass works in place on its data, by model, and by what else takes part."""

MOST = 64
"""Judgements kept for each model: a loss made anew at each step must not fill the memory."""


class Copies:
    """The data of one pass, as copies where the pass works in place on them, or may.

    The first pass of a model, loss and forward function gets copies and is judged by them: by the tensors' versions,
    and by their values, which work through `.data` or NumPy changes without a word. Later ones get what they need.

    Args:
        model: of the pass.
        others: what else takes part: loss and forward function.
        trees: inputs and targets.

    Attributes:
        trees: what the pass gets.
    """

    def __init__(self, model: nn.Module, others: tuple[Any, ...], trees: tuple[Any, ...]):
        self._known = _judged.setdefault(model, {})
        self._key = (*map(id, others), model.training)
        self._given = _tensors(trees)
        self._plain = _is_plain(self._given)
        self._before = self._known.get(self._key)
        self.trees = trees if self._before is False else copied(trees)
        self._used = _tensors(self.trees)
        self._versions = [x._version for x in self._used] if self._plain else []

    def judge(self) -> None:
        """After the pass: remember what it does to its data.

        Raises:
            RuntimeError: it worked in place on the data themselves, which the first one did not.
        """
        if not self._plain or self._before:
            return
        changed = [x._version for x in self._used] != self._versions
        if self._before is None:
            changed = changed or not all(map(_same, self._used, self._given))
        if changed or self._before is None:
            if len(self._known) >= MOST:
                self._known.clear()
            self._known[self._key] = changed
        if changed and self._before is False:
            raise RuntimeError(
                "the model or the loss changed its inputs or targets in place, which it had not done before, so that "
                "the data are no longer those given; let it work on copies (x = x.clone()) and give the data anew"
            )


def _tensors(trees: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(trees) if isinstance(leaf, Tensor)]


def copied(trees: Any) -> Any:
    """The trees with copies of their tensors."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, trees)


def _is_plain(tensors: list[Tensor]) -> bool:
    """Whether these are tensors with values and versions, outside function transforms, recorders and inference."""
    if torch._C._len_torch_dispatch_stack() or peek_interpreter_stack() is not None:
        return False
    if torch.is_inference_mode_enabled():  # copies made there have no versions
        return False
    return all(type(x) in (Tensor, nn.Parameter) and not x.is_inference() for x in tensors)


def _same(x: Tensor, y: Tensor) -> bool:
    try:
        return torch.equal(x, y) or bool(((x == y) | ((x != x) & (y != y))).all())
    except (RuntimeError, NotImplementedError):  # sparse and nested layouts: their versions must do
        return True
