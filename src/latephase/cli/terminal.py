"""Where commands write, and how they end."""

import typer

from ..records import PlainConsole

out = PlainConsole()
err = PlainConsole(stderr=True)


def fail(error: Exception, status: int = 1) -> typer.Exit:
    """Say an error; what to raise, so that the command ends with this exit status."""
    err.print(f"latephase: {error}", style="red", highlight=False, soft_wrap=True, markup=False)
    return typer.Exit(status)
