"""An image as a network: Gauss-Newton beside Adam, on one clock.

    OMP_NUM_THREADS=1 python examples/implicit_image.py --data FOLDER --out runs/implicit_image --time-limit 60

A network of sines (Sitzmann et al. 2020, "Implicit neural representations with periodic activation functions") from a
pixel's place to its grey value, 2-32-32-1 units, 1,185 parameters, learns the 4,096 pixels of a face: all of them at
every step. What is plotted is the peak signal-to-noise ratio, 10 log10(1 / mean squared error) for grey values from 0
to 1, over seconds of training, and what the networks draw at the end. Gauss-Newton runs in float64, Adam in float32
with several rates, each falling to zero by a cosine over the time. FOLDER (default: the environment variable
LATEPHASE_DATA) holds olivetti_faces/olivettifaces.mat; without it the image is a generated one.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from timed_runs import CLOCKS, Line, Step, closure_step, command_line, compare, errors, look
from torch import Tensor, nn

from latephase import GaussNewton, Objective
from latephase.problems import data

SIZE, WIDTH, FREQUENCY = 64, 32, 30.0


class Sine(nn.Module):
    """sin(30 (W x + b)), with the initialisation of its inventors."""

    def __init__(self, inputs: int, outputs: int, first: bool = False):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        bound = 1 / inputs if first else math.sqrt(6 / inputs) / FREQUENCY
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Values [N, outputs]."""
        return torch.sin(FREQUENCY * self.linear(x))


def network() -> nn.Module:
    """Grey value [N, 1] at places [N, 2]."""
    return nn.Sequential(Sine(2, WIDTH, first=True), Sine(WIDTH, WIDTH), nn.Linear(WIDTH, 1))


def image(folder: Path | None) -> Tensor:
    """Grey values [SIZE, SIZE] from 0 to 1: a face, or rings and an edge where there is no folder."""
    if folder is not None:
        os.environ["LATEPHASE_DATA"] = str(folder)
        return data.olivetti_faces()[0].double() / 255
    y, x = places().unbind(dim=1)
    return (0.5 + 0.25 * torch.sin(18 * (x.square() + y.square())) + 0.2 * (x > y / 2)).reshape(SIZE, SIZE)


def places() -> Tensor:
    """(row, column) of every pixel [SIZE^2, 2], float64 from -1 to 1."""
    line = torch.linspace(-1, 1, SIZE, dtype=torch.float64)
    return torch.cartesian_prod(line, line)


def start(method: str, target: Tensor, seconds: float, clock: str) -> tuple[Step, Callable[[], Line], nn.Module]:
    """The step of a method from the parameters that all of them begin with, what is measured, and the network."""
    torch.manual_seed(0)
    model, dtype = network(), torch.float64 if method == "gauss_newton" else torch.float32
    model.to(dtype)
    x, values = places().to(dtype), target.reshape(-1, 1).to(dtype)
    objective = Objective(model, nn.MSELoss(), (x, values))

    def measured() -> Line:
        error = float(objective.value())
        return {"error": error, "psnr": -10 * math.log10(error)}

    if method == "gauss_newton":
        newton = GaussNewton(model.parameters())
        return lambda: {"loss": float(newton.step(objective)), "damping": newton.damping}, measured, model
    rate = float(method.removeprefix("adam-"))
    optimizer = torch.optim.Adam(model.parameters(), rate, fused=True)
    plain, began = closure_step(optimizer, objective), CLOCKS[clock]()

    def annealed() -> Line:
        share = min((CLOCKS[clock]() - began) / seconds, 1.0)
        optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * share)) / 2
        return plain()

    return annealed, measured, model


METHODS = ("adam-0.001", "adam-0.003", "adam-0.01", "gauss_newton")
LOOKS = {
    "adam-0.001": look("Adam, rate 0.001, cosine", "blue") | {"alpha": 0.4},
    "adam-0.003": look("Adam, rate 0.003, cosine", "blue") | {"alpha": 0.7},
    "adam-0.01": look("Adam, rate 0.01, cosine", "blue"),
    "gauss_newton": look("Gauss-Newton", "red"),
}


def draw(folder: Path, target: Tensor, drawn: dict[str, Tensor]) -> None:
    """The ratio over seconds, the image, and what the networks make of it."""
    figure = Figure(figsize=(7.5, 6.8), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subfigures(2, 1, height_ratios=(3, 2))
    axes = above.subplots()
    for name, lines in errors(folder).items():
        axes.plot([line["seconds"] for line in lines], [line["psnr"] for line in lines], **LOOKS.get(name, {}))
    axes.set(xlabel="seconds of training", ylabel="peak signal-to-noise ratio, dB")
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.legend(frameon=False)
    shown = {"image": target} | drawn
    for axes, (name, picture) in zip(below.subplots(1, len(shown)), shown.items(), strict=True):
        axes.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set_title(LOOKS.get(name, {"label": name})["label"], fontsize="small")
        axes.set_axis_off()
    figure.savefig(folder / "implicit_image.png", dpi=150)


def main() -> None:
    """Read the command line."""
    parser = command_line(__doc__, "implicit_image", METHODS, 60.0)
    parser.add_argument("--data", type=Path, default=os.environ.get("LATEPHASE_DATA"), help="default: $LATEPHASE_DATA")
    given = parser.parse_args()
    target, models = image(given.data), {}

    def begin(method: str) -> tuple[Step, Callable[[], Line]]:
        step, measured, models[method] = start(method, target, given.time_limit, given.clock)
        return step, measured

    compare(given, begin, image="olivetti" if given.data else "generated")
    for name, model in models.items():
        with torch.no_grad():
            picture = model(places().to(next(model.parameters()).dtype)).double().reshape(SIZE, SIZE).clamp(0, 1)
        torch.save(picture, given.out / f"{name}.pt")  # for a later call, which skips what has finished
    draw(given.out, target, {path.stem: torch.load(path) for path in sorted(given.out.glob("*.pt"))})


if __name__ == "__main__":
    main()
