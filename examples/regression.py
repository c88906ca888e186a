"""UCI Energy: Gauss-Newton beside K-FAC, AdamQLR and Adam, on one clock; training loss and validation loss.

    OMP_NUM_THREADS=1 python examples/regression.py --data FOLDER --out runs/regression --time-limit 8

The problem of the study qlr-uci-energy (docs/studies/qlr-uci-energy.md): 588 rows, a perceptron 8-50-1, half the
squared error. It has ReLUs, at whose kinks a method that only goes downhill, on all of the rows, comes to a stop; so
the same runs are made with tanh in their place. K-FAC has the damping that its tuning found; AdamQLR and Adam are as
they come, and so is Gauss-Newton, in float64. 588 rows are few for 501 parameters: what a method that goes down
furthest on them does to others is in the validation loss. Each method runs once for each of --seeds, from the same
parameters as the others of that seed. FOLDER (default: the environment variable LATEPHASE_DATA) holds uci/energy.
"""

import os
from pathlib import Path
from statistics import median

import torch
from timed_runs import Line, Measure, Step, closure_step, command_line, compare, errors, look, plot
from torch import Tensor, nn

from latephase import KFAC, AdamQLR, GaussNewton, Objective
from latephase.problems import get

WEIGHTS = {"rows": 0.5}
"""Half the mean squared error."""


def difference(model: nn.Module, rows: tuple[Tensor, Tensor]) -> Tensor:
    """Residuals [N, 1] of (inputs, targets)."""
    inputs, targets = rows
    return model(inputs) - targets


def network(seed: int, activation: str) -> nn.Module:
    """The problem's network at a seed, with its own activation or with tanh."""
    torch.manual_seed(seed)
    model = get("uci_energy").model()
    for name, layer in model.named_children():
        if activation == "tanh" and isinstance(layer, nn.ReLU):
            model.set_submodule(name, nn.Tanh())
    return model


def start(name: str, activation: str, weight_decay: float) -> tuple[Step, Measure]:
    """The step of a run METHOD-SEED from its seed's parameters, and what is measured."""
    method, seed = name.rsplit("-", 1)
    problem = get("uci_energy")
    model, splits = network(int(seed), activation), problem.load()
    dtype = torch.float64 if method.startswith("gauss_newton") else torch.float32
    model.to(dtype)
    train, held_out = ([part.to(dtype) for part in split] for split in (splits.train, splits.valid))

    def loss(rows: list[Tensor]) -> Objective:
        return Objective.from_residuals(model, {"rows": (difference, tuple(rows))}, weights=WEIGHTS)

    on_train, on_others = loss(train), loss(held_out)

    def measured() -> Line:
        return {"error": float(on_train.value()), "validation": float(on_others.value())}

    if method == "adam":
        return closure_step(torch.optim.Adam(model.parameters()), on_train), measured
    if method.startswith("gauss_newton"):
        decay = weight_decay if method == "gauss_newton_l2" else 0.0
        terms = {"rows": (difference, tuple(train))}
        objective = Objective.from_residuals(model, terms, weights=WEIGHTS, weight_decay=decay)
        optimizer = GaussNewton(model.parameters())
    else:
        objective = problem.objective(model, problem.batch(tuple(train)))
        optimizer = AdamQLR(model.parameters()) if method == "adamqlr" else KFAC(model.parameters(), damping=7.8e-4)
    return lambda: {"loss": float(optimizer.step(objective)), "damping": optimizer.damping}, measured


LOOKS = {
    "adam": look("Adam, untuned", "blue"),
    "adamqlr": look("AdamQLR, untuned", "green"),
    "kfac": look("K-FAC, tuned damping", "orange"),
    "gauss_newton": look("Gauss-Newton", "red"),
    "gauss_newton_l2": look("Gauss-Newton, L2 term", "red") | {"linestyle": "--"},
}


def summary(folder: Path, names: list[str], seeds: list[int]) -> None:
    """Print medians over the seeds at the end."""
    found = errors(folder)
    for name in names:
        ends = [found[f"{name}-{seed}"][-1] for seed in seeds]
        lowest = [min(line["validation"] for line in found[f"{name}-{seed}"]) for seed in seeds]
        steps, train, validation = (median(end[key] for end in ends) for key in ("steps", "error", "validation"))
        print(
            f"{name}: {steps:g} steps, training loss {train:.3g}, validation loss {validation:.3g}, "
            f"lowest {median(lowest):.3g}"
        )


def main() -> None:
    """Read the command line."""
    parser = command_line(__doc__, "regression", tuple(LOOKS), 8.0)
    parser.add_argument("--data", type=Path, default=os.environ.get("LATEPHASE_DATA"), help="default: $LATEPHASE_DATA")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--weight-decay", type=float, default=1e-5, help="of the run with an L2 term")
    parser.add_argument("--activations", nargs="+", choices=("relu", "tanh"), default=["relu", "tanh"])
    given = parser.parse_args()
    if given.data is None:
        parser.error("give --data, or set LATEPHASE_DATA, to the folder that holds uci/energy")
    os.environ["LATEPHASE_DATA"] = str(given.data)
    names = given.methods
    given.methods = [f"{name}-{seed}" for seed in given.seeds for name in names]
    out, first = given.out, given.seeds[0]
    looks = {f"{name}-{seed}": {**LOOKS[name], **({} if seed == first else {"label": None, "alpha": 0.35})}
             for name in LOOKS for seed in given.seeds}  # fmt: skip
    for activation in given.activations:
        given.out = out / activation
        compare(
            given,
            lambda name, activation=activation: start(name, activation, given.weight_decay),
            activation=activation,
            weight_decay=given.weight_decay,
        )
        print(f"{activation}, medians of {len(given.seeds)}:")
        summary(given.out, names, given.seeds)
        label = f"training loss, {activation}"
        plot(given.out, out / f"{activation}.png", looks, label, {"validation": "validation loss"})


if __name__ == "__main__":
    main()
