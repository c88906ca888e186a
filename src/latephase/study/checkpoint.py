"""Checkpoints of the first-order training: everything that going on needs, written aside and renamed."""

import os
from pathlib import Path
from typing import Any

import torch


def checkpoint_path(directory: Path, epoch: int) -> Path:
    """Where the checkpoint of an epoch lies in a study's folder."""
    return directory / "training" / "checkpoints" / f"epoch-{epoch:04d}.pt"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    with aside.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; tensors and plain values only, so that a file from elsewhere runs no code.

    Raises:
        ValueError: the file is damaged; says which and what to do.
    """
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and run the study again") from error
