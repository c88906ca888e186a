"""The scored clock: it runs during steps and stands still during everything else."""

import time

import torch


class Clock:
    """Seconds spent inside `with clock:`; a CUDA device is synchronised at both ends.

    Args:
        device: where the steps run.
        seconds: where the clock starts, for a resumed training.
    """

    def __init__(self, device: torch.device | str = "cpu", seconds: float = 0.0):
        self.seconds = seconds
        self._synchronize = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None

    def __enter__(self) -> "Clock":
        self._synchronize()
        self._started = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        self._synchronize()
        self.seconds += time.perf_counter() - self._started
