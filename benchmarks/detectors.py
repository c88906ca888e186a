"""Detectors of diffusion: on quadratics with a known stationary time, on two real problems, and what they cost.

    python benchmarks/detectors.py quadratics [--save benchmarks/results/detectors.json]
    LATEPHASE_DATA=FOLDER python benchmarks/detectors.py digits fashion cost --save benchmarks/results/detectors.json
    python benchmarks/detectors.py figure

*quadratics*: SGD from 200 seeds on each of thirteen quadratics (`detectors_quadratics.py`), all seeds at once. The
expected loss of every step is known in closed form. An alarm is false while the expected loss is still more than twice
the stationary one, when more of it is to be gained by going on than is noise; the delay is counted from the step at
which it is within 5 %, as a share of the steps until then, and is negative where the alarm comes between the two. A
rule holds on a problem if at most 5 % of the seeds give a false alarm, and the median delay is at most a quarter; a run
ends at 0.3, after which an alarm is "late". Takes some nine minutes.

*digits*, *fashion*: SGD at the constant rate of docs/digits.md and docs/late_phase.md, three seeds, all detectors
watching one run: the epoch at which each fires. *cost*: seconds of an SGD step of the CIFAR-10 network 3C3D at batch
128 with a detector over those without, which take turns, and the seconds inside the detector over the rest of the step;
medians of the ratios, in the process's own seconds.

Results are added to those of the file that is saved to; quadratics that are in it are not done again. *figure* draws
docs/images/detectors.png from it, and prints the tables.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from allocator import keep_memory
from detectors_quadratics import BEYOND, FALLING, FLAT, NOISE, QUADRATICS, SEEDS, fires, known, simulate

from latephase import problems
from latephase.optim.late_phase import SASA, Detector, Distance, GradientNorm, Pflug, Slope
from latephase.problems.problem import Problem

RULES: dict[str, Callable[[], Detector]] = {
    "Slope": Slope,
    "SLOPE, published": Slope.published,
    "SASA+": SASA,
    "distance": Distance,
    "Pflug": Pflug,
    "gradient norm": GradientNorm,
}
DRAW = 0
"""Of the random numbers; settings were chosen on the draw 1."""
LONGEST = 60_000
"""Steps in which every quadratic has fallen."""
EPOCHS = {"digits": 400, "fashion": 20}
SAVED = Path(__file__).parent / "results" / "detectors.json"


def on_quadratics(found: dict[str, Any], draw: int, noise: float) -> dict[str, Any]:
    """False alarms and delays of each rule on each quadratic that has not been found yet."""
    for problem in QUADRATICS:
        if problem.name in found:
            continue
        facts = known(problem, LONGEST)
        falling, flat = facts.falls_to(FALLING), facts.falls_to(FLAT)
        seen = simulate(problem, facts, int(BEYOND * flat), SEEDS, draw, noise=noise)
        row: dict[str, Any] = {"falling": falling, "flat": flat, "rules": {}}
        for name, make in RULES.items():
            at = fires(make(), seen)
            middle = float(np.median(at))
            row["rules"][name] = {
                "false_percent": 100 * float(np.mean(at < falling)),
                "median": middle if np.isfinite(middle) else None,
                "delay": middle / flat - 1 if np.isfinite(middle) else None,
            }
        found[problem.name] = row
        print(problem.name, falling, flat, *(f"{n} {line(r)}" for n, r in row["rules"].items()), sep="; ", flush=True)
    return found


def line(rule: dict[str, Any]) -> str:
    """False alarms in percent, and the delay."""
    return f"{rule['false_percent']:.0f} %, " + ("late" if rule["delay"] is None else f"{rule['delay']:+.2f}")


def holds(rule: dict[str, Any]) -> bool:
    """Whether a rule keeps what is asked of it on a problem."""
    return rule["false_percent"] <= 5 and rule["delay"] is not None and rule["delay"] <= 0.25


def on_training(name: str, seeds: int) -> dict[str, Any]:
    """The epoch at which each detector fires, by seed, and the history of the first seed's."""
    from late_phase_problems import data_of, problem_named
    from late_phase_runs import mini_batches, sgd_of

    problem = problem_named(name)
    steps = len(data_of(name).train[1]) // (problem.training.batch_size or 1)
    epochs: dict[str, list[float | None]] = {rule: [] for rule in RULES}
    histories: dict[str, Any] = {}
    for seed in range(seeds):
        torch.manual_seed(seed)
        model = problem.model()
        optimizer, source = sgd_of(problem, model), mini_batches(problem, seed, 1)
        watching = {rule: make() for rule, make in RULES.items()}
        for detector in watching.values():
            detector.watch(optimizer)
        for _ in range(EPOCHS[name] * steps):
            optimizer.zero_grad()
            inputs, targets = next(source)
            loss = problem.loss(model(inputs), targets)
            loss.backward()
            for detector in watching.values():
                detector.loss(loss)
            optimizer.step()
        for rule, detector in watching.items():
            epochs[rule].append(None if detector.since is None else detector.since / steps)
            if seed == 0:
                pairs = [(n / steps, value) for n, value in detector.history]
                histories[rule] = {"pairs": pairs, "level": detector.level}
        print(name, seed, {rule: each[-1] for rule, each in epochs.items()}, flush=True)
    return {"steps_per_epoch": steps, "epochs": EPOCHS[name], "fires": epochs, "histories": histories}


class Contender:
    """Steps of the network, with a detector or without."""

    def __init__(self, problem: Problem, detector: Detector | None):
        torch.manual_seed(0)
        self.problem, self.detector, self.model = problem, detector, problem.model()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4)
        self.own = 0.0
        if detector is not None:
            for name in ("start", "update", "loss"):
                setattr(detector, name, self._timed(getattr(detector, name)))
            detector.watch(self.optimizer)

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            value = call(*args, **kwargs)
            self.own += time.process_time() - start
            return value

        return timed

    def seconds(self, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[float, float]:
        """Of the process, of one step, and those of them inside the detector."""
        self.own, start = 0.0, time.process_time()
        self.optimizer.zero_grad()
        loss = self.problem.loss(self.model(inputs), targets)
        loss.backward()
        if self.detector is not None:
            self.detector.loss(loss)
        self.optimizer.step()
        return time.process_time() - start, self.own


def cost(rounds: int) -> dict[str, Any]:
    """By how many percent a detector makes a step dearer: medians of paired ratios, and of what it spends itself."""
    problem: Problem = problems.get("cifar10_3c3d")
    torch.manual_seed(0)
    data = torch.randn(128, 3, 32, 32), torch.randint(10, (128,))
    bare = Contender(problem, None)
    others = {rule: Contender(problem, make()) for rule, make in RULES.items()}
    found: dict[str, list[tuple[float, float]]] = {rule: [] for rule in others}
    for turn in range(rounds + 2):
        for rule, other in others.items():
            if turn % 2:
                without, (spent, own) = bare.seconds(*data)[0], other.seconds(*data)
            else:
                (spent, own), without = other.seconds(*data), bare.seconds(*data)[0]
            if turn >= 2:  # the first two warm up
                found[rule].append((100 * (spent / without - 1), 100 * own / (spent - own)))
    return {rule: {"paired": median(p for p, _ in each), "own": median(o for _, o in each)}
            for rule, each in found.items()}  # fmt: skip


def tables(results: dict[str, Any]) -> str:
    """Markdown of what there is."""
    rules = list(RULES)
    out = []
    if "quadratics" in results:
        rows = results["quadratics"]
        out += ["| quadratic | falls until | flat from | " + " | ".join(rules) + " |", "|---" * (len(rules) + 3) + "|"]
        for name, row in rows.items():
            cells = [f"{'**' * holds(r)}{line(r)}{'**' * holds(r)}" for r in (row["rules"][rule] for rule in rules)]
            out.append(f"| {name} | {row['falling']:,} | {row['flat']:,} | " + " | ".join(cells) + " |")
        kept = [str(sum(holds(row["rules"][rule]) for row in rows.values())) for rule in rules]
        out += [f"| holds on, of {len(rows)} | | | " + " | ".join(kept) + " |", ""]
    out += ["| | " + " | ".join(rules) + " |", "|---" * (len(rules) + 1) + "|"]
    for name in EPOCHS:
        if name in results:
            each = [results[name]["fires"][rule] for rule in rules]
            cells = [", ".join("never" if x is None else f"{x:.1f}" for x in row) for row in each]
            out.append(f"| {name}, epochs (of {results[name]['epochs']}) | " + " | ".join(cells) + " |")
    if "cost" in results:
        for what, kind in (("inside the detector", "own"), ("paired steps", "paired")):
            cells = [f"{results['cost'][rule][kind]:+.1f} %" for rule in rules]
            out.append(f"| cost of a step, {what} | " + " | ".join(cells) + " |")
    return "\n".join(out)


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=("quadratics", "digits", "fashion", "cost", "figure"))
    parser.add_argument("--save", type=Path, default=None, help="JSON file to add the results to")
    parser.add_argument("--draw", type=int, default=DRAW, help="of the quadratics' random numbers")
    parser.add_argument("--noise", type=float, default=NOISE, help="of their batches' losses, over the stationary loss")
    parser.add_argument("--seeds", type=int, default=3, help="of the training runs")
    parser.add_argument("--rounds", type=int, default=21, help="of the cost")
    given = parser.parse_args()
    torch.set_num_threads(1)
    path = given.save or SAVED
    results = json.loads(path.read_text()) if path.exists() and (given.save or "figure" in given.what) else {}
    for what in given.what:
        if what == "quadratics":
            results[what] = on_quadratics(results.get(what, {}), given.draw, given.noise)
        elif what == "cost":
            results[what] = cost(given.rounds)
        elif what in EPOCHS:
            results[what] = on_training(what, given.seeds)
    print(tables(results))
    if given.save:
        results["environment"] = {"torch": torch.__version__, "machine": platform.machine()}
        given.save.write_text(json.dumps(results, indent=1) + "\n")
    if "figure" in given.what:
        from detectors_figure import draw

        draw(results, Path(__file__).parents[1] / "docs" / "images" / "detectors.png")


if __name__ == "__main__":
    keep_memory()
    main()
