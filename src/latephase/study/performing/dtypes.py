"""The dtype of a study: torch's default one while data is loaded, models are made, and everything is computed."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from ...problems import Problem
from ...problems.problem import is_batch
from ..config import ConfigError, Study
from ..outline import DTYPE


@contextlib.contextmanager
def in_dtype(study: Study) -> Iterator[None]:
    """Torch's default dtype is that of the study; restored afterwards, as a process may serve several studies."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, study.dtype))
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def called_in_dtype(study: Study, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in the dtype of a study; a module's function, as processes are sent."""
    with in_dtype(study):
        return function(*arguments)


def check_dtype(study: Study, problem: Problem, train: Any) -> None:
    """Look whether a problem follows another dtype than the usual one, by its model and a row of its data.

    Args:
        study: the study; nothing is looked at where its dtype is the default.
        problem: its problem.
        train: the training split, loaded in that dtype.

    Raises:
        ConfigError: it makes parameters or data of another one; names them.
    """
    if study.dtype == DTYPE:
        return
    with in_dtype(study):
        model = problem.model()
        batch = problem.batch(train, slice(0, 1)) if is_batch(train) else problem.batch(train)
    found = [(f"the parameter {name}", parameter) for name, parameter in model.named_parameters()]
    found += [("its data", leaf) for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor) and leaf.dim()]
    for what, tensor in found:
        if tensor.is_floating_point() and tensor.dtype != getattr(torch, study.dtype):
            raise ConfigError(
                f"dtype is {study.dtype}, but problem {problem.name} makes {what} in "
                f"{str(tensor.dtype).removeprefix('torch.')}: make it in torch.get_default_dtype(), or leave dtype out"
            )
