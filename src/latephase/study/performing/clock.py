"""The scored clock: it runs during steps and stands still during everything else."""

import time

import torch

from ..config import Study


class Clock:
    """Seconds spent inside `with clock:`; a CUDA device is synchronised at both ends.

    Args:
        study: says where the steps run, and whether seconds are of the wall or of the process's own processor time.
        seconds: where the clock starts, for a resumed training.
    """

    def __init__(self, study: Study, seconds: float = 0.0):
        self.seconds = seconds
        self._process = study.clock == "process"
        device = study.device
        self._synchronize = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None

    def __enter__(self) -> "Clock":
        self._synchronize()
        self._started = self._now()
        return self

    def __exit__(self, *exception: object) -> None:
        self._synchronize()
        self.seconds += self._now() - self._started

    def _now(self) -> float:
        return time.process_time() if self._process else time.perf_counter()
