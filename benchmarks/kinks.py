"""Gauss-Newton across kinks: UCI Energy with ReLUs, training and validation loss after some seconds.

    OMP_NUM_THREADS=1 python benchmarks/kinks.py [--seeds 10] [--seconds 8] [--save FILE.json]

Each damping starts from the same initial weights, in float64, on all 588 training rows; seconds are of processor time.
Needs LATEPHASE_DATA.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from latephase import Direct, Fixed, GaussNewton, NonMonotone
from latephase.problems import get

PLAIN = Direct(acceleration=0.0)
MAKES: dict[str, Callable[[Any], GaussNewton]] = {
    "NonMonotone(1e-2), no acceleration": lambda p: GaussNewton(p, solver=PLAIN, damping=NonMonotone(1e-2)),
    "NonMonotone(), no acceleration": lambda p: GaussNewton(p, solver=PLAIN, damping=NonMonotone()),
    "Fixed(1e-4)": lambda p: GaussNewton(p, damping=Fixed(1e-4)),
    "LevenbergMarquardt": GaussNewton,
}


def run(make: Callable[[Any], GaussNewton], seed: int, seconds: float) -> dict[str, Any]:
    """What a damping reaches from the weights of a seed."""
    torch.manual_seed(seed)
    problem = get("uci_energy")
    model, splits = problem.model().double(), problem.load()
    train, valid = (
        problem.objective(model, tuple(each.double() for each in problem.batch(part)))
        for part in (splits.train, splits.valid)
    )
    optimizer, steps, started = make(model.parameters()), 0, time.process_time()
    while time.process_time() - started < seconds:
        optimizer.step(train)
        steps += 1
    return {"seed": seed, "steps": steps, "train": float(train.value()), "valid": float(valid.value())}


def main() -> None:
    """Print medians and ranges."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--only", default="", help="part of a damping's name")
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    names = [name for name in MAKES if args.only in name]
    found = {name: [run(MAKES[name], seed, args.seconds) for seed in range(args.seeds)] for name in names}
    for name, runs in found.items():
        losses, valid = sorted(each["train"] for each in runs), [each["valid"] for each in runs]
        middle = statistics.median(losses)
        print(
            f"{name:36} {middle:.1e} ({losses[0]:.1e} to {losses[-1]:.1e}), validation {statistics.median(valid):.1e}"
        )
    if args.save:
        args.save.write_text(json.dumps({"seconds": args.seconds, "runs": found}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
