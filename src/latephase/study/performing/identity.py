"""What makes two runs the same: everything that moves results, in one hash."""

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ...problems.registry import factory_of
from ..config import Study
from ..outline import DTYPE
from ..strategies import StrategyTable
from .source import code_of, digest_of

PACKAGE = Path(__file__).parents[2]

ROOMS = ("objective", "curvature", "solve", "optim", "problems", "study/strategies")
"""Rooms of the package whose code moves results, beside `parameters`."""

MODULES = ("active_run", "checkpoint", "clock", "evaluate", "run", "train")
"""Modules of `study.performing` that do. The configuration's own defaults are in the table that is hashed beside it."""


@cache
def code_version() -> str:
    """A hash of this package's code that moves results, so that runs of different versions are told apart.

    Comments and docstrings do not enter: a mended typo leaves the results of a week as good as they were.
    """
    paths = [PACKAGE / "parameters.py"]
    paths += [path for room in ROOMS for path in (PACKAGE / room).rglob("*.py")]
    paths += [PACKAGE / "study" / "performing" / f"{module}.py" for module in MODULES]
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(str(path.relative_to(PACKAGE)).encode() + b"\0" + digest_of(path.read_bytes()).encode() + b"\0")
    return digest.hexdigest()[:16]


def own_code(problem: str, strategies: Iterable[StrategyTable] = ()) -> dict[str, str]:
    """Hashes of the code outside of this package that makes a problem and strategies, by PACKAGE.MODULE:FACTORY.

    Args:
        problem: its name.
        strategies: of which those of the user's own count.
    """
    factories = {factory_of(problem)} - {""}
    factories |= {factory for strategy in strategies for factory in strategy.factories}
    return {factory: code_of(factory) for factory in sorted(factories)}


def identity_of(
    study: Study, strategy: StrategyTable, epoch: int, seed: int, budget: float, code: str | None = None
) -> str:
    """The identity of a run: a hash of configuration, problem version, code (the user's own, too) and torch version.

    Labels, and how many runs are performed at a time, do not enter.

    Args:
        study: the study.
        strategy: the run's strategy.
        epoch: of its checkpoint.
        seed: its seed.
        budget: in the study's unit.
        code: version of this package's code; default: what is installed now.
    """
    return _hash(
        _common(study, code)
        | {
            "strategy": strategy.model_dump(exclude={"label"}),
            "own_code": own_code(study.problem, [strategy]),
            "epoch": epoch,
            "seed": seed,
            "unit": study.budget.unit,
            "budget": budget,
            "evaluations": study.evaluations,
            "fresh_weights": study.fresh_weights,
        }
    )


def training_identity(study: Study, code: str | None = None) -> str:
    """The identity of a training and of its checkpoints, likewise."""
    return _hash(_common(study, code))


def _common(study: Study, code: str | None) -> dict[str, Any]:
    return {
        "problem": study.problem,
        "problem_version": study.problem_version,
        "problem_options": study.problem_options,
        "training": study.training.model_dump(),
        "threads": study.threads,
        "device": study.device,
        "own_code": own_code(study.problem),
        "code": code_version() if code is None else code,
        "torch": torch.__version__,
    } | {  # no key for what results are that were made before there was such a key
        name: value for name, value, former in _later(study) if value != former
    }


def _later(study: Study) -> list[tuple[str, str, str]]:
    """Keys that came later: name, value, and what results without it have."""
    return [("dtype", study.dtype, DTYPE), ("clock", study.clock, "wall")]


def _hash(table: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()[:16]
