"""Four equations against published errors, within 15 minutes of processor time on one core: curves over seconds.

    OMP_NUM_THREADS=1 python benchmarks/physics_targets.py [--seconds 900] [--seeds 0] [--only NAME] [--save FILE.json]

Every run is float64 on one thread, from fresh weights: some steps of Adam, then `GaussNewton` or `SelfScaledBroyden` as
`SETTINGS` says, until the residual on points held out is small `enough` or the seconds are over. Seconds are of
processor time, of everything but the measurements. These are the relative error on the problem's test grid and mean
squared residuals: on the points trained on, and on 10,000 others inside that never are. Both add those of the
conditions, and nothing is weighed in them. Settings were chosen, and what a run ends with is taken, by the residual
held out.

Every five seconds a line is printed, and results are written. Runs that the file has are not repeated; one that was
broken off goes on from a state beside the file.
"""

import argparse
import dataclasses
import fnmatch
import itertools
import json
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from allocator import keep_memory
from torch import Tensor

from latephase import RAD, Box, GaussNewton, Objective, Points, SelfScaledBroyden
from latephase.problems import get

HELD_OUT, EVERY = 10_000, 5.0
"""Points on which residuals are measured, and seconds between measurements."""
FIRST, FACTOR = 0.05, 1.25
"""Of growing times: the first of them, and what they grow by."""
OPTIMIZERS: dict[str, type[Any]] = {"gauss_newton": GaussNewton, "self_scaled_broyden": SelfScaledBroyden}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A problem, and how it is trained.

    Attributes:
        problem: its name.
        aim: the relative error to get below.
        enough: the held-out residual below which a run ends.
        method: of `OPTIMIZERS`, with its defaults.
        given: options of the problem.
        weights: of terms; 1 for others.
        warm_up: steps of Adam at first, at a rate of 1e-3.
        every: steps until points inside are drawn anew; None for points that stay.
        candidates: of RAD for each point; 0 for uniform points.
        grow: the loss below which the times that points are drawn from grow, until they are those of the whole domain
            (Wight and Zhao 2020, arXiv 2007.04542); 0 for all times from the start.
    """

    problem: str
    aim: float
    enough: float
    method: str = "gauss_newton"
    given: dict[str, Any] = dataclasses.field(default_factory=dict)
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    warm_up: int = 300
    every: int | None = 10
    candidates: int = 0
    grow: float = 0.0


CONDITIONS = {"initial": 100.0, "boundary": 100.0}
HARD, NARROW = {"hard": True, "points": 4000}, {"width": 20, "points": 4000}
SETTINGS = {
    "reaction": Setting("pinn_reaction", 9.9e-3, 1e-8, given=NARROW, weights=CONDITIONS),
    "convection": Setting("pinn_convection", 1.9e-3, 1e-9, given=NARROW, weights=CONDITIONS, grow=1e-2),
    "wave": Setting("pinn_wave", 1.3e-2, 1e-4, given=NARROW, weights=CONDITIONS),
    "burgers, gauss-newton": Setting("pinn_burgers", 1e-6, 1e-12, given=HARD, every=20, candidates=30),
    "burgers, broyden": Setting(
        "pinn_burgers", 1e-6, 1e-12, "self_scaled_broyden", given=HARD, every=500, candidates=30
    ),
}


class Task:
    """The network of a setting, its objective, its points, and what is measured of it."""

    def __init__(self, setting: Setting, seed: int):
        torch.manual_seed(seed)
        problem = get(setting.problem, **setting.given)
        forward: Any = problem.forward  # a partial function, whose equation has the functions of the terms
        splits, equation = problem.load(), forward.keywords["equation"]
        self.setting, self.model, self.horizon = setting, problem.model(), FIRST if setting.grow else 1.0
        terms: dict[str, tuple[Callable[..., Tensor], Any]] = {}
        for inputs, targets in splits.train:
            ((key, points),) = ((key, points) for key, points in inputs.items() if key != "scale")
            terms[key] = (_difference(getattr(equation, key)), (points, targets / inputs["scale"]))
        self.box = equation.box if hasattr(equation, "box") else torch.tensor([[0.0, 0.0], [equation.extent, 1.0]])
        count = len(terms["interior"][1][0])
        inside = self._draw(count, torch.Generator().manual_seed(seed))
        terms["interior"] = (equation.interior, inside)  # which is to be zero in all four
        self.objective = Objective.from_residuals(self.model, terms, weights=setting.weights)
        now, self.horizon = self.horizon, 1.0  # points held out are of all times
        self.points = Points(
            self.objective,
            {"interior": self._draw},
            every=setting.every,
            adaptive=RAD(setting.candidates) if setting.candidates else None,
            held_out=HELD_OUT,
            watch=10**9,
            seed=seed,
        )
        self.horizon = now
        ((inputs, values),) = splits.test
        self.test = inputs["solution"], values / inputs["scale"]

    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        low, high = self.box.tolist()
        high[-1] *= self.horizon
        return Box(low, high)(n, generator)

    def grow(self, loss: float) -> None:
        """Let times grow where the loss is small, and draw points from them."""
        if self.horizon < 1.0 and loss < self.setting.grow:
            self.horizon = min(1.0, FACTOR * self.horizon)
            self.points.redraw()

    def measure(self) -> dict[str, float]:
        """Error, and mean squared residuals without weights, on points trained on and held out."""
        points, exact = self.test
        with torch.no_grad():
            error = float((self.model(points) - exact).norm() / exact.norm())
        report = self.points.measure()
        residual, held_out = (sum(each.values()) for each in (report.terms, {**report.terms, **report.held_out_terms}))
        return {"error": error, "residual": residual, "held_out": held_out, "times": self.horizon}


def _difference(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda model, points: function(model, points[0]) - points[1]


class Run:
    """A task on its way: its optimizers, its curve so far, and the processor time that it took.

    Its state goes to a file and back, so that a run which was broken off goes on where it was last measured.
    """

    def __init__(self, setting: Setting, seed: int):
        self.task, self.seed = Task(setting, seed), seed
        self.adam = torch.optim.Adam(self.task.model.parameters(), 1e-3)
        self.optimizer = OPTIMIZERS[setting.method](self.task.model.parameters())
        self.spent, self.steps = 0.0, 0
        self.curve: list[dict[str, float]] = []

    def _parts(self) -> dict[str, Any]:
        return {"model": self.task.model, "adam": self.adam, "optimizer": self.optimizer, "points": self.task.points}

    def save(self, path: Path) -> None:
        """Write the state, at once or not at all."""
        numbers = {"spent": self.spent, "steps": self.steps, "curve": self.curve, "times": self.task.horizon}
        torch.save(numbers | {name: part.state_dict() for name, part in self._parts().items()}, f"{path}.new")
        Path(f"{path}.new").replace(path)

    def load(self, path: Path) -> None:
        """Go on from a state."""
        state = torch.load(path, weights_only=True)
        self.spent, self.steps, self.curve = state["spent"], state["steps"], state["curve"]
        self.task.horizon = state["times"]
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def go_on(self, seconds: float) -> bool:
        """Steps until the next measurement, and that; returns whether the run goes on after it."""
        task, setting = self.task, self.task.setting
        while self.spent < min(seconds, len(self.curve) * EVERY):
            began = time.process_time()
            if self.steps < setting.warm_up:
                self.adam.step(task.objective)
            else:
                self.optimizer.step(task.points.next())
                task.grow(self.optimizer.report.new_loss)
            self.steps += 1
            self.spent += time.process_time() - began
        self.curve.append({"seconds": round(self.spent, 2), "steps": self.steps} | task.measure())
        return self.spent < seconds and self.curve[-1]["held_out"] >= setting.enough

    def told(self) -> dict[str, Any]:
        """The curve, the line of it with the lowest residual held out, and when the error was below its aim."""
        best = min(self.curve, key=lambda line: line["held_out"])
        reached = next((line["seconds"] for line in self.curve if line["error"] < self.task.setting.aim), None)
        parameters = sum(p.numel() for p in self.task.model.parameters())
        return {"seed": self.seed, "parameters": parameters, "reached": reached, "end": best, "curve": self.curve}


def finished(run: dict[str, Any]) -> bool:
    """Whether nothing of a run is left to do."""
    return run["curve"][-1]["seconds"] >= run["limit"] or run["end"]["held_out"] < run["setting"]["enough"]


def perform(about: dict[str, Any], seed: int, kept: dict[str, Any], save: Path | None) -> None:
    """Put a run among those kept, and write them after each measurement."""
    run, state = Run(SETTINGS[about["name"]], seed), None
    if save is not None:
        state = save.with_name(f"{save.stem}-{about['name'].replace(', ', '-')}-{seed}.pt")
        if state.exists():
            run.load(state)
    goes_on = True
    while goes_on:
        goes_on = run.go_on(about["limit"])
        print({key: float(f"{value:.3g}") for key, value in run.curve[-1].items()}, flush=True)
        others = [each for each in kept["runs"] if not (each["seed"] == seed and about.items() <= each.items())]
        kept["runs"] = [*others, about | run.told()]
        if save is not None and state is not None:
            run.save(state)
            save.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    if state is not None:
        state.unlink()


def row(run: dict[str, Any]) -> str:
    """A run as a row of the table on the page about physics."""
    setting, end = run["setting"], run["end"]
    about = [setting["problem"].removeprefix("pinn_"), run["seed"], f"`{OPTIMIZERS[setting['method']].__name__}`"]
    reached = "not" if run["reached"] is None else f"{run['reached']:.0f} s"
    numbers = [f"{end['error']:.1e}", f"{end['held_out']:.1e}", f"{end['seconds']:.0f} s"]
    cells = [*about, f"{run['parameters']:,}", f"{setting['aim']:.1e}", reached, *numbers]
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Run what is asked for, and print the rows of all runs that the file has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", default="*")
    parser.add_argument("--save", type=Path)
    given = parser.parse_args()
    keep_memory()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    warnings.filterwarnings("ignore", message="after .* steps the residual on held-out points")
    kept: dict[str, Any] = {"torch": torch.__version__, "processor": platform.processor(), "runs": []}
    if given.save is not None and given.save.exists():
        kept = json.loads(given.save.read_text(encoding="utf-8"))
    names = [name for name in SETTINGS if fnmatch.fnmatch(name, given.only)]
    for seed, name in itertools.product(given.seeds, names):
        about = {"name": name, "setting": dataclasses.asdict(SETTINGS[name]), "limit": given.seconds}
        known = [each for each in kept["runs"] if each["seed"] == seed and about.items() <= each.items()]
        if not any(map(finished, known)):
            print(name, seed, flush=True)
            perform(about, seed, kept, given.save)
    for each in kept["runs"]:
        print(row(each))


if __name__ == "__main__":
    main()
