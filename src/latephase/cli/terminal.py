"""Where commands write, and how they end."""

import inspect
import json
from typing import Annotated, Any

import typer

from ..records import PlainConsole, finite

out = PlainConsole()
err = PlainConsole(stderr=True)

AsJSON = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else on stdout.")]
"""The option of commands whose result a script may want."""

STATUS = (
    "Exit status 0: done. 1: it stopped, or a part of it failed; a message says what and how to go on. 2: the command "
    "line, or a name on it, is wrong. 130: interrupted."
)


def fail(error: Exception, status: int = 1) -> typer.Exit:
    """Say an error; what to raise, so that the command ends with this exit status."""
    err.print(f"latephase: {error}", style="red", highlight=False, soft_wrap=True, markup=False)
    return typer.Exit(status)


def interrupted(line: str = "Stopped.") -> typer.Exit:
    """Say that the user stopped it; what to raise."""
    err.print(f"\n{line}")
    return typer.Exit(130)


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout; numbers that are not finite, which JSON does not have, as null."""
    typer.echo(json.dumps(finite(value), indent=2, default=str))


def help_of(command: Any) -> str:
    """The docstring of a command, a line for each paragraph, which the terminal wraps; code keeps its lines."""
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    return "\n\n".join(text if text.startswith(" ") else " ".join(text.split()) for text in paragraphs)
