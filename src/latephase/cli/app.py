"""The application: its commands, in the order in which a user meets them."""

import typer

from ..study.tune import tune
from .bench import bench
from .check import check
from .finish import finish
from .problems import problems
from .studies import report, study
from .terminal import STATUS, help_of, out

FIRST = """\
latephase: second-order training for PyTorch, above all of its late phase.

What to do first:

  You have a trained model: race the ways to go on, and go on with the winner.
    latephase finish mine:make --seconds 600 --out runs/mine

  You wonder whether second-order steps would work on it, and what they cost.
    latephase check mine:pieces

  You want to see strategies compared, here on small digits within five minutes.
    latephase study digits --minutes 5 --out runs/digits

mine.py is a file of yours in this directory; `latephase finish --help` and
`latephase check --help` show what its functions return. `latephase --help`
lists all commands.
"""

app = typer.Typer(
    help="Second-order training for PyTorch, above all of its late phase.",
    epilog=f"{STATUS} Every command says in its --help where it differs.",
    invoke_without_command=True,
    pretty_exceptions_show_locals=False,
)


@app.callback()
def first(context: typer.Context) -> None:
    """Second-order training for PyTorch, above all of its late phase."""
    if context.invoked_subcommand is None:
        out.print(FIRST, soft_wrap=True, highlight=False, end="")


for command in (finish, check):
    app.command(help=help_of(command), no_args_is_help=True)(command)
for command in (study, tune, report, problems, bench):
    app.command(help=help_of(command))(command)
