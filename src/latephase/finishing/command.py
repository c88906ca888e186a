"""What the command line asks for: a factory's answer as arguments, and what is shown meanwhile."""

import inspect
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ..objective import Objective
from ..optim import LatePhase
from ..records import visible
from .finish import finish

OWN = ("seconds", "steps", "out", "say", "watch")
"""Arguments of `finish` that the command line gives."""


def arguments_of(made: Any, factory: str) -> dict[str, Any]:
    """Arguments of `finish` from what a factory returned.

    Args:
        made: a dict of them, (model, loss, data), or an Objective.
        factory: by what name it was called.

    Raises:
        TypeError: it is something else, or an argument that there is not.
    """
    if isinstance(made, Objective):
        return {"model": made}
    if isinstance(made, (tuple, list)) and len(made) == 3:
        return dict(zip(("model", "loss", "data"), made, strict=True))
    if not isinstance(made, Mapping):
        what = f"{type(made).__name__} of {len(made)}" if isinstance(made, (tuple, list)) else type(made).__name__
        raise TypeError(
            f"{factory} must return a dict of the arguments of latephase.finish, (model, loss, data) or an Objective; "
            f"got {what}"
        )
    known = [name for name in inspect.signature(finish).parameters if name not in OWN]
    for name in made:
        if name in OWN:
            raise TypeError(f"{factory} gives {name!r}, which the command line says: leave it out of the dict")
        if name not in known:
            raise TypeError(f"{factory} gives {name!r}, which finish does not take; it takes {', '.join(known)}")
    if "model" not in made:
        raise TypeError(f"{factory} gives no 'model'")
    return dict(made)


class FinishProgress:
    """A line for each event; and on a terminal a bar with the lowest held-out loss and what is left.

    Args:
        console: where to write.
    """

    def __init__(self, console: Console):
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: Any = None
        self._began: tuple[float, float] | None = None

    def __enter__(self) -> "FinishProgress":
        self._bar.start()
        self._task = self._bar.add_task("setting up", total=None, loss="", left="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        """Say a line."""
        clock = "" if self._console.is_terminal else f"{time.strftime('%H:%M:%S')} "
        self._console.print(f"{clock}{visible(line)}", markup=False, highlight=False, soft_wrap=True)

    def watch(self, late: LatePhase) -> None:
        """Show where a run stands."""
        if not self._console.is_terminal:
            return
        now = time.monotonic()
        if self._began is None:
            self._began = now, late.spent
        report = late.report
        who = "" if report is None else f": {report.contestant}"
        loss = f"held-out loss {late.best[0]:.4g} ({late.best[1]})"
        self._bar.update(
            self._task,
            total=late.budget,
            completed=min(late.spent, late.budget),
            description=visible(f"{late.phase}{who}"),
            loss=visible(loss),
            left=self._left(late, now),
        )

    def _left(self, late: LatePhase, now: float) -> str:
        """In words, how long it may still take, by what it took since the first step here."""
        assert self._began is not None
        began, spent = self._began
        if late.phase == "done" or late.spent <= spent:
            return ""
        seconds = (now - began) / (late.spent - spent) * max(0.0, late.budget - late.spent)
        return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left"
