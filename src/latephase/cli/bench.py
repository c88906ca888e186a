"""`latephase bench`."""

from pathlib import Path
from typing import Annotated

import typer

from .terminal import err, fail, interrupted, out


def bench(
    directory: Annotated[Path, typer.Option("--out", help="Folder of the results.")] = Path("runs/bench"),
    networks: Annotated[str, typer.Option(help="Names with commas between. Default: all but `digits`.")] = "",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that count.")] = 15,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Dtypes of our products, with commas between.")] = "float32,bfloat16",
    all_methods: Annotated[bool, typer.Option("--all-methods", help="Measure our other methods too.")] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Measure compiled products too.")] = False,
    default_allocator: Annotated[
        bool, typer.Option("--default-allocator", help="Leave glibc's allocator as it is.")
    ] = False,
) -> None:
    """Measure what curvature products and steps cost, as ratios to the gradient, beside other packages."""
    from ..bench import Settings, failures, notes, terminal
    from ..bench import bench as run

    try:
        settings = Settings(rounds, threads, device, _words(dtype), all_methods, compiled)
        with out.status("measuring") as status:
            result = run(
                directory,
                settings,
                _words(networks),
                default_allocator=default_allocator,
                say=lambda line: status.update(f"measuring {line}"),
            )
    except (OSError, ValueError) as error:
        raise fail(error) from error
    except KeyboardInterrupt:
        raise interrupted() from None
    for table in terminal(result):
        out.print(table)
    out.print("\n".join(notes(result)), highlight=False, markup=False)
    err.print("\n".join(failures(result)), style="red", highlight=False, soft_wrap=True, markup=False)
    out.print(f"Files: {(directory / 'bench.md').resolve()}, bench.json, bench.png, bench.pdf", soft_wrap=True)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
