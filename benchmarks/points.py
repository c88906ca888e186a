"""Fixed points, points drawn anew and points drawn by their residuals: loss, held-out residual and error.

    OMP_NUM_THREADS=1 python benchmarks/points.py [--steps 150] [--seeds 0 1 2] [--points 20 60 300] [--save FILE.json]

-u'' = (4 pi)^2 sin(4 pi x) on 0 <= x <= 1 with u = 0 at both ends, weight 1,000; a network 1-10-10-1 with tanh (141
parameters), float64, `GaussNewton` with its defaults. Medians over the seeds, of network and points alike; 2,000 points
are held out. The error is relative, in the 2-norm, on a grid of 501.
"""

import argparse
import itertools
import json
import math
import platform
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from latephase import RAD, Box, GaussNewton, Objective, Points

FREQUENCY = 4 * math.pi
LINE = Box(0.0, 1.0)
WAYS: dict[str, dict[str, Any]] = {
    "fixed": {"every": None},
    "anew every 10 steps": {"every": 10},
    "every 10 by RAD": {"every": 10, "adaptive": RAD()},
    "anew every step": {"every": 1},
}


def equation(model: nn.Module, x: Tensor) -> Tensor:
    """The residual [N, 1]."""
    x = x.requires_grad_()
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    (curved,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
    return curved + FREQUENCY**2 * torch.sin(FREQUENCY * x)


def ends(model: nn.Module, x: Tensor) -> Tensor:
    """What should vanish [2, 1]."""
    return model(x)


def error(model: nn.Module) -> float:
    """Relative, in the 2-norm."""
    x = torch.linspace(0, 1, 501, dtype=torch.float64).unsqueeze(1)
    exact = torch.sin(FREQUENCY * x)
    with torch.no_grad():
        return float((model(x) - exact).norm() / exact.norm())


def measured(way: str, count: int, steps: int, seed: int) -> dict[str, float]:
    """One run."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(1, 10), nn.Tanh(), nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 1)).double()
    terms = {"equation": (equation, LINE(count)), "ends": (ends, torch.tensor([[0.0], [1.0]]).double())}
    objective = Objective.from_residuals(model, terms, weights={"ends": 1000.0})
    points = Points(objective, {"equation": LINE}, held_out=2000, warn_above=math.inf, **WAYS[way])
    optimizer = GaussNewton(model.parameters())
    for _ in range(steps):
        optimizer.step(points.next())
    report = points.measure()
    return {"residual": report.residual, "held_out": report.held_out, "error": error(model)}


def main() -> None:
    """Run all, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--points", type=int, nargs="+", default=[20, 60, 300])
    parser.add_argument("--save", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print("| points | drawn | loss | held-out | error |\n|---|---|---|---|---|")
    for count, way in itertools.product(chosen.points, WAYS):
        runs = [measured(way, count, chosen.steps, seed) for seed in chosen.seeds]
        rows.append({"points": count, "way": way, "runs": runs})
        numbers = [f"{median(run[key] for run in runs):.1e}" for key in ("residual", "held_out", "error")]
        print(f"| {count} | {way} | {' | '.join(numbers)} |", flush=True)
    if chosen.save:
        settings = {"steps": chosen.steps, "seeds": chosen.seeds, "torch": torch.__version__}
        settings["python"] = platform.python_version()
        chosen.save.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
