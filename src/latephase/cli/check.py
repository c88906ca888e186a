"""`latephase check`."""

from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from .terminal import AsJSON, err, fail, interrupted, out, print_json

COLORS = {"ok": "green", "note": "cyan", "warning": "yellow", "defect": "bold red"}


def check(
    factory: Annotated[
        str,
        typer.Argument(
            metavar="PACKAGE.MODULE:FACTORY",
            help="A function without arguments that returns (model, loss, batch), or an Objective.",
        ),
    ],
    microbatch_size: Annotated[
        int | None, typer.Option(min=1, help="Cut the batch into chunks of at most so many examples.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Move model, loss and batch there first: cpu, cuda, cuda:1.")
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """Find out whether second-order steps will work on your problem, and what they cost.

    Say what the problem is in a file of your own, such as problem.py in this directory, and run
    `latephase check problem:make`:

        def make():
            model = Net()
            return model, torch.nn.CrossEntropyLoss(), (inputs, targets)

    Exit status 0: ready, perhaps with notes and warnings. 1: a defect, that is wrong results or steps that cannot be
    taken. 2: there is no such factory, or it does not return that.
    """
    from ..user_code import FactoryError, made_by

    try:
        subject = made_by(factory)
        with (err if as_json else out).status("checking") as status:
            found = _checked(subject, factory, microbatch_size, device, lambda text: status.update(f"checking {text}"))
    except (FactoryError, TypeError, ValueError) as error:
        raise fail(error, 2) from error
    except KeyboardInterrupt:
        raise interrupted() from None
    if as_json:
        print_json(found.as_dict() | {"verdict": found.verdict})
    else:
        _show(found, factory)
    if not found.ok:
        raise typer.Exit(1)


def _show(found: Any, factory: str) -> None:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=f"latephase check {factory}", title_justify="left")
    for heading in ("what", "", "finding"):
        table.add_column(heading, no_wrap=heading != "finding", overflow="fold")
    for finding in found.findings:
        color = COLORS[finding.severity]
        table.add_row(finding.name, Text(finding.severity, style=color), Text(finding.message))
    out.print(table)
    out.print(found.verdict, style="green" if found.ok else "bold red", highlight=False)


def _checked(subject: Any, factory: str, microbatch_size: int | None, device: str | None, say: Any) -> Any:
    """The report on what a factory returned."""
    from ..diagnosis import check
    from ..objective import Objective
    from ..user_code import move_to, problem_of

    if not isinstance(subject, Objective):
        model, loss, batch = move_to(device, *problem_of(subject, factory))
        return check(model, loss, batch, microbatch_size=microbatch_size, say=say)
    if device is not None or microbatch_size is not None:
        raise ValueError(
            f"{factory} returns an Objective, which is checked as it is; --device and --microbatch-size need "
            "(model, loss, batch)"
        )
    return check(subject, say=say)
