"""What a user's function PACKAGE.MODULE:FACTORY makes, for the command line."""

import importlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


class FactoryError(Exception):
    """There is no such function, it fails, or it returns something else; says which, in one line."""


def made_by(factory: str) -> Any:
    """What a factory returns, the current directory being importable.

    Args:
        factory: PACKAGE.MODULE:FACTORY.

    Raises:
        FactoryError: another form, no such module or function, or an error inside either.
    """
    function = function_named(factory)
    try:
        return function()
    except Exception as error:  # of the user's function
        raise FactoryError(f"{factory} fails: {_in_one_line(error)}") from error


def function_named(factory: str) -> Callable[..., Any]:
    """The function PACKAGE.MODULE:FACTORY, the current directory being importable.

    Raises:
        FactoryError: another form, no such module or function, or an error while the module is imported.
    """
    where, _, name = factory.partition(":")
    if not all(part.isidentifier() for part in where.split(".")) or not name.isidentifier():
        raise FactoryError(f"{factory!r} is not of the form PACKAGE.MODULE:FACTORY, such as problem:make")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name and f"{where}.".startswith(f"{error.name}."):
            raise FactoryError(f"there is no module {error.name!r}, in {here} or installed") from error
        raise FactoryError(f"importing {where} fails: {_in_one_line(error)}") from error
    except Exception as error:  # of the user's module
        raise FactoryError(f"importing {where} fails: {_in_one_line(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == where]
        own = [key for key in own if callable(vars(module)[key]) and not key.startswith("_")]
        hint = f"; it has {', '.join(own[:6])}" if own else ""
        raise FactoryError(f"{where} has no function {name!r}{hint}")
    return function


def problem_of(made: Any, factory: str) -> tuple[Any, Any, Any]:
    """Model, loss and batch that a factory returned.

    Raises:
        FactoryError: it returned something else.
    """
    if isinstance(made, (tuple, list)) and len(made) == 3:
        return made[0], made[1], made[2]
    what = f"{type(made).__name__} of {len(made)}" if isinstance(made, (tuple, list)) else type(made).__name__
    raise FactoryError(f"{factory} must return (model, loss, batch) or an Objective, got {what}")


def move_to(device: str | None, model: Any, loss: Any, batch: Any) -> tuple[Any, Any, Any]:
    """Model, loss and batch on a device; as they are where none is given.

    Raises:
        FactoryError: there is no such device here.
    """
    if device is None:
        return model, loss, batch
    from torch import Tensor, nn
    from torch.utils._pytree import tree_map

    try:
        model, loss = (part.to(device) if isinstance(part, nn.Module) else part for part in (model, loss))
        batch = tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, batch)
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts
        first = str(error).strip().splitlines()[0]
        raise FactoryError(f"nothing can be moved to {device!r}: {first}") from error
    return model, loss, batch


def _in_one_line(error: BaseException) -> str:
    """An error with the place where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    words = str(error).strip().splitlines()
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {words[0] if words else ''}{place}"
