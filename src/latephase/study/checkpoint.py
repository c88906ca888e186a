"""Checkpoints of the first-order training: everything that going on needs, written aside and renamed."""

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from ..files import Damaged, open_regular


def checkpoint_path(directory: Path, epoch: int) -> Path:
    """Where the checkpoint of an epoch lies in a study's folder."""
    return directory / "training" / "checkpoints" / f"epoch-{epoch:04d}.pt"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside, whole = path.with_suffix(".tmp"), io.BytesIO()
    torch.save(state, whole)  # not into the file: torch's own error of a full disk does not say so
    try:
        aside.unlink(missing_ok=True)  # of an attempt that was killed, or a link that somebody laid there
        with aside.open("xb") as file:
            file.write(whole.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; tensors and plain values only, so that a file from elsewhere runs no code.

    Raises:
        Damaged: the file is damaged, or a link; says which and what to do.
    """
    try:
        with open_regular(path) as file:
            with zipfile.ZipFile(file) as parts:  # torch does not compare checksums
                if (damaged := parts.testzip()) is not None:
                    raise ValueError(f"checksum of {damaged}")
            file.seek(0)
            return torch.load(file, weights_only=True, map_location="cpu")
    except (FileNotFoundError, Damaged):
        raise
    except Exception as error:
        raise Damaged(f"{path} is damaged ({error}); run the study again, which sets it aside") from error


def random_states() -> dict[str, Any]:
    """The states of torch's generators, of the CPU and of every CUDA device that is in use."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_random_states(states: dict[str, Any]) -> None:
    """Put torch's generators back to where they stood."""
    torch.set_rng_state(states["cpu"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
