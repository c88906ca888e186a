"""The folder of a finish: a state to go on from, the best model, the events, the page."""

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import nn

from ..objective import cuda_devices
from ..optim import LatePhase
from ..records import remove_leftovers, write_atomic, write_json
from .identity import Identity, difference, values_of
from .report import FinishReport

SECONDS = 10.0
"""Between two writings of the state; what is lost by a kill is taken again."""
PAUSE = 20.0
"""So many times what a writing takes passes before the next: it takes a twentieth of the time at most."""
STATE, BEST, EVENTS, PAGE = "state.pt", "best.pt", "events.json", "index.html"
LOCK = ".lock"


class Folder:
    """Where a finish writes, and goes on from.

    `best.pt` is the model's state dict, of the best state so far: `model.load_state_dict(torch.load("DIR/best.pt"))`.
    `state.pt` is written before it, so that a kill between the two leaves an older `best.pt`, which the next run brings
    up to date, and never one that is better than what is gone on from.

    Args:
        path: the folder; made where there is none.
        model: that is finished.
        late: whose state is kept.
        identity: what must be equal in a run that is gone on with.
        remarks: that are kept, and added to from a state that is gone on from.
        say: told in a line what is going on.

    Raises:
        ValueError: another process is at work there, or it holds files of these names that are of no finish.
    """

    def __init__(
        self,
        path: Path,
        model: nn.Module,
        late: LatePhase,
        identity: Identity,
        remarks: list[str],
        say: Callable[[str], object],
    ):
        self.path, self._model, self._late, self._say = path, model, late, say
        self._identity, self._remarks = identity, remarks
        path.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(path / LOCK)
        self._saved, self._took = time.monotonic(), 0.0
        self._events, self._best = 0, ""
        self._start = values_of(model.state_dict())

    def __enter__(self) -> "Folder":
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(f"another process is finishing a model in {self.path}; wait for it, or end it") from error
        remove_leftovers(self.path)
        return self

    def __exit__(self, *_: Any) -> None:
        self._lock.release()

    def resume(self) -> bool:
        """Go on from the state that lies there; False where there is none.

        Raises:
            ValueError: it cannot be read, or is of another run.
        """
        file = self.path / STATE
        if not file.is_file():
            foreign = [name for name in (BEST, EVENTS, PAGE) if (self.path / name).exists()]
            if foreign:
                raise ValueError(
                    f"{self.path / foreign[0]} would be written over, and there is no {STATE} beside it to go on from; "
                    "give another folder"
                )
            return False
        saved = self._read(file)
        if differs := difference(saved["identity"], self._identity):
            raise ValueError(f"{file} is of another run, by {differs}. Give what it was begun with, or another folder")
        if self._start not in (saved["start"], saved["best"]):
            self._remarks.append("the model that was given is not the one that this run began with; it was replaced")
        self._remarks += [remark for remark in saved["remarks"] if remark not in self._remarks]
        self._start = saved["start"]
        self._model.load_state_dict(saved["model"])
        self._late.load_state_dict(saved["late"])
        torch.set_rng_state(saved["random"])
        for device, state in zip(cuda_devices(self._model), saved["random_cuda"], strict=False):
            torch.cuda.set_rng_state(state, device)
        done = self._late.phase == "done"
        self._say(f"{self.path} is finished; no step is taken" if done else f"going on from {file}")
        return True

    def _read(self, file: Path) -> dict[str, Any]:
        remedy = f"give another folder, or remove this one ({BEST} in it can be loaded all the same)"
        try:
            saved = torch.load(file, weights_only=True)
        except Exception as error:  # unpickling raises whatever it likes
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(f"{file} is damaged and cannot be read ({first}); {remedy}") from error
        if not isinstance(saved, dict) or "identity" not in saved or "late" not in saved:
            raise ValueError(f"{file} is no state of a finish; {remedy}")
        return saved

    def save_if_due(self) -> None:
        """Write the state where some time has passed or something was scored."""
        since = time.monotonic() - self._saved
        if since >= PAUSE * self._took and (len(self._late.events) > self._events or since >= SECONDS):
            self.save()

    def save(self) -> None:
        """Write state, best model and events, each whole or not at all."""
        begun = time.monotonic()
        self._events = len(self._late.events)
        best = self._late.best_state(self._model)
        values = values_of(best)
        self._write(
            STATE,
            {
                "identity": self._identity,
                "start": self._start,
                "late": self._late.state_dict(),
                "best": values,
                "model": self._model.state_dict(),
                "remarks": list(self._remarks),
                "random": torch.get_rng_state(),
                "random_cuda": [torch.cuda.get_rng_state(device) for device in cuda_devices(self._model)],
            },
        )
        if values != self._best:
            self._write(BEST, best)
            self._best = values
        write_json(self.path / EVENTS, {"phase": self._late.phase, "events": self._late.events})
        self._saved = time.monotonic()
        self._took = self._saved - begun

    def finish(self, report: FinishReport) -> None:
        """Write the end: the model, the state, the page."""
        from .page import page  # draws, which whoever finishes nothing into a folder has no need of

        self.save()
        write_atomic(self.path / PAGE, page(report).encode())

    def _write(self, name: str, value: Any) -> None:
        buffer = io.BytesIO()
        torch.save(value, buffer)
        write_atomic(self.path / name, buffer.getvalue())
