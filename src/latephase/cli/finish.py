"""`latephase finish`."""

from pathlib import Path
from typing import Annotated

import typer

from .terminal import AsJSON, err, fail, interrupted, out, print_json


def finish(
    factory: Annotated[
        str,
        typer.Argument(
            metavar="PACKAGE.MODULE:FACTORY",
            help="A function that returns (model, loss, data), an Objective or a dict of latephase.finish's arguments.",
        ),
    ],
    directory: Annotated[
        Path, typer.Option("--out", help="Folder of model, scores and page; run again to go on where it stopped.")
    ],
    seconds: Annotated[float | None, typer.Option(help="What it may take, the race included. Default: 600.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="The same in steps, in place of --seconds.")] = None,
    as_json: AsJSON = False,
) -> None:
    """Finish a trained model: race ways to go on for a tenth of the time, and go on with the winner.

    DIR/best.pt is never worse on held-out data than the model that was given; DIR/index.html tells who took part and
    what came out. Say what there is in a file such as mine.py in this directory, and run `latephase finish mine:make`:

        def make():
            model = Net()
            model.load_state_dict(torch.load("trained.pt"))
            base = torch.optim.SGD(model.parameters(), lr=0.01)
            return {"model": model, "loss": torch.nn.CrossEntropyLoss(),
                    "data": train_loader, "held_out": valid_loader, "base": base}

    Exit status 0: done. 1: a file cannot be written. 2: there is no such factory, or what it returns will not do.
    """
    from ..user_code import FactoryError, made_by

    try:
        from .. import finishing

        arguments = finishing.arguments_of(made_by(factory), factory)
        with finishing.FinishProgress(err if as_json else out) as shown:
            arguments |= {"seconds": seconds, "steps": steps, "out": directory}
            found = finishing.finish(**arguments, say=shown.say, watch=shown.watch)
    except (FactoryError, TypeError, ValueError, OSError) as error:
        raise fail(error, 1 if isinstance(error, OSError) else 2) from error
    except KeyboardInterrupt:
        raise interrupted("Stopped. The same command goes on from here.") from None
    if as_json:
        print_json(found.as_dict())
    else:
        out.print(f"\n{found}", soft_wrap=True, highlight=False, markup=False)
