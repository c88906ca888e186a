"""Poisson's equation on the unit square: Gauss-Newton beside L-BFGS and Adam, for equal process seconds each.

    python benchmarks/gauss_newton.py [--seconds 60] [--seeds 0 1 2] [--only PATTERN] [--save FILE.json]

-u_xx - u_yy = 2 pi^2 sin(pi x) sin(pi y) with u = 0 on the edge; a network 2-32-32-1 with tanh (1,185 parameters), 900
points inside and 120 on the edge, float64, one thread. Adam (1e-3) runs for 10 process seconds; from where it is each
method then has the same process seconds:

- adam: goes on with Adam, its rate falling to zero by a cosine over the time;
- lbfgs: `torch.optim.LBFGS`, strong Wolfe, history 100, tolerances off;
- hessian_free: `HessianFree` with its defaults, all of the data;
- gauss_newton, self_scaled_broyden: `GaussNewton`, `SelfScaledBroyden` with their defaults; others are named in
  `METHODS`.

The error is relative, in the 2-norm, on a grid of 100 x 100. With --step, what one step costs instead, part by part,
in gradients of the same objective, and beside the floor of its arithmetic, R^2 P + R^3 / 3 multiplications at the speed
of a matrix product; with --wide of 4,000 points and 10,095 parameters. Results go to a file after each run; runs that
it has are not repeated.
"""

import argparse
import fnmatch
import itertools
import json
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from allocator import keep_memory
from torch import Tensor, nn

from latephase import (
    Direct,
    GaussNewton,
    HessianFree,
    LevenbergMarquardt,
    Objective,
    SelfScaledBroyden,
    TargetRatio,
)
from latephase.curvature import linearize

WARM_UP, RATE = 10.0, 1e-3
INTERIOR, EDGE, WIDTH = 900, 120, 32
WIDE = {"interior": 3_500, "rim": 500, "width": 98}
"""4,000 rows and 10,095 parameters."""


def solution(points: Tensor) -> Tensor:
    """The exact u [N, 1]."""
    return (torch.pi * points).sin().prod(1, keepdim=True)


def inside(model: nn.Module, points: Tensor) -> Tensor:
    """The equation's residual [N, 1]."""
    x = points.requires_grad_()
    (slopes,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    curved = [torch.autograd.grad(slopes[:, i].sum(), x, create_graph=True)[0][:, i : i + 1] for i in range(2)]
    return curved[0] + curved[1] + 2 * torch.pi**2 * solution(x)


def edge(model: nn.Module, points: Tensor) -> Tensor:
    """What should vanish on the boundary [N, 1]."""
    return model(points)


def problem(
    seed: int, interior: int = INTERIOR, rim: int = EDGE, width: int = WIDTH
) -> tuple[nn.Module, Objective, Callable[[], float]]:
    """The network, the objective, and the error as a function without arguments."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
    points, border = torch.rand(interior, 2), torch.rand(rim, 2)
    border[torch.arange(rim), torch.arange(rim) % 2] = (torch.arange(rim) // 2 % 2).to(border.dtype)
    objective = Objective.from_residuals(model, {"inside": (inside, points), "edge": (edge, border)})
    grid = torch.cartesian_prod(torch.linspace(0, 1, 100), torch.linspace(0, 1, 100))
    exact = solution(grid)

    @torch.no_grad()
    def error() -> float:
        return float((model(grid) - exact).norm() / exact.norm())

    return model, objective, error


def _plain(objective: Objective, optimizer: torch.optim.Optimizer) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        return objective()

    # torch's annotation wants a closure that returns a float; its documentation has one that returns the loss
    return lambda: optimizer.step(closure)  # pyright: ignore[reportCallIssue, reportArgumentType, reportReturnType]


def _adam(model: nn.Module, objective: Objective, share: Callable[[], float]) -> Callable[[], Any]:
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    step = _plain(objective, optimizer)

    def annealed() -> None:
        optimizer.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * min(share(), 1.0))) / 2
        step()

    return annealed


def _lbfgs(model: nn.Module, objective: Objective, share: Callable[[], float]) -> Callable[[], Any]:
    options = {"history_size": 100, "tolerance_grad": 0.0, "tolerance_change": 0.0, "max_iter": 20}
    optimizer = torch.optim.LBFGS(model.parameters(), 1.0, line_search_fn="strong_wolfe", **options)
    return _plain(objective, optimizer)


def _second_order(make: Callable[..., Any], **options: Any) -> Callable[..., Callable[[], Any]]:
    def method(model: nn.Module, objective: Objective, share: Callable[[], float]) -> Callable[[], Any]:
        optimizer = make(model.parameters(), **options)
        return lambda: optimizer.step(objective)

    return method


METHODS: dict[str, Callable[..., Callable[[], Any]]] = {
    "adam": _adam,
    "lbfgs": _lbfgs,
    "hessian_free": _second_order(HessianFree),
    "gauss_newton": _second_order(GaussNewton),
    "self_scaled_broyden": _second_order(SelfScaledBroyden),
    "self_scaled_bfgs": _second_order(SelfScaledBroyden, update="bfgs"),
    "plain": _second_order(GaussNewton, solver=Direct(acceleration=0.0)),
    "target_ratio": _second_order(GaussNewton, damping=TargetRatio()),
    "plain_target_ratio": _second_order(GaussNewton, damping=TargetRatio(), solver=Direct(acceleration=0.0)),
    "faster": _second_order(GaussNewton, damping=LevenbergMarquardt(factors=(1 / 3, 3.0), range=(1e-24, 1e12))),
}


def run(method: str, seed: int, seconds: float) -> dict[str, Any]:
    """One run from the checkpoint after Adam: loss and error at half of the time and at its end."""
    model, objective, error = problem(seed)
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    warm, began = _plain(objective, optimizer), time.process_time()
    while time.process_time() - began < WARM_UP:
        warm()
    start = {"loss": float(objective.value()), "error": error()}
    began = time.process_time()
    step = METHODS[method](model, objective, lambda: (time.process_time() - began) / seconds)
    steps, half = 0, None
    while (spent := time.process_time() - began) < seconds:
        if half is None and spent >= seconds / 2:
            half = {"steps": steps, "loss": float(objective.value()), "error": error()}
        step()
        steps += 1
    end = {"steps": steps, "loss": float(objective.value()), "error": error()}
    return {"method": method, "seed": seed, "seconds": seconds, "start": start, "half": half, "end": end}


def parts_of_a_step(rounds: int, **sizes: int) -> dict[str, float]:
    """Medians of what a step is made of, each in gradients of the same objective (`linearize(products=False)`)."""
    model, objective, _ = problem(0, **sizes)
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    warm = _plain(objective, optimizer)
    for _ in range(200):
        warm()
    newton = GaussNewton(model.parameters())
    for _ in range(2 if sizes else 10):
        newton.step(objective)
    rows = linearize(objective, method="double_backward").rows()
    kernel = rows @ rows.T + torch.eye(len(rows))
    calls: dict[str, Callable[[], Any]] = {
        "gradient": lambda: linearize(objective, products=False).gradient,
        "value": objective.value,
        "rows": lambda: linearize(objective, method="double_backward").rows(),
        "kernel": lambda: rows @ rows.T,
        "cholesky": lambda: torch.linalg.cholesky(kernel),
        "step": lambda: newton.step(objective),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 2):
        for name, call in calls.items():
            began = time.process_time()
            call()
            if turn >= 2:
                times[name].append(time.process_time() - began)
    gradients, n, p = times["gradient"], *rows.shape
    floor = (n**2 * p + n**3 / 3) / (n**2 * p) * median(times["kernel"])
    ratios = {name: [a / b for a, b in zip(own, gradients, strict=True)] for name, own in times.items()}
    beside = {"rows": n, "parameters": p, "step over floor": median(times["step"]) / floor}
    return beside | {"gradient, ms": 1e3 * median(gradients)} | {name: median(own) for name, own in ratios.items()}


def main() -> None:
    """Run what is asked for, and print a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", default="*")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--step", action="store_true", help="what a step costs, in gradients")
    parser.add_argument("--wide", action="store_true", help="the same of a larger problem")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    keep_memory()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    kept: dict[str, Any] = {"torch": torch.__version__, "processor": platform.processor(), "runs": []}
    if given.save is not None and given.save.exists():
        kept = json.loads(given.save.read_text())
    if given.step:
        name = "wide step" if given.wide else "step"
        kept[name] = parts_of_a_step(given.rounds, **(WIDE if given.wide else {}))
        print(json.dumps(kept[name], indent=2))
    else:
        names = [name for name in METHODS if fnmatch.fnmatch(name, given.only)]
        done = {(each["method"], each["seed"], each["seconds"]) for each in kept["runs"]}
        for seed, name in itertools.product(given.seeds, names):
            if (name, seed, given.seconds) not in done:
                kept["runs"].append(run(name, seed, given.seconds))
                print(json.dumps(kept["runs"][-1]), flush=True)
                if given.save is not None:
                    given.save.write_text(json.dumps(kept, indent=1) + "\n")
        for name in names:
            own = [each for each in kept["runs"] if each["method"] == name and each["seconds"] == given.seconds]
            middle = {key: median(each["end"][key] for each in own) for key in ("steps", "loss", "error")}
            print(f"{name:20} " + "  ".join(f"{key} {value:.3g}" for key, value in middle.items()))
    if given.save is not None:
        given.save.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
