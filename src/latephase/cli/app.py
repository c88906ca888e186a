"""The application: its commands, in the order of `latephase --help`."""

import typer

from ..study.tune import tune
from .bench import bench
from .check import check
from .finish import finish
from .problems import problems
from .studies import report, study

app = typer.Typer(
    help="Second-order training for PyTorch, above all of its late phase.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.command()(tune)
app.command()(study)
app.command()(report)
app.command()(problems)
app.command()(bench)
app.command(no_args_is_help=True)(check)
app.command(no_args_is_help=True)(finish)
