"""What the race costs and gains: `LatePhase` from trained models, beside each contestant alone with the whole budget.

    OMP_NUM_THREADS=1 python benchmarks/finish.py --out runs/finish [--problems digits,uci_energy] [--seeds 0,1,2]

For each problem and seed the base of the problem's setting trains for the seconds that `PROBLEMS` says. From that
state start, each with the same budget: every contestant that fits, alone; the base with a cosine, alone; and the race
of all of them. Seconds are of processor time. `runs.jsonl` gets a line for each run; those there are not repeated.
`--table` prints medians over the seeds: the regret (held-out loss at the end over that of the best contestant
in hindsight, minus one), and the same against the base with its cosine.
"""

import argparse
import copy
import json
import statistics
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from latephase import Contestant, LatePhase, Objective, Wants
from latephase.finishing.reading import Reading, Task, objective_alone
from latephase.optim.late_phase import cosine
from latephase.problems import get
from latephase.problems.problem import Problem


class Setting(NamedTuple):
    """How a problem is trained and finished.

    Attributes:
        train: processor seconds of the base, before.
        finish: processor seconds of what is compared.
        batch: rows of the base's steps, where the problem's setting has all rows or is of another size of machine.
        dtype: of data and model.
    """

    train: float
    finish: float
    batch: int | None = None
    dtype: torch.dtype = torch.float32


PROBLEMS = {
    "digits": Setting(30, 20),
    "fmnist_mlp50": Setting(60, 30),
    "fmnist_cnn": Setting(90, 40),
    "curves_autoencoder": Setting(90, 40),
    "uci_energy": Setting(20, 20),
    "uci_protein": Setting(40, 30),
    "rnn_addition": Setting(60, 30),
    "shakespeare_gpt": Setting(120, 60),
    "pinn_poisson2d": Setting(10, 30, dtype=torch.float64),
    "pinn_helmholtz": Setting(10, 30, dtype=torch.float64),
    "pinn_heat1d": Setting(10, 30, dtype=torch.float64),
    "pinn_burgers": Setting(10, 30, dtype=torch.float64),
}
ADAM = {"uci_energy": 3e-3, "uci_protein": 3e-3, "shakespeare_gpt": 1e-3}
"""Rates of Adam where the problem's own setting is none that anybody would train with."""


def trained(name: str, seed: int) -> tuple[Problem, nn.Module, Any, int | None]:
    """The problem, its model after training, the base with its state, and rows of its steps."""
    setting = PROBLEMS[name]
    torch.set_default_dtype(setting.dtype)
    torch.manual_seed(seed)
    problem = get(name)
    model, splits = problem.model(), problem.load()
    if name in ADAM:
        base: Any = torch.optim.Adam(model.parameters(), lr=ADAM[name])
    else:
        base = problem.training.start(model.parameters())
    batch = setting.batch or problem.training.batch_size
    generator = torch.Generator().manual_seed(seed)
    objective = None if batch is not None else whole(problem, model)
    started = time.process_time()
    rows = 0 if batch is None else len(splits.train[1])
    while time.process_time() - started < setting.train:
        if batch is not None:
            taken = torch.randint(rows, (batch,), generator=generator)
            objective = problem.objective(model, problem.batch(splits.train, taken, generator))
        base.step(objective)
    return problem, model, base, batch


def whole(problem: Problem, model: nn.Module) -> Objective:
    """The objective of all training data."""
    return problem.objective(model, problem.batch(problem.load().train))


def task_of(problem: Problem, model: nn.Module, batch: int | None, seed: int) -> Task:
    """Where steps get data, and what scores states."""
    splits = problem.load()
    if batch is None:
        held_out = problem.objective(model, problem.batch(splits.valid))
        return objective_alone(whole(problem, model), held_out, [])
    options = {"forward": problem.forward, "weight_decay": problem.weight_decay}
    return Reading(model, problem.loss, options, batch, seed, []).of(
        problem.batch(splits.train), problem.batch(splits.valid)
    )


def runs(name: str, seed: int, done: set[str]) -> Iterator[dict[str, Any]]:
    """A line for each run of a problem and seed that is not done: the race first, which says who takes part."""
    problem, model, base, batch = trained(name, seed)
    state, base_state = copy.deepcopy(model.state_dict()), copy.deepcopy(base.state_dict())
    test = problem.objective(model, problem.batch(problem.load().test))
    queue: list[str] = ["race", "cosine"]
    while queue:
        what = queue.pop(0)
        if what in done and what != "race":
            continue
        model.load_state_dict(state)
        base.load_state_dict(copy.deepcopy(base_state))
        task = task_of(problem, model, batch, seed)
        torch.manual_seed(seed)
        late = LatePhase(
            model.parameters(),
            base,
            PROBLEMS[name].finish,
            held_out=task.scores,
            source=task.source,
            contestants=None if what == "race" else [alone(what, batch)],
            detector=False,
            unit="processor_seconds",
        )
        late.step()
        if what == "race":
            SEEN.update({each.name: each for each in late.contestants})
            queue += [each.name for each in late.contestants]
            if "race" in done:
                continue
        while late.phase != "done":
            late.step()
        steps = max((event.get("steps", 0) for event in late.events), default=0)
        winners = [event["name"] for event in late.events if event["event"] == "winner"]
        with torch.no_grad():
            model.eval()
            tested = float(test.value())
        yield {
            "problem": name,
            "seed": seed,
            "run": what,
            "start": late.events[0]["loss"],
            "loss": late.best[0],
            "test": tested,
            "holder": late.best[1],
            "winner": winners[-1] if winners else None,
            "steps": steps,
            "excluded": late.excluded,
            "scores": [event for event in late.events if event["event"] == "score"],
            "looks": [(round(e["spent"], 3), e["loss"]) for e in late.events if e["event"] == "look"],
            "seconds": late.spent,
            "race_seconds": next((e["spent"] for e in late.events if e["event"] == "winner"), None),
        }


def alone(what: str, batch: int | None) -> Contestant:
    """A contestant by its name, as it takes part in the race; or the base with a cosine."""
    if what == "cosine":
        return Contestant("cosine", None, Wants(batch), cosine, average=False, training=True)
    return SEEN[what]


SEEN: dict[str, Contestant] = {}
"""Those that took part in the problem's race."""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/finish"))
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and run nothing")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    path = args.out / "runs.jsonl"
    args.out.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    if not args.table:
        for seed in map(int, args.seeds.split(",")):
            for name in args.problems.split(","):
                done = {line["run"] for line in lines if (line["problem"], line["seed"]) == (name, seed)}
                for line in runs(name, seed, done):
                    with path.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                    lines.append(line)
                    print(name, seed, line["run"], f"{line['loss']:.4g}", line["holder"], line["steps"], flush=True)
    table(lines)


def table(lines: list[dict[str, Any]]) -> None:
    """Print regrets, medians over seeds."""
    print(f"{'problem':22} {'winner':20} {'best alone':20} {'regret':>8} {'cosine':>8} {'held-out losses':>30}")
    regrets = []
    for name in dict.fromkeys(line["problem"] for line in lines):
        own: dict[int, dict[str, float]] = {}
        winners, bests = [], []
        for line in lines:
            if line["problem"] == name:
                own.setdefault(line["seed"], {})[line["run"]] = line["loss"]
                if line["run"] == "race":
                    winners.append(str(line["winner"]))
        found, against = [], []
        for losses in own.values():
            rivals = {run: loss for run, loss in losses.items() if run != "race"}
            if "race" not in losses or not rivals:
                continue
            best = min(rivals, key=lambda run: rivals[run])
            bests.append(best)
            found.append(losses["race"] / rivals[best] - 1)
            if "cosine" in rivals:
                against.append(losses["race"] / rivals["cosine"] - 1)
        if found:
            regrets += found
            middle = statistics.median(against) if against else float("nan")
            print(
                f"{name:22} {'/'.join(sorted(set(winners))):20} {'/'.join(sorted(set(bests))):20} "
                f"{statistics.median(found):8.1%} {middle:8.1%} "
                f"{ {run: f'{loss:.3g}' for run, loss in sorted(next(iter(own.values())).items())} }"
            )
    if regrets:
        print(f"median regret {statistics.median(regrets):.1%}, worst {max(regrets):.1%}, of {len(regrets)} races")


if __name__ == "__main__":
    main()
