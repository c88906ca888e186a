"""What is running and how long it still takes: a bar on a terminal, one plain line a minute elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ...records import visible

LINE_EVERY = 60.0
"""Seconds between plain lines."""


class StudyProgress:
    """Progress through the parts of a study: "training" in epochs, then "runs".

    Args:
        console: where to write.
    """

    def __init__(self, console: Console):
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> "StudyProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """A new part begins.

        Args:
            what: its name.
            total: units of work in it.
            done: units that were done before.
        """
        self._what, self._total, self._first, self._done = what, total, done, done
        self._ended = False
        self._started = self._said = time.monotonic()
        self._task = self._bar.add_task(what, total=total, completed=done, left="")
        self._say(f"{what}: {done} of {total} done")

    def advance(self, done: int, detail: str = "") -> None:
        """So many units are done; `detail` says what just ended."""
        self._done = done
        left = self._left()
        description = f"{self._what}: {detail}" if detail else self._what
        self._bar.update(self._task, completed=done, description=visible(description), left=left)
        now = time.monotonic()
        if now - self._said >= LINE_EVERY or (done == self._total and not self._ended):
            self._said, self._ended = now, done == self._total
            self._say(f"{description}: {done} of {self._total} done{', ' + left if left else ''}")

    def note(self, line: str) -> None:
        """Say something that the user should know, on every kind of output."""
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def _left(self) -> str:
        fresh = self._done - self._first
        if not fresh or self._done == self._total:
            return ""
        seconds = (time.monotonic() - self._started) / fresh * (self._total - self._done)
        return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left"

    def _say(self, line: str) -> None:
        if not self._console.is_terminal:
            self._console.print(
                f"{time.strftime('%H:%M:%S')} {visible(line)}", markup=False, highlight=False, soft_wrap=True
            )
