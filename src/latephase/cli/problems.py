"""`latephase problems`."""

from typing import Annotated

import typer

from .terminal import fail, out


def problems(
    name: Annotated[
        str, typer.Argument(help="Say all of one problem: a name of the list, or PACKAGE.MODULE:FACTORY.")
    ] = "",
) -> None:
    """List the test problems and the data that is missing; or say all of one."""
    from ..problems import ProblemError
    from ..problems.listing import details, overview

    try:
        out.print(details(name) if name else overview(), soft_wrap=bool(name), highlight=False)
    except ProblemError as error:
        raise fail(error, 2) from error
