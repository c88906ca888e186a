"""`latephase problems`."""

from typing import Annotated

import typer

from .terminal import AsJSON, fail, out, print_json


def problems(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="Say all of one problem: a name of the list, or PACKAGE.MODULE:FACTORY."),
    ] = "",
    as_json: AsJSON = False,
) -> None:
    """List the test problems and the data that is missing; or say all of one.

    Exit status 2: there is no such problem.
    """
    from ..problems import ProblemError
    from ..problems.listing import details, details_data, overview, overview_data

    try:
        if as_json:
            print_json(details_data(name) if name else overview_data())
            return
        out.print(details(name) if name else overview(), soft_wrap=bool(name), highlight=False)
    except ProblemError as error:
        raise fail(error, 2) from error
