"""The folder of a finish: a state to go on from, the best model, the events, the page."""

import hashlib
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..optim import LatePhase
from ..records import write_atomic, write_json
from .page import page
from .report import FinishReport

SECONDS = 10.0
"""Between two writings of the state; what is lost by a kill is taken again."""
STATE, BEST, EVENTS, PAGE = "state.pt", "best.pt", "events.json", "index.html"


class Folder:
    """Where a finish writes, and goes on from.

    `best.pt` is the model's state dict, of the best state so far: `model.load_state_dict(torch.load("DIR/best.pt"))`.

    Args:
        path: the folder; made where there is none.
        model: that is finished.
        late: whose state is kept.
        say: told in a line what is going on.

    Raises:
        ValueError: the folder holds the run of another model.
    """

    def __init__(self, path: Path, model: nn.Module, late: LatePhase, say: Callable[[str], object]):
        self.path, self._model, self._late, self._say = path, model, late, say
        path.mkdir(parents=True, exist_ok=True)
        self._saved = time.monotonic()
        self._events = 0

    @property
    def identity(self) -> str:
        """Of the model's form: names, shapes and dtypes."""
        form = [(name, tuple(t.shape), str(t.dtype)) for name, t in self._model.state_dict().items()]
        return hashlib.sha256(json.dumps([form, self._late.unit], default=str).encode()).hexdigest()[:16]

    def resume(self) -> None:
        """Go on from the state that lies there, if there is one."""
        file = self.path / STATE
        if not file.is_file():
            return
        try:
            saved = torch.load(file, weights_only=True)
        except Exception as error:
            raise ValueError(f"{file} cannot be read ({error}); remove it to begin anew") from error
        if saved.get("identity") != self.identity:
            raise ValueError(f"{self.path} holds the run of another model or unit; give another folder")
        self._model.load_state_dict(saved["model"])
        self._late.load_state_dict(saved["late"])
        torch.set_rng_state(saved["random"])
        self._say(f"going on from {file}")

    def save_if_due(self) -> None:
        """Write the state where some time has passed or something was scored."""
        if len(self._late.events) > self._events or time.monotonic() - self._saved >= SECONDS:
            self.save()

    def save(self) -> None:
        """Write state, best model and events, each whole or not at all."""
        self._events, self._saved = len(self._late.events), time.monotonic()
        write_json(self.path / EVENTS, {"events": self._late.events})
        self._write(BEST, self._late.best_state(self._model))
        self._write(
            STATE,
            {
                "identity": self.identity,
                "late": self._late.state_dict(),
                "model": self._model.state_dict(),
                "random": torch.get_rng_state(),
            },
        )

    def finish(self, report: FinishReport) -> None:
        """Write the end: the model, the state, the page."""
        self.save()
        write_atomic(self.path / PAGE, page(report).encode())

    def _write(self, name: str, value: Any) -> None:
        buffer = io.BytesIO()
        torch.save(value, buffer)
        write_atomic(self.path / name, buffer.getvalue())
