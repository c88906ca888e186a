"""Martens' MNIST autoencoder: Hessian-free steps beside Adam and L-BFGS, timed on one machine.

    OMP_NUM_THREADS=1 python examples/autoencoder.py --data FOLDER --out RESULTS --time-limit 900

The network 784-1000-500-250-30 with a mirrored decoder (logistic units, a linear code), the first 10,000 training
images, cross-entropy summed over the pixels and averaged over the images, an L2 term of 2e-5, sparse initialisation:
the problem of Martens (2010, "Deep learning via Hessian-free optimization", Section 5) on fewer images. What is plotted
is his measure: the squared error summed over the pixels, averaged over all the images, over seconds of training.

Every method starts from the same parameters. Its clock runs while it trains and stands still while the error is
measured. The methods run one after the other, each writing one line of JSON per measurement to RESULTS/METHOD.jsonl.
Run it again after an interruption: methods that have finished are skipped, the others start anew. FOLDER (default: the
environment variable LATEPHASE_DATA) holds MNIST/train-images-idx3-ubyte.gz, or MNIST/raw/ as torchvision lays it out.
"""

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import matplotlib
import torch
from torch import Tensor, nn

from latephase import HessianFree, Objective
from latephase.problems.architectures.autoencoder import autoencoder
from latephase.problems.architectures.layers import sparse_
from latephase.problems.idx import read_idx
from latephase.study.environment import describe_environment

matplotlib.use("Agg")
from matplotlib import pyplot

ADAM_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
ADAM_BATCH = 200
"""That of Sutskever et al. (2013) on this problem. A smaller one spends more of its time on Adam's own arithmetic."""
WEIGHT_DECAY = 2e-5
"""On every parameter, as in Martens' program."""
PARTS = 4
"""Curvature is on a quarter of the rows, and so is the evaluation objective."""
GROWTH = ((12, 8), (20, 4), (30, 2))
"""Until which step a growing Hessian-free run takes which share of the images; then all of them."""
CURVATURE_ROWS = 625
"""Rows of a chunk of curvature: with chunks of one size, one trace serves all stages."""
MICROBATCH = 2500
"""Rows of a chunk: what a pass over all images needs at once stays small."""
SEED = 0
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}
"""Wall-clock time, and the time for which the process has had a processor: with one thread and a processor to itself
they agree, and on a machine that others use too only the second says what a method costs."""

HESSIAN_FREE = {
    "damping": 5 / 784,
    "cg_max_iter": 6,
    "preconditioner": "kfac",
    "curvature_dtype": torch.bfloat16,
}
"""Options of the Hessian-free optimizer. Damping is in units of the loss's mean over pixels."""
REPORTED = ("loss", "damping", "reduction_ratio", "cg_iterations", "cg_chosen", "lr", "products", "status", "seconds")
"""What is written down of a step's report."""

Line = dict[str, Any]
"""One line of a result file."""
Step = Callable[[], Line]
"""One step of a method; returns what is worth writing down about it."""
Build = Callable[[nn.Module, Tensor], Step]
"""Makes the step of a method from the model that it trains and the images [N, pixels]."""


def marks() -> Iterator[float]:
    """Seconds of training at which the error is measured: after the first step that ends past each."""
    yield from (0, 2, 5, 10, 15, 20, 30, 40, 50, 60, 80)
    yield from itertools.count(100, 20)


def images(folder: Path, count: int) -> Tensor:
    """The first training images as rows, float32 [count, 784] in [0, 1]."""
    name = "train-images-idx3-ubyte"
    places = [folder / "MNIST" / sub / (name + end) for sub in ("", "raw") for end in (".gz", "")]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"MNIST's training images are at none of {', '.join(map(str, places))}")
    pixels = read_idx(found)
    if not 1 <= count <= len(pixels):
        raise ValueError(f"--images must be from 1 to {len(pixels)}, got {count}")
    return pixels[:count].flatten(1) / 255


def summed_loss(data: Tensor) -> nn.Module:
    """Cross-entropy summed over pixels, averaged over rows: the mean over all entries times the number of pixels."""
    return nn.BCEWithLogitsLoss(weight=torch.tensor(float(data.shape[1])))


@torch.no_grad()
def reconstruction_error(model: nn.Module, data: Tensor) -> float:
    """Squared error summed over the pixels, averaged over the rows."""
    errors = [(model(part).sigmoid() - part).square().sum(dtype=torch.float64) for part in data.split(MICROBATCH)]
    return float(torch.stack(errors).sum()) / len(data)


def adam(model: nn.Module, data: Tensor, lr: float) -> Step:
    """Adam on mini-batches, the rows in a new order in every epoch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=WEIGHT_DECAY, fused=True)
    loss, generator = summed_loss(data), torch.Generator().manual_seed(SEED)
    size = min(ADAM_BATCH, len(data))

    def batches() -> Iterator[Tensor]:
        while True:
            order = torch.randperm(len(data), generator=generator)
            yield from order[: len(data) // size * size].split(size)

    rows = batches()

    def step() -> Line:
        batch = data[next(rows)]
        optimizer.zero_grad()
        value = loss(model(batch), batch)
        value.backward()
        optimizer.step()
        return {"loss": value.item()}

    return step


def lbfgs(model: nn.Module, data: Tensor) -> Step:
    """L-BFGS of torch on all rows with a strong Wolfe line search, one iteration a step.

    torch evaluates the closure anew at the beginning of every call of `step`. The line search has been there before, so
    its values are kept for the next call: no gradient is computed twice.
    """
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=1, max_eval=25, line_search_fn="strong_wolfe")
    objective = Objective(model, summed_loss(data), (data, data), microbatch_size=MICROBATCH, weight_decay=WEIGHT_DECAY)
    seen: list[tuple[list[Tensor], Tensor, list[Tensor]]] = []

    def closure() -> Tensor:
        theta = [p.detach().clone() for p in model.parameters()]
        for point, value, gradients in seen:
            if all(map(torch.equal, point, theta)):
                for p, gradient in zip(model.parameters(), gradients, strict=True):
                    p.grad = gradient.clone()
                return value
        value = objective()
        seen.append((theta, value, [p.grad.clone() for p in model.parameters() if p.grad is not None]))
        return value

    def step() -> Line:
        value = optimizer.step(closure)
        del seen[:-3]  # the line search ends at one of its last points
        return {"loss": float(value)}

    return step


def hessian_free(model: nn.Module, data: Tensor, growing: bool, **options: Any) -> Step:
    """Hessian-free steps: gradient on all rows, curvature on a quarter of them, another one at each step.

    Few iterations of conjugate gradients with a K-FAC preconditioner, products in bfloat16. More iterations fit the
    quarter, not the function: walking back over the candidates, judged on the next quarter, then drops them again.

    Args:
        model: the network.
        data: the images.
        growing: the first steps take an eighth, a quarter and a half of the rows, another part at each step.
    """
    optimizer = HessianFree(model.parameters(), **(HESSIAN_FREE | options))
    turns = itertools.count()

    def step() -> Line:
        turn = next(turns)
        share = next((share for last, share in GROWTH if turn < last), 1) if growing else 1
        batch, judge = turn_of(data, share, turn), turn_of(data, max(share, PARTS), turn + 1)
        curvature = turn_of(batch, max(1, min(PARTS, len(batch) // CURVATURE_ROWS)), turn)
        optimizer.step(
            objective_on(model, batch),
            evaluation=objective_on(model, judge),
            curvature_objective=objective_on(model, curvature, CURVATURE_ROWS),
        )
        report = optimizer.report
        assert report is not None
        return {name: value for name, value in report.as_dict().items() if name in REPORTED}

    return step


def turn_of(rows: Tensor, parts: int, turn: int) -> Tensor:
    """The part of the rows whose turn it is; MNIST's rows are in random order."""
    pieces = rows.chunk(parts)
    return pieces[turn % len(pieces)]


def objective_on(model: nn.Module, rows: Tensor, microbatch_size: int = MICROBATCH) -> Objective:
    """The function that is minimised, on some rows, divided by the number of pixels: K-FAC takes torch's own mean."""
    decay = WEIGHT_DECAY / rows.shape[1]
    return Objective(model, nn.BCEWithLogitsLoss(), (rows, rows), microbatch_size=microbatch_size, weight_decay=decay)


METHODS: dict[str, Build] = {
    "lbfgs": lbfgs,
    "hessian_free": lambda model, data: hessian_free(model, data, growing=False),
    "hessian_free_growing": lambda model, data: hessian_free(model, data, growing=True),
}


def builders(names: list[str], rates: list[float]) -> dict[str, Build]:
    """What makes the step of each run, by the run's name; "adam" is one run for each rate."""
    found: dict[str, Build] = {}
    for name in names:
        if name == "adam":
            for rate in rates:
                found[f"adam-{rate:g}"] = lambda model, data, rate=rate: adam(model, data, rate)
        else:
            found[name] = METHODS[name]
    return found


def train(build: Build, data: Tensor, limit: float, clock: str, write: Callable[[Line], None]) -> None:
    """Run one method until its clock shows the limit, writing a record at every mark and at the end."""
    torch.manual_seed(SEED)
    model = autoencoder(initialize=sparse_)
    step = build(model, data)
    spent = dict.fromkeys(CLOCKS, 0.0)
    steps, last = 0, {}
    due = marks()
    mark = next(due)
    while True:
        seconds = spent[clock]
        if seconds >= mark or seconds >= limit:
            error = reconstruction_error(model, data)
            times = {"seconds": seconds} | {f"{name}_seconds": time for name, time in spent.items()}
            write(times | {"steps": steps, "error": error} | ({"step": last} if last else {}))
            if seconds >= limit or not error < float("inf"):
                return
            mark = next(m for m in due if m > seconds)
        started = {name: now() for name, now in CLOCKS.items()}
        last = step()
        for name, now in CLOCKS.items():
            spent[name] += now() - started[name]
        steps += 1


def read_runs(folder: Path) -> dict[str, list[Line]]:
    """The lines of every method's last attempt, its settings first; a line that was cut off in writing is left out."""
    runs = {}
    for path in sorted(folder.glob("*.jsonl")):
        lines: list[Line] = []
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            lines = [line] if "settings" in line else [*lines, line]
        if lines:
            runs[path.stem] = lines
    return runs


def plot(folder: Path) -> None:
    """Draw the error over seconds of all methods in the folder; Adam's rates are pale but for the best."""
    curves = {name: [line for line in lines if "error" in line] for name, lines in read_runs(folder).items()}
    curves = {name: lines for name, lines in curves.items() if lines}
    rates = [name for name in curves if name.startswith("adam-")]
    best = min(rates, key=lambda name: curves[name][-1]["error"], default=None)
    figure, axes = pyplot.subplots(figsize=(7.5, 4.8), layout="constrained")
    labels = {"lbfgs": "L-BFGS", "hessian_free": "Hessian-free", "hessian_free_growing": "Hessian-free, growing batch"}
    colours = {"lbfgs": "#009E73", "hessian_free": "#B2182B", "hessian_free_growing": "#EF8A62"}
    for name, lines in curves.items():
        pale = name in rates and name != best
        label = labels.get(name, f"Adam, rate {name.removeprefix('adam-')}" + ("" if pale else " (best)"))
        axes.plot(
            [line["seconds"] for line in lines],
            [line["error"] for line in lines],
            label=label,
            color=colours.get(name, "#0072B2"),
            alpha=0.3 if pale else 1,
            linewidth=1 if pale else 2,
        )
    axes.set(xlabel="seconds of training", ylabel="squared error per image, all training images", yscale="log")
    axes.grid(which="both", color="#e4e4e4", linewidth=0.6)
    axes.legend(frameon=False)
    figure.savefig(folder / "autoencoder.png", dpi=150)
    pyplot.close(figure)


def run(arguments: argparse.Namespace) -> None:
    """Run every method that has not finished, and draw the picture after each."""
    data = images(arguments.data, arguments.images)
    folder: Path = arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"images": arguments.images, "time_limit": arguments.time_limit, "threads": arguments.threads}
    settings["clock"] = arguments.clock
    for name, build in builders(arguments.methods, arguments.adam_rates).items():
        earlier = read_runs(folder).get(name, [])
        if earlier and "finished" in earlier[-1]:
            if earlier[0]["settings"] != settings:
                raise SystemExit(
                    f"{name} has finished with {earlier[0]['settings']}; give another --out for {settings}"
                )
            continue
        with (folder / f"{name}.jsonl").open("a", encoding="utf-8") as file:

            def write(line: Line, name: str = name, file: TextIO = file) -> None:
                file.write(json.dumps(line) + "\n")
                file.flush()
                if "error" in line:
                    sys.stdout.write(f"{name} {line['seconds']:7.1f} s, step {line['steps']}: {line['error']:.4f}\n")
                    sys.stdout.flush()

            write({"settings": settings, "environment": describe_environment(arguments.threads, jobs=1)})
            train(build, data, arguments.time_limit, arguments.clock, write)
            write({"finished": True})
        plot(folder)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Martens' MNIST autoencoder by Adam, L-BFGS and Hessian-free steps")
    parser.add_argument("--data", type=Path, default=os.environ.get("LATEPHASE_DATA"), help="default: $LATEPHASE_DATA")
    parser.add_argument("--out", type=Path, default=Path("runs/autoencoder"), help="results and picture")
    parser.add_argument("--time-limit", type=float, default=900.0, help="seconds of training for each method")
    parser.add_argument("--methods", nargs="+", choices=("adam", *METHODS), default=["adam", *METHODS])
    parser.add_argument("--adam-rates", nargs="+", type=float, default=list(ADAM_RATES))
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="process: for a machine with other load")
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("give --data, or set LATEPHASE_DATA, to the folder that holds MNIST")
    if arguments.clock == "process" and arguments.threads > 1:
        parser.error("--clock process adds up the time of all threads: it needs --threads 1")
    torch.set_num_threads(arguments.threads)
    run(arguments)


if __name__ == "__main__":
    main()
