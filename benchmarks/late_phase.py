"""Which settings of Hessian-free lower the held-out loss most per second late in training.

    LATEPHASE_DATA=FOLDER python benchmarks/late_phase.py checkpoints search grid verify report

SGD trains the `digits` problem and a small CNN on Fashion-MNIST until the loss goes into diffusion. From late
checkpoints every setting goes on for the same budget of CPU seconds of one thread (the machine may be shared, so that
wall-clock time would measure the neighbours). `search` changes one factor at a time from a centre, on the first
checkpoint of each problem, and keeps what lowers the held-out cross-entropy most; `grid` looks at damping together with
step size and with its control; `verify` compares the outcome with the published defaults and with schedules of SGD,
from both checkpoints and with other seeds; `report` draws tables and figure. Every run is one line of `runs.jsonl`; the
same command goes on where it stopped. FOLDER holds FashionMNIST/*-ubyte.gz; `digits` needs no files. Takes about an
hour and a half on one core.
"""

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import late_phase_report
import late_phase_runs
import torch
from late_phase_problems import CHECKPOINTS

from latephase.records.environment import describe_environment
from latephase.study.performing.conducting import ALLOCATOR

Setting = dict[str, Any]
ONE_THREAD = {"OMP_NUM_THREADS": "1", **ALLOCATOR}
BUDGETS = {"search": {"fashion": 8.0, "digits": 3.0}, "verify": {"fashion": 14.0, "digits": 5.0}}
SEEDS = {"search": (0, 1), "grid": (0,), "verify": (10, 11, 12)}
MARKS = {"search": 2, "verify": 8}
"""Evaluations of a run."""
CENTRE = {
    "fashion": {"batch": 1024, "evaluation": 512, "curvature": 0.25, "options": {"cg_max_iter": 10}},
    "digits": {"batch": 768, "evaluation": 384, "curvature": 0.25, "options": {"cg_max_iter": 10}},
}
FACTORS: list[tuple[str, list[Any]]] = [
    ("damping", [10.0, 1.0, 0.1, 0.01]),
    ("adapt_damping", [True, False]),
    ("batch", []),
    ("curvature", [1, 0.5, 0.25, 0.125]),
    ("cg_max_iter", [3, 5, 10, 20, 50]),
    ("evaluation", [0.25, 0.5, 1.0]),
    ("curvature_dtype", [None, "bfloat16"]),
    ("line_search", [True, False]),
    ("damping_factors", [(2 / 3, 3 / 2), (0.5, 2.0), (0.9, 1.1)]),
    ("damping_thresholds", [(0.25, 0.75), (0.0, 0.5)]),
    ("cg_decay_x0", [0.95, 0.0]),
    ("debias", [False, True]),
    ("preconditioner", [None, "empirical_fisher", "ggn_diagonal", "nystrom", "kfac"]),
    ("damping", [3.0, 1.0, 0.3, 0.1]),
]
"""In the order of the search; curvature and evaluation are shares of the batch. Damping comes again at the end."""
BATCHES = {"fashion": [256, 512, 1024, 2048, 4096], "digits": [128, 256, 512, 768]}
LATE_PHASE = {"curvature": 0.125, "options": {"damping": 0.3, "cg_max_iter": 3, "damping_thresholds": (0.0, 0.5)}}
PRESET = {
    "fashion": {"batch": 2048, "evaluation": 1024, **LATE_PHASE},
    "digits": {"batch": 512, "evaluation": 256, **LATE_PHASE},
}
"""What the searches agree on; the batch sizes are each problem's own."""
PUBLISHED = {"fashion": {"batch": 1024, "evaluation": 512}, "digits": {"batch": 768, "evaluation": 384}}
FIXED = {"cg_max_iter": 10, "damping_thresholds": (0.25, 0.75), "adapt_damping": False}
GRID = {"damping": [1.0, 0.3, 0.1, 0.03], "lr": [1.0, 0.5, 0.25]}
CONTROLS: dict[str, dict[str, Any]] = {
    "default": {"damping_thresholds": (0.25, 0.75)},
    "thresholds 0, 1/2": {},
    "ratio on the batch": {"damping_thresholds": (0.25, 0.75), "ratio_data": "objective"},
    "fixed": {"damping_thresholds": (0.25, 0.75), "adapt_damping": False},
}
SCHEDULES = ("constant", "tenth", "cosine")


def changed(setting: Setting, factor: str, value: Any) -> Setting:
    """The setting with one factor changed; options at their default are left out, so that no run is made twice.

    A new batch size keeps the share of the evaluation batch.
    """
    if factor == "curvature":
        return {**setting, factor: value}
    if factor == "batch":
        share = setting["evaluation"] / setting["batch"]
        return {**setting, "batch": value, "evaluation": round(share * value)}
    if factor == "evaluation":
        return {**setting, "evaluation": round(value * setting["batch"])}
    options = {name: option for name, option in setting["options"].items() if name != factor}
    if value != late_phase_runs.default_of(factor):
        options[factor] = value
    return {**setting, "options": options}


def key(stage: str, name: str, epoch: int, setting: Setting, seed: int) -> str:
    """What tells one run from another."""
    return json.dumps([stage, name, epoch, setting, seed], sort_keys=True)


class Journal:
    """The finished runs, one line each."""

    def __init__(self, work: Path, out: Path):
        self.work, self.path = work, out / "runs.jsonl"
        self.records: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                record = json.loads(line)
                self.records[self._key(record)] = record

    @staticmethod
    def _key(record: dict[str, Any]) -> str:
        return key(record["stage"], record["problem"], record["epoch"], record["setting"], record["seed"])

    def run(self, stage: str, name: str, epoch: int, setting: Setting, seed: int, label: str) -> dict[str, Any]:
        """The record of a run, from the file or made now."""
        setting = json.loads(json.dumps(setting))
        identity = key(stage, name, epoch, setting, seed)
        if identity not in self.records:
            budget = BUDGETS[stage][name]
            marks = MARKS[stage]
            found = late_phase_runs.run(self.work, name, epoch, setting, seed, budget, marks)
            record = {"stage": stage, "problem": name, "epoch": epoch, "setting": setting, "seed": seed, **found}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record | {"label": label, "budget": budget}) + "\n")
            self.records[identity] = record
            print(late_phase_report.line(record, label), flush=True)
        return self.records[identity]


def search(journal: Journal, name: str) -> Setting:
    """Coordinate descent: one factor after the other, the best median over seeds of the final held-out loss."""
    epoch, best = CHECKPOINTS[name][0], CENTRE[name]
    found: list[dict[str, Any]] = []
    for factor, values in FACTORS:
        settings = {}
        for value in values or BATCHES[name]:
            settings[json.dumps(value)] = changed(best, factor, value)
        losses: dict[str, list[float]] = {label: [] for label in settings}
        for seed in SEEDS["search"]:
            for label, setting in settings.items():
                record = journal.run("search", name, epoch, setting, seed, f"{factor}={label}")
                losses[label].append(record["valid"]["loss"])
        chosen = min(losses, key=lambda label: statistics.median(losses[label]))
        best = settings[chosen]
        found.append({"factor": factor, "chosen": chosen, "settings": settings})
        summary = {"problem": name, "epoch": epoch, "factors": found, "best": best}
        (journal.path.parent / f"search-{name}.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        medians = "  ".join(f"{label} {statistics.median(found_losses):.4f}" for label, found_losses in losses.items())
        print(f"== {name}: {factor}: {medians} -> {chosen}", flush=True)
    print(f"== {name}: {json.dumps(best)}", flush=True)
    return best


def with_options(setting: Setting, options: dict[str, Any]) -> Setting:
    """The setting with several factors changed."""
    for factor, value in options.items():
        setting = changed(setting, factor, value)
    return setting


def grid(journal: Journal, name: str) -> None:
    """What one factor at a time cannot see: step size and damping together, and four ways to control the damping."""
    epoch, preset = CHECKPOINTS[name][0], PRESET[name]
    pairs = {
        json.dumps(f"{damping:g}, {lr:g}"): with_options(preset, {**FIXED, "damping": damping, "lr": lr})
        for damping in GRID["damping"]
        for lr in GRID["lr"]
    }
    controls = {
        json.dumps(f"{damping:g}, {control}"): with_options(preset, {**options, "damping": damping})
        for damping in (1.0, 0.3)
        for control, options in CONTROLS.items()
    }
    found = []
    for factor, seeds, settings in (
        ("fixed damping, lr (cap 10)", SEEDS["grid"], pairs),
        ("damping, its control", SEEDS["search"], controls),
    ):
        for seed in seeds:
            for label, setting in settings.items():
                journal.run("search", name, epoch, setting, seed, f"{factor}: {label}")
        found.append({"factor": factor, "chosen": None, "settings": settings})
    summary = {"problem": name, "epoch": epoch, "factors": found}
    (journal.path.parent / f"grid-{name}.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


def contenders(name: str) -> dict[str, Setting]:
    """What is verified on a problem."""
    schedules = {f"SGD, {kind}": {"schedule": kind} for kind in SCHEDULES}
    preset = PRESET[name]
    first = changed(preset, "damping", 1.0)
    published = changed({**PUBLISHED[name], "curvature": 1, "options": {}}, "cg_max_iter", 250)
    return {
        **schedules,
        "HF, late phase": preset,
        "HF, late phase but damping 1": first,
        "HF, late phase but damping 1, thresholds 1/4, 3/4": changed(first, "damping_thresholds", (0.25, 0.75)),
        "HF, published defaults": published,
    }


def verify(journal: Journal, name: str) -> None:
    """Preset, published defaults and schedules of SGD, from every checkpoint, on seeds that the search did not use."""
    for seed in SEEDS["verify"]:
        for epoch in CHECKPOINTS[name]:
            for label, setting in contenders(name).items():
                journal.run("verify", name, epoch, setting, seed, label)


def one_thread() -> None:
    """Begin anew with one thread and an allocator that keeps its memory, where the environment does not say so."""
    if any(os.environ.get(name) != value for name, value in ONE_THREAD.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ONE_THREAD)
    torch.set_num_threads(1)


def main() -> None:
    """Run the stages that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=("checkpoints", "search", "grid", "verify", "report"))
    parser.add_argument("--problems", nargs="+", choices=("fashion", "digits"), default=("fashion", "digits"))
    parser.add_argument("--work", type=Path, default=Path("runs/late-phase"), help="folder of the checkpoints")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/late_phase"), help="folder of the results")
    parser.add_argument("--image", type=Path, default=Path("docs/images/late-phase-settings.png"), help="the figure")
    arguments = parser.parse_args()
    one_thread()
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.stages != ["report"]:
        environment = json.dumps(describe_environment(threads=1, jobs=1), indent=1) + "\n"
        (arguments.out / "environment.json").write_text(environment, encoding="utf-8")
    journal = Journal(arguments.work, arguments.out)
    for name in arguments.problems:
        if "checkpoints" in arguments.stages:
            rows = late_phase_runs.make_checkpoints(arguments.work, name)
            if rows is not None:
                (arguments.out / f"training-{name}.json").write_text(
                    json.dumps(rows, indent=1) + "\n", encoding="utf-8"
                )
        if "search" in arguments.stages:
            search(journal, name)
        if "grid" in arguments.stages:
            grid(journal, name)
        if "verify" in arguments.stages:
            verify(journal, name)
    if "report" in arguments.stages:
        late_phase_report.report(arguments.out, arguments.image)


if __name__ == "__main__":
    main()
