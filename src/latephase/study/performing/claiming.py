"""Whose a study's folder is: one study's, of one machine and one code, and of one process at a time for each part."""

import contextlib
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from ...records import DamagedFile, read_or_set_aside, read_toml, sealed_toml, write_json, write_text_atomic
from ..config import ConfigError, Study
from .identity import training_identity

FREE = ("seeds", "description", "strategies", "kinds", "baseline", "target", "jobs", "curves")
"""Keys that may change when a study goes on: a run's identity says whether its result still holds."""

SAME_MACHINE = ("cpu", "torch", "latephase", "threads", "device")
"""What must be as before when a study in seconds goes on: seconds on one machine are not seconds on another."""

LOCKED_AT_MOST = 10.0
"""Seconds."""

UNCLAIMED = (".lock", ".study.toml.")
"""How the names begin of what a process writes before `study.toml` is there."""


def check_folder(study: Study, directory: Path) -> None:
    """Look whether a folder can take a study: it is new, empty, or holds the same one.

    Raises:
        ConfigError: it holds something else, or another study; names the first key that differs.
    """
    path = directory / "study.toml"
    # Listed before the file is looked for: another shard may write it in between, and it is the first of its files.
    filled = directory.exists() and any(not entry.name.startswith(UNCLAIMED) for entry in directory.iterdir())
    if os.path.lexists(path):
        try:
            toml = read_toml(path)
        except DamagedFile as error:
            raise ConfigError(
                f"{path} is damaged ({error.problem}), so that it cannot be known what the results beside it are of; "
                "restore it, or choose another folder with --out"
            ) from error
        if not toml.sealed and (directory / "training").exists():
            raise ConfigError(
                f"{path} has no checksum in its last line, so that it was written by an earlier version of latephase, "
                "or is damaged: results of both versions do not belong in one table; choose another folder with --out"
            )
        old = toml.table
        new = tomllib.loads(study.toml())
        for key in sorted((old | new).keys() - set(FREE)):
            if old.get(key, _default_of(key)) != new.get(key):
                raise ConfigError(
                    f"{directory} holds another study: {key} is {old.get(key)!r} there and {new.get(key)!r} here; "
                    "choose another folder with --out, or delete this one"
                )
    elif filled:
        raise ConfigError(
            f"{directory} is not empty and holds no study (no study.toml); choose another folder with --out"
        )


def _default_of(key: str) -> Any:
    """What a study that was written before there was such a key meant."""
    return None if key not in Study.model_fields else Study.model_fields[key].get_default()


def claim(study: Study, directory: Path) -> None:
    """Write the study's configuration into its folder, unless another study is there.

    Raises:
        ConfigError: as `check_folder`.
    """
    check_folder(study, directory)
    write_text_atomic(directory / "study.toml", sealed_toml(study.toml()))


def claim_machine(directory: Path, environment: dict[str, Any], study: Study) -> None:
    """Write down the machine and the software, unless a study in seconds began on others.

    Raises:
        ConfigError: it did; names what differs.
    """
    path = directory / "environment.json"
    before = read_or_set_aside(path) or environment
    for key in SAME_MACHINE if study.budget.unit == "seconds" else ():
        if before.get(key) != environment[key]:
            raise ConfigError(
                f"{directory} was begun with {key} {before.get(key)!r}, this is {environment[key]!r}: their seconds do "
                "not compare; choose another folder with --out"
            )
    write_json(path, environment)


def claim_training(study: Study, directory: Path) -> None:
    """Write down which configuration and code train, unless others did.

    Raises:
        ConfigError: they did.
    """
    path, identity = directory / "training" / "run.json", training_identity(study)
    if (read_or_set_aside(path) or {}).get("identity", identity) != identity:
        raise ConfigError(
            f"{path.parent} was trained by other versions of latephase or torch, or of the problem's own code: what "
            "comes of both does not belong in one table; choose another folder with --out, or delete this one"
        )
    write_json(path, {"identity": identity})


@contextlib.contextmanager
def alone(directory: Path, part: int, parts: int) -> Iterator[None]:
    """Hold a part of a study, while nobody holds that part or one of another division, whose runs would overlap.

    Raises:
        Timeout: somebody does.
    """
    with FileLock(directory / ".lock", timeout=LOCKED_AT_MOST):  # held during these lines only
        for path in directory.glob(".lock-*-of-*"):
            if not path.name.endswith(f"-of-{parts}"):
                with FileLock(path, timeout=0):
                    pass
        lock = FileLock(directory / f".lock-{part}-of-{parts}")
        lock.acquire(timeout=0)
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def one_trains(directory: Path) -> Iterator[None]:
    """Of several processes one trains, the others wait for it."""
    with FileLock(directory / ".lock-training"):
        yield
