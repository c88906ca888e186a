"""The last layer of a classifier to its optimum: Gauss-Newton beside Adam and L-BFGS, on one clock.

    OMP_NUM_THREADS=1 python examples/last_layer.py --data FOLDER --out runs/last_layer --time-limit 20

A perceptron 784-256-32-10 is trained on 20,000 images of Fashion-MNIST by Adam, then all but its last layer is left as
it is, and that layer starts anew from zero. What remains is a convex function of 330 parameters, cross-entropy with an
L2 term, whose Gauss-Newton matrix is the Hessian. The features are computed once, and every method has them. What is
plotted is the loss above the optimum, on all training images, over seconds of training, and the errors on test images.
Without FOLDER (default: the environment variable LATEPHASE_DATA), which holds FashionMNIST/, the images are
scikit-learn's digits. The optimum is what Gauss-Newton steps in float64 come to before the clock starts.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path

import torch
from scipy_lbfgs import scipy_lbfgs
from timed_runs import CLOCKS, Line, Measure, Step, closure_step, command_line, compare, look, plot
from torch import Tensor, nn

from latephase import GaussNewton, LevenbergMarquardt, Objective
from latephase.problems import get

WEIGHT_DECAY, BATCH, FEATURES = 1e-4, 500, 32
PROBLEMS = {"fmnist_mlp50": ({"rows": 20_000}, 5), "digits": ({}, 60)}
"""Options of the problem that the images are from, and epochs of training."""
PART = 10
"""One run has its curvature from one in so many rows."""
Batch = tuple[Tensor, Tensor]


def data_of(problem: str) -> tuple[Batch, Batch]:
    """What the last layer sees of training and test images, float64 [N, 32], with labels."""
    options, epochs = PROBLEMS[problem]
    splits = get(problem, **options).load()
    train, test = ((images.flatten(1).float(), labels) for images, labels in (splits.train, splits.test))
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(train[0].shape[1], 256), nn.ReLU(), nn.Linear(256, FEATURES), nn.ReLU())
    model = nn.Sequential(body, nn.Linear(FEATURES, 10))
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(epochs):
        for rows in torch.randperm(len(train[0])).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(train[0][rows]), train[1][rows]).backward()
            optimizer.step()
    with torch.no_grad():
        return tuple((body(images).double(), labels) for images, labels in (train, test))


def new_head() -> nn.Linear:
    """The last layer, from zero."""
    head = nn.Linear(FEATURES, 10, dtype=torch.float64)
    for p in head.parameters():
        nn.init.zeros_(p)
    return head


def objective_of(head: nn.Module, data: Batch) -> Objective:
    """Cross-entropy with an L2 term."""
    return Objective(head, nn.CrossEntropyLoss(), data, weight_decay=WEIGHT_DECAY)


def newton(head: nn.Module, objective: Objective, curvature_objective: Objective | None = None) -> Step:
    """Newton steps. The function is convex: little damping is needed, so that it begins small and falls fast."""
    damping = LevenbergMarquardt(1e-3, factors=(0.1, 4.0), range=(1e-24, 1e12))
    optimizer = GaussNewton(head.parameters(), damping=damping)

    def step() -> Line:
        loss = optimizer.step(objective, curvature_objective=curvature_objective)
        return {"loss": float(loss), "damping": optimizer.damping}

    return step


def adam(head: nn.Module, data: Batch, rate: float, spent: Callable[[], float]) -> Step:
    """Adam on batches of 500, its rate falling to zero by a cosine."""
    optimizer = torch.optim.Adam(head.parameters(), rate, fused=True)
    inputs, labels = data
    generator = torch.Generator().manual_seed(0)

    def step() -> Line:
        rows = torch.randint(len(labels), (min(BATCH, len(labels)),), generator=generator)
        optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * min(spent(), 1.0))) / 2
        return closure_step(optimizer, objective_of(head, (inputs[rows], labels[rows])))()

    return step


def start(method: str, train: Batch, test: Batch, optimum: float, spent: Callable[[], float]) -> tuple[Step, Measure]:
    """The step of a method, and what is measured."""
    head = new_head()
    objective = objective_of(head, train)

    def measured() -> Line:
        with torch.no_grad():
            wrong = float((head(test[0]).argmax(dim=1) != test[1]).double().mean())
        above = float(objective.value()) - optimum
        return {"error": max(above, 1e-16), "wrong": 100 * wrong}

    if method == "gauss_newton":
        return newton(head, objective), measured
    if method == "gauss_newton_part":
        part = torch.Generator().manual_seed(0)
        return newton(head, objective, objective.subsample(len(train[1]) // PART, part)), measured
    if method == "lbfgs":
        return scipy_lbfgs(head, objective), measured
    return adam(head, train, float(method.removeprefix("adam-")), spent), measured


def optimum_of(train: Batch) -> float:
    """The lowest loss, by Newton steps until they do not lower it any more."""
    head = new_head()
    objective = objective_of(head, train)
    step, last = newton(head, objective), math.inf
    while (loss := step()["loss"]) < last:
        last = loss
    return min(last, float(objective.value()))


LOOKS = {
    "adam-0.001": look("Adam, rate 0.001, cosine", "blue") | {"alpha": 0.5},
    "adam-0.01": look("Adam, rate 0.01, cosine", "blue"),
    "lbfgs": look("L-BFGS (SciPy)", "green"),
    "gauss_newton": look("Gauss-Newton", "red"),
    "gauss_newton_part": look("Gauss-Newton, curvature of a tenth of the rows", "orange"),
}


def main() -> None:
    """Read the command line."""
    parser = command_line(__doc__, "last_layer", tuple(LOOKS), 20.0)
    parser.add_argument("--data", type=Path, default=os.environ.get("LATEPHASE_DATA"), help="default: $LATEPHASE_DATA")
    given = parser.parse_args()
    if given.data is not None:
        os.environ["LATEPHASE_DATA"] = str(given.data)
    problem = "digits" if given.data is None else "fmnist_mlp50"
    train, test = data_of(problem)
    optimum = optimum_of(train)

    def begin(method: str) -> tuple[Step, Measure]:
        now = CLOCKS[given.clock]
        began = now()
        return start(method, train, test, optimum, lambda: (now() - began) / given.time_limit)

    compare(given, begin, problem=problem, rows=len(train[1]))
    plot(given.out, given.out / "last_layer.png", LOOKS, "loss above the optimum", {"wrong": "test images, % wrong"})


if __name__ == "__main__":
    main()
