"""Checkpoints of the first-order training: everything that going on needs, written aside and renamed."""

import errno
import io
import zipfile
from pathlib import Path
from typing import Any

import torch

from ...records import open_regular, write_atomic

NOT_THE_FILE = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors of reading that say nothing of what is in a file."""


STATE = ("identity", "epoch", "model", "optimizer", "random", "steps", "seconds")
"""What a checkpoint of a training holds."""


def checkpoint_path(directory: Path, epoch: int) -> Path:
    """Where the checkpoint of an epoch lies in a study's folder."""
    return directory / "training" / "checkpoints" / f"epoch-{epoch:04d}.pt"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that it is there whole or not at all.

    Raises:
        StudyFileError: it cannot be written; says where.
    """
    whole = io.BytesIO()
    torch.save(state, whole)  # not into the file: torch's own error of a full disk does not say so
    write_atomic(path, whole.getvalue())


def load_checkpoint(path: Path, identity: str | None = None, epoch: int | None = None) -> dict[str, Any]:
    """Read a checkpoint; tensors and plain values only, so that a file from elsewhere runs no code.

    Args:
        path: the file.
        identity: of the training that it must be of. Default: any.
        epoch: the epoch that it must be of. Default: any.

    Raises:
        ValueError: the file is damaged, or of another training or epoch; says which and what to do.
    """
    try:
        with open_regular(path) as file:
            with zipfile.ZipFile(file) as parts:  # torch does not compare checksums
                if (damaged := parts.testzip()) is not None:
                    raise ValueError(f"checksum of {damaged}")
            file.seek(0)
            state = torch.load(file, weights_only=True, map_location="cpu")
        if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
            raise ValueError("it holds no model")
        if identity is not None and (lacking := [key for key in STATE if key not in state]):
            raise ValueError(f"it holds no {', '.join(lacking)}")
    except FileNotFoundError:
        raise
    except Exception as error:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in NOT_THE_FILE:
            raise  # another time, it can be read
        problem = getattr(error, "problem", error)
        raise ValueError(f"{path} is damaged ({problem}); run the study again, which sets it aside") from error
    found = state.get("identity"), state.get("epoch")
    for wanted, own, what in zip((identity, epoch), found, ("training", "epoch"), strict=True):
        if wanted is not None and own != wanted:
            raise ValueError(
                f"{path} is the checkpoint of another {what} ({own}, not {wanted}); run the study again, which sets it "
                "aside and makes its own"
            )
    return state


def random_states() -> dict[str, Any]:
    """The states of torch's generators, of the CPU and of every CUDA device that is in use."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_random_states(states: dict[str, Any]) -> None:
    """Put torch's generators back to where they stood."""
    torch.set_rng_state(states["cpu"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
