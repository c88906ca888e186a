"""Writers of step reports: JSON lines and TensorBoard, as hooks that torch's optimizers call after each step."""

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from .strict_json import finite

if TYPE_CHECKING:
    from torch.optim import Optimizer

__all__ = ["JSONLinesWriter", "TensorBoardWriter"]

_GROUPS = {
    "loss": "loss",
    "new_loss": "loss",
    "evaluation_loss": "loss",
    "new_evaluation_loss": "loss",
    "damping": "damping",
    "predicted_change": "damping",
    "reduction_ratio": "damping",
    "products": "cg",
    "method": "cg",
    "recomputed": "cg",
    "rows": "direct",
    "sides": "direct",
    "cholesky": "direct",
    "eigh": "direct",
    "svd": "direct",
    "dampings": "direct",
    "accelerated": "direct",
}
"""Group of a report's field in TensorBoard; those named cg_... are in "cg" as well, all others in "step"."""
_LINE_BEGINS = b'{"step": '

Extra = Callable[[], Mapping[str, float]]
"""() -> numbers by name, asked for after each step; none where there is nothing to say of it."""


class StepWriter:
    """A hook that hands each step's report on, numbered.

    Attributes:
        step: number of the last step written.
        extra: gives what is written beside the reports.
    """

    step: int
    extra: Extra | None = None
    _closed = False

    def __init__(self, extra: Extra | None):
        if not (extra is None or callable(extra)):
            raise TypeError(f"extra must be a callable () -> numbers by name, got {type(extra).__name__}")
        self.extra = extra

    def __call__(self, optimizer: "Optimizer", args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Write the report of the optimizer's last step; nothing where there is none yet.

        Args:
            optimizer: has a `report`, as `HessianFree` does.
            args: of the step; not used.
            kwargs: of the step; not used.

        Raises:
            TypeError: an optimizer without a report, or `extra` gives no numbers by name.
            ValueError: the writer was closed.
            OSError: the file cannot be written. The step itself has been taken by then.
        """
        missing = object()
        report = getattr(optimizer, "report", missing)
        if report is missing:
            raise TypeError(f"{type(self).__name__} needs an optimizer with a `report`, got {type(optimizer).__name__}")
        if self._closed:
            raise ValueError(f"this {type(self).__name__} was closed; register a new one, or close it after training")
        if report is None:
            return
        self._write(report)
        self.step += 1

    def _write(self, report: Any) -> None:
        """Write one report under the number `step + 1`."""
        raise NotImplementedError

    def _extra(self) -> dict[str, float]:
        """Numbers beside the report of the present step."""
        given = {} if self.extra is None else self.extra()
        if not isinstance(given, Mapping) or not all(_is_named_number(*pair) for pair in given.items()):
            raise TypeError(f"extra of a {type(self).__name__} must return a dict of numbers by name, got {given!r}")
        return {name: float(value) for name, value in given.items()}

    def close(self) -> None:
        """End the writing; steps after that are an error."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        if self.extra is not None:  # a copy's would tell of a copy, which nobody trains
            raise TypeError(f"a {type(self).__name__} with extra cannot be copied or pickled; make another one")
        return self.__dict__


class JSONLinesWriter(StepWriter):
    """One line of JSON for each step, appended to a file.

    A line holds `step` (counted from 1), `time` (Unix time in seconds), all of `StepReport.as_dict()`, and what `extra`
    gives. It is strict JSON, which has no infinity and no NaN: a number that is not finite becomes null, the reduction
    ratio for example where the model predicted no decrease. Each line is handed to the operating system at once, so a
    process that dies loses none; only a machine that loses power may.

    A file that exists is appended to, and the count goes on from its last line. A last line that was torn, its process
    having been killed while writing, is cut off, so that every line of the file can be read; whole lines stay as they
    are. Under `torch.distributed` let rank 0 alone write; every rank has the same report.

    Without `extra` it can be pickled: the copy writes to the same file and goes on from its own count.

    Args:
        path: the file; its folder is made where it is missing.
        step: number of the last step taken, where training resumes from a checkpoint that is older than the file's last
            line; the steps taken again are then in the file twice, and the later line counts. Default: what the file
            says, 0 where there is none.
        extra: () -> numbers by name for the line of each step, such as `Points.measures`. Default: nothing.

    Raises:
        TypeError: `extra` cannot be called.
        ValueError: the file exists and holds something else.
        OSError: the file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str], *, step: int | None = None, extra: Extra | None = None):
        super().__init__(extra)
        self.path = Path(path).absolute()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        last = self._mend()
        self.step = last if step is None else step

    def _write(self, report: Any) -> None:
        row = {"step": self.step + 1, "time": time.time()} | report.as_dict()
        extra = self._extra()
        if taken := row.keys() & extra.keys():
            raise ValueError(f"extra gives {', '.join(sorted(taken))}, which the line of a step has itself: rename it")
        self._append((json.dumps(finite(row | extra), allow_nan=False) + "\n").encode())

    def _append(self, text: bytes) -> None:
        with self.path.open("ab") as file:  # nothing stays open: a step takes far longer than this
            file.write(text)

    def _mend(self) -> int:
        """Bring the file into being or its end in order; returns the number of the last line."""
        self._append(b"")
        whole, torn, end = b"", b"", 0
        with self.path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    whole, end = line, end + len(line)
                else:
                    torn = line
        number = _number(whole or torn)
        ours = number is not None or (not whole and _LINE_BEGINS.startswith(torn[: len(_LINE_BEGINS)]))
        if not ours:
            raise ValueError(f"{self.path} holds something else than step reports; choose another file")
        if torn and _number(torn) is not None:  # only its end is missing
            number = _number(torn)
            self._append(b"\n")
        elif torn:
            os.truncate(self.path, end)
        return number or 0


class TensorBoardWriter(StepWriter):
    """Each step's report as scalars of TensorBoard; needs the package `tensorboard`.

    A tag is a group and the report's own name: `loss/` with loss, new_loss, evaluation_loss and new_evaluation_loss;
    `damping/` with damping, predicted_change and reduction_ratio; `cg/` with iterations, status, chosen, products and
    recomputed; `direct/`, of steps by a direct solve, with rows, cholesky, eigh, svd, dampings and accelerated (0 or
    1); `step/` with the rest: gradient_norm, step_norm, lr, status, accepted (0 or 1) and seconds. With several
    blocks `cg/iterations` is the largest number of any block. A status is written as one scalar for each value that it
    can have: `step/status/taken` is 1 where the step was taken and 0 elsewhere, `cg/status/progress` the share of the
    blocks that stopped so; smoothed, they are shares of the steps. The methods of the products are texts, `cg/method`
    and `cg/block_methods`, written where they change. `extra/` has what `extra` gives.

    Numbers that are not finite are left out, and so is what the report does not have (`new_loss` is None where the
    evaluation objective is another). Each step is flushed. Under `torch.distributed` let rank 0 alone write; every rank
    has the same report.

    Without `extra`, and given a folder, it can be pickled: the copy begins a new event file there and goes on from its
    own count.

    Args:
        log: a folder, or a `SummaryWriter` of your own, which then stays open when this writer is closed.
        step: number of the last step taken, where training resumes. Default 0.
        extra: () -> numbers by name, such as `Points.measures`, written after each step. Default: nothing.

    Raises:
        ImportError: `tensorboard` is not installed.
        TypeError: neither a folder nor something that can write scalars; or `extra` cannot be called.
    """

    def __init__(self, log: Any, *, step: int = 0, extra: Extra | None = None):
        super().__init__(extra)
        if not isinstance(log, (str, os.PathLike)) and not hasattr(log, "add_scalar"):
            raise TypeError(f"log must be a folder or a SummaryWriter, got {type(log).__name__}")
        self.step = step
        self._own = isinstance(log, (str, os.PathLike))
        self._folder = os.path.abspath(log) if self._own else None
        self._summary: Any = None if self._own else log
        self._texts: dict[str, str] = {}
        self._open()

    def _write(self, report: Any) -> None:
        """Write the scalars of one report, and flush them."""
        summary = self._open()
        number = self.step + 1
        for tag, value in (scalars_of(report) | {f"extra/{name}": x for name, x in self._extra().items()}).items():
            if math.isfinite(value):
                summary.add_scalar(tag, value, number)
        for tag, text in changed_texts(report, self._texts).items():
            summary.add_text(tag, text, number)
        summary.flush()

    def close(self) -> None:
        """Flush, and close the event file unless the `SummaryWriter` was given; steps after that are an error."""
        if self._summary is not None:
            self._summary.flush()
            if self._own:
                self._summary.close()
                self._summary = None
        super().close()

    def _open(self) -> Any:
        if self._summary is None:
            self._summary = _summary_writer()(self._folder)
        return self._summary

    def __getstate__(self) -> dict[str, Any]:
        if not self._own:
            raise TypeError("a TensorBoardWriter on a SummaryWriter of your own cannot be pickled; give it a folder")
        return super().__getstate__() | {"_summary": None}


def _number(line: bytes) -> int | None:
    """The number of the step that a line reports; None where it is no such line."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    number = row.get("step") if isinstance(row, dict) else None
    return number if isinstance(number, int) else None


def scalars_of(report: Any) -> dict[str, float]:
    """A report's numbers by tag, statuses as shares; texts and what is None are left out."""
    scalars: dict[str, float] = {}
    for field in dataclasses.fields(report):
        value = getattr(report, field.name)
        group = "cg" if field.name.startswith("cg_") else _GROUPS.get(field.name, "step")
        tag = f"{group}/{field.name.removeprefix('cg_')}"
        blocks = value if isinstance(value, tuple) else (value,)
        if not blocks:
            continue
        if all(isinstance(entry, StrEnum) for entry in blocks):
            for status in _values(blocks[0]):
                scalars[f"{tag}/{status}"] = blocks.count(status) / len(blocks)
        elif all(isinstance(entry, (int, float)) for entry in blocks):
            scalars[tag] = float(max(blocks))
    return scalars


def _is_named_number(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, Real) and not isinstance(value, bool)


def changed_texts(report: Any, known: dict[str, str]) -> dict[str, str]:
    """A report's texts by tag, those that are not known yet; they are then."""
    found = {}
    for name in ("method", "block_methods"):
        value = getattr(report, name, None)
        text = value if value is None or isinstance(value, str) else ", ".join(value)
        if text is not None and text != known.get(f"cg/{name}"):
            found[f"cg/{name}"] = known[f"cg/{name}"] = text
    return found


def _values(status: StrEnum) -> list[StrEnum]:
    return list(type(status))


def _summary_writer() -> Any:
    """Torch's class, whose import needs the package `tensorboard`."""
    try:
        from torch.utils.tensorboard import SummaryWriter  # pyright: ignore[reportPrivateImportUsage]
    except ImportError as error:
        raise ImportError(
            'TensorBoardWriter needs the package tensorboard; install it with pip install "latephase[tensorboard]"'
        ) from error
    return SummaryWriter
