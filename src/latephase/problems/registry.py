"""Where problems are found: this package's table, entry points of installed packages, and PACKAGE.MODULE:FACTORY."""

import dataclasses
import importlib
import inspect
from collections.abc import Callable
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from ..user_code import FactoryError, function_named
from .problem import Problem

ENTRY_POINTS = "latephase.problems"
"""The group of entry points in which an installed package names its problems."""

_OWN = {
    "digits": "digits",
    "cifar10_3c3d": "deepobs",
    "cifar100_allcnnc": "deepobs",
    "svhn_wrn164": "deepobs",
    "fmnist_2c2d": "deepobs",
    "fmnist_cnn": "classifiers",
    "mnist_mlp": "deepobs",
    "quadratic_deep": "functions",
    "mnist_autoencoder": "autoencoders",
    "curves_autoencoder": "autoencoders",
    "faces_autoencoder": "autoencoders",
    "mnist_lstm": "classifiers",
    "cifar10_resnet20": "classifiers",
    "rnn_addition": "pathological",
    "rnn_multiplication": "pathological",
    "rnn_xor": "pathological",
    "rnn_temporal_order": "pathological",
    "rnn_temporal_order_3bit": "pathological",
    "rosenbrock": "functions",
    "uci_energy": "regression",
    "uci_protein": "regression",
    "fmnist_mlp50": "classifiers",
    "cifar10_resnet18": "classifiers",
    "svhn_resnet18": "classifiers",
    "shakespeare_lstm": "text",
    "shakespeare_gpt": "text",
    "pinn_convection": "pinn",
    "pinn_reaction": "pinn",
    "pinn_wave": "pinn",
    "pinn_burgers": "pinn",
    "pinn_allen_cahn": "pinn",
    "pinn_kdv": "pinn",
    "pinn_helmholtz": "pinn",
    "pinn_poisson2d": "pinn",
    "pinn_poisson5d": "pinn",
    "pinn_poisson10d": "pinn",
    "pinn_heat1d": "pinn",
    "pinn_heat4d": "pinn",
}
"""Module of each problem's function, which has the problem's name."""


class ProblemError(ValueError):
    """There is no such problem, it does not take these options, or what makes it returns something else."""


def names() -> list[str]:
    """Names of all problems: this package's in the order of the papers, then those of installed packages."""
    return [*_OWN, *(point.name for point in _installed())]


def get(name: str, **options: Any) -> Problem:
    """Look up a problem.

    Args:
        name: one of `names()`; or PACKAGE.MODULE:FACTORY, a function of yours that returns a `Problem`.
        options: of the problem, see its function; they are part of what its results mean and stay with it as
            `problem.options`.

    Raises:
        ProblemError: no problem of that name (the message lists those there are), an option that it does not have or a
            value that it refuses, or a function that fails or returns no `Problem`.
    """
    make = _found(name)
    known = inspect.signature(make).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known):
        taken = [parameter.name for parameter in known]
        for option in options:
            if option not in taken:
                raise ProblemError(f"problem {name!r} has no option {option!r}; it has {', '.join(taken) or 'none'}")
    try:
        problem = make(**options)
    except Exception as error:  # of a function that may be the user's
        raise ProblemError(f"problem {name!r} cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(problem, Problem):
        raise ProblemError(f"{name} must return a latephase.problems.Problem, got {type(problem).__name__}")
    return dataclasses.replace(problem, name=name, options=dict(options))


def option_defaults(name: str) -> dict[str, Any]:
    """The options of a problem and their defaults.

    Raises:
        ProblemError: no problem of that name.
    """
    known = inspect.signature(_found(name)).parameters.values()
    return {p.name: None if p.default is p.empty else p.default for p in known if p.kind is not p.VAR_KEYWORD}


def factory_of(name: str) -> str:
    """PACKAGE.MODULE:FACTORY of a problem that is not this package's; else nothing."""
    if ":" in name:
        return name
    return next((point.value for point in _installed() if point.name == name), "") if name not in _OWN else ""


def _found(name: str) -> Callable[..., Any]:
    """The function that makes a problem."""
    if name in _OWN:
        return getattr(importlib.import_module(f".{_OWN[name]}", __package__), name)
    if ":" in name:
        try:
            return function_named(name)
        except FactoryError as error:
            raise ProblemError(str(error)) from error
    for point in _installed():
        if point.name == name:
            try:
                return point.load()
            except Exception as error:  # of another package
                raise ProblemError(f"problem {name!r} of {point.value} cannot be loaded: {error}") from error
    close = get_close_matches(name, names(), n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ProblemError(
        f"unknown problem {name!r}; known problems: {', '.join(names())}; your own is PACKAGE.MODULE:FACTORY.{hint}"
    )


def _installed() -> list[EntryPoint]:
    return sorted((point for point in entry_points(group=ENTRY_POINTS) if point.name not in _OWN), key=lambda p: p.name)
