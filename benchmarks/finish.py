"""What the race costs and gains: `LatePhase` from trained models, beside each contestant alone with the whole budget.

    python benchmarks/finish.py --dry-run                     # what it would take, at most
    LATEPHASE_DATA=FOLDER python benchmarks/finish.py --out runs/finish --processes 2
    python benchmarks/finish.py --out runs/finish --table     # Markdown of what is there; nothing is run

For each problem and seed the base trains for the seconds that `finish_problems.PROBLEMS` says. From that state start,
each with the same budget: the race of all contestants that fit, the base with a cosine alone, and others alone. Which
others: with the first seed everyone in the library's table who fits; with the later seeds those that took part in the
race, and of the rest the `BEST_OF_REST` that ended lowest with the first seed. On data without noise those stay away
that are for noise.

Seconds are of the process's own processor time, so that a shared machine does not matter; every process has one thread.
Lines are appended to `OUT/PROBLEM.jsonl`, one for each run, and trained models kept beside; what is there is not
repeated, and killed at any moment, the same command goes on. Lines of other settings are left alone and not counted.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import time
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import torch  # noqa: E402  # threads are counted when it is imported
from finish_problems import PROBLEMS, Setting, Trained, shorter, trained  # noqa: E402
from finish_table import table  # noqa: E402

from latephase import LatePhase  # noqa: E402
from latephase.optim.late_phase import OWN  # noqa: E402
from latephase.records import write_atomic  # noqa: E402

BEST_OF_REST = 2
"""Contestants of those that took no part in the race that later seeds have, too."""
FOR_NOISE = ("linear", "one_minus_sqrt", "ema", "lawa", "schedule_free", "hessian_free_averaged", "hessian_free_full")
"""Contestants that are for data with noise."""
FOR_MODES = ("cosine_frozen", "hessian_free_training")
"""Those that differ from others only where a model has dropout or batch norm."""
OVERHEAD = 1.1
"""Of a run's seconds, with loading, scores of the test split and last steps that end beyond the budget."""


class Run(NamedTuple):
    """Where a run's line stands.

    Attributes:
        problem: its name.
        seed: of training and finish.
        run: "race", or the contestant alone.
    """

    problem: str
    seed: int
    run: str


def rivals(setting: Setting) -> list[str]:
    """Who may be alone on a problem, the base with a cosine first."""
    out = (*(FOR_NOISE if setting.deterministic else ()), *(() if setting.modes else FOR_MODES))
    return ["cosine", *(name for name in OWN if name != "cosine" and name not in out)]


def foretold(problems: Iterable[str], seeds: int, settings: dict[str, Setting]) -> dict[str, float]:
    """Processor seconds by problem, at most: as if everyone fitted."""
    found = {}
    for name in problems:
        setting = settings[name]
        those = rivals(setting)
        itself = sum(OWN[each].by_itself for each in those)
        runs = 1 + len(those) + (seeds - 1) * (1 + 1 + itself + BEST_OF_REST)
        found[name] = OVERHEAD * (seeds * setting.train + runs * setting.finish)
    return found


def lines_of(path: Path, setting: Setting) -> list[dict[str, Any]]:
    """The lines of this setting that are whole; the last one may have been cut by a kill."""
    found = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if line["setting"] == setting.told:
            found.append(line)
    return found


def append(path: Path, line: dict[str, Any]) -> None:
    """Add a line, on one of its own where the last was cut."""
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def perform(name: str, seeds: list[int], out: Path, setting: Setting) -> list[str]:
    """All runs of a problem that are not done, the first seed's first; what was done, in words."""
    torch.set_num_threads(1)
    torch.set_default_dtype(getattr(torch, setting.dtype))
    warnings.simplefilter("ignore")
    path, told = out / f"{name}.jsonl", []
    for seed in seeds:
        at: Trained | None = None
        for what in runs(name, seed, seeds[0], path, setting):
            at = trained(name, seed, setting, out / f"{name}-{seed}.pt") if at is None else at
            line = {"problem": name, "seed": seed, "run": what, "setting": setting.told} | finished(at, what, setting)
            append(path, line)
            told.append(f"{name} {seed} {what}: {line.get('loss', line.get('excluded'))}")
            print(told[-1], flush=True)
    return told


def runs(name: str, seed: int, first: int, path: Path, setting: Setting) -> Iterator[str]:
    """The runs of a problem and seed that are not done; the race first, which says who takes part in it."""

    def done() -> dict[str, dict[str, Any]]:
        return {line["run"]: line for line in lines_of(path, setting) if line["seed"] == seed}

    if "race" not in done():
        yield "race"
    own = [each for each in done()["race"]["contestants"] if each != "cosine"]
    if seed == first:
        rest = [each for each in rivals(setting) if each != "cosine" and each not in own]
    else:
        rest = best_of_rest(lines_of(path, setting), first, own)
    yield from (each for each in ("cosine", *own, *rest) if each not in done())


def best_of_rest(lines: list[dict[str, Any]], first: int, own: list[str]) -> list[str]:
    """Those of the first seed that took no part in a race and ended lowest."""
    others = [
        line
        for line in lines
        if line["seed"] == first and line["run"] not in ("race", "cosine", *own) and line.get("loss") is not None
    ]
    return [line["run"] for line in sorted(others, key=lambda line: line["loss"])[:BEST_OF_REST]]


def finished(at: Trained, what: str, setting: Setting) -> dict[str, Any]:
    """What became of a run from a trained model."""
    model, base, task = at.begun()
    began = time.process_time()
    torch.manual_seed(at.seed)
    late = LatePhase(
        model.parameters(),
        base,
        setting.finish,
        held_out=task.held_out,
        source=task,
        contestants=None if what == "race" else [what],
        detector=False,
        unit="processor_seconds",
    )
    try:
        while late.phase != "done":
            late.step()
    except ValueError as error:
        if "no contestant" not in str(error):
            raise
        return {"excluded": str(error), "processor_seconds": time.process_time() - began}
    model.load_state_dict(late.best_state(model))
    winners = [event["name"] for event in late.events if event["event"] == "winner"]
    return {
        "start": late.events[0]["loss"],
        "loss": late.best[0],
        "test": at.tested(model),
        "holder": late.best[1],
        "winners": winners,
        "contestants": [each.name for each in late.contestants],
        "not_taking_part": late.excluded,
        "sureness": late.sureness,
        "events": late.events,
        "spent": late.spent,
        "processor_seconds": time.process_time() - began,
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/finish"))
    parser.add_argument("--problems", default=",".join(PROBLEMS), help="default: all")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--processes", type=int, choices=(1, 2), default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="of all seconds, for rehearsals; its lines are others")
    parser.add_argument("--dry-run", action="store_true", help="say what it would take, at most, and run nothing")
    parser.add_argument("--table", action="store_true", help="print the tables of what is there, and run nothing")
    parser.add_argument("--save", type=Path, help="write what the tables are made of, without events, as JSON")
    args = parser.parse_args()
    names, seeds = args.problems.split(","), [int(seed) for seed in args.seeds.split(",")]
    settings = {name: shorter(PROBLEMS[name], args.scale) for name in names}
    if args.dry_run:
        seconds = foretold(names, len(seeds), settings)
        for name, each in seconds.items():
            print(f"{name:20} {each / 60:6.1f} min   {dataclasses.asdict(settings[name])}")
        total = sum(seconds.values()) / 60
        print(f"at most {total:.0f} minutes of one core, {len(seeds)} seeds; of {args.processes}: about "
              f"{max(total / args.processes, max(seconds.values()) / 60):.0f}")  # fmt: skip
        return
    if not args.table:
        args.out.mkdir(parents=True, exist_ok=True)
        context = multiprocessing.get_context("spawn")  # every problem in a process of its own: dtypes, clocks
        with ProcessPoolExecutor(args.processes, mp_context=context, max_tasks_per_child=1) as pool:
            jobs = [pool.submit(perform, name, seeds, args.out, settings[name]) for name in names]
            for job in as_completed(jobs):
                job.result()
    lines = [line for name in names for line in lines_of(args.out / f"{name}.jsonl", settings[name])]
    if args.save is not None:
        kept = [{key: value for key, value in line.items() if key != "events"} for line in lines]
        write_atomic(args.save, ("[\n" + ",\n".join(json.dumps(line) for line in kept) + "\n]\n").encode())
    print(table(lines))


if __name__ == "__main__":
    main()
