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
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from kronecker import ChainKFAC
from timed_runs import CLOCKS, Line, Step, errors, plot, run
from torch import Tensor, nn

from latephase import CG, GGN, HessianFree, Objective
from latephase.problems.architectures.autoencoder import autoencoder
from latephase.problems.architectures.layers import sparse_
from latephase.problems.data.idx import read_idx

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

HESSIAN_FREE = {
    "damping": 5.0,
    "solver": CG(max_iter=6, preconditioner=ChainKFAC(every=4)),
    "curvature": GGN(dtype=torch.bfloat16),
}
"""Options of the Hessian-free optimizer."""
REPORTED = ("loss", "damping", "reduction_ratio", "cg_iterations", "cg_chosen", "lr", "products", "status", "seconds")
"""What is written down of a step's report."""

Build = Callable[[nn.Module, Tensor], Step]
"""Makes the step of a method from the model that it trains and the images [N, pixels]."""


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
    objective = objective_on(model, data)
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
        **options: of the optimizer, in place of those in `HESSIAN_FREE`.
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
    """The function that is minimised, on some rows."""
    return Objective(model, summed_loss(rows), (rows, rows), microbatch_size=microbatch_size, weight_decay=WEIGHT_DECAY)


METHODS: dict[str, Build] = {
    "lbfgs": lbfgs,
    "hessian_free": lambda model, data: hessian_free(model, data, growing=False),
    "hessian_free_growing": lambda model, data: hessian_free(model, data, growing=True),
}


LOOKS = {
    "lbfgs": {"label": "L-BFGS", "color": "#009E73", "linewidth": 2},
    "hessian_free": {"label": "Hessian-free", "color": "#B2182B", "linewidth": 2},
    "hessian_free_growing": {"label": "Hessian-free, growing batch", "color": "#E69F00", "linewidth": 2},
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


def start(build: Build, data: Tensor) -> tuple[Step, Callable[[], float]]:
    """The step of a method from the parameters that all methods begin with, and the error."""
    torch.manual_seed(SEED)
    model = autoencoder(initialize=sparse_)
    return build(model, data), lambda: reconstruction_error(model, data)


def draw(folder: Path) -> None:
    """The picture of all methods in the folder; Adam's rates are pale but for the best."""
    last = {name: lines[-1]["error"] for name, lines in errors(folder).items()}
    rates = [name for name in last if name.startswith("adam-")]
    best = min(rates, key=lambda name: last[name], default=None)
    looks = dict(LOOKS)
    for name in rates:
        label = f"Adam, rate {name.removeprefix('adam-')}"
        strong = {"label": f"{label} (best)", "color": "#0072B2", "linewidth": 2}
        looks[name] = strong if name == best else {"label": label, "color": "#0072B2", "linewidth": 1, "alpha": 0.35}
    plot(folder, folder / "autoencoder.png", looks, "squared error per image, all training images")


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
    data = images(arguments.data, arguments.images)
    settings = {name: getattr(arguments, name) for name in ("images", "time_limit", "threads", "clock")}
    for name, build in builders(arguments.methods, arguments.adam_rates).items():
        run(name, arguments.out, settings, lambda build=build: start(build, data))
        draw(arguments.out)


if __name__ == "__main__":
    main()
