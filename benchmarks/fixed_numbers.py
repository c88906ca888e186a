"""Write down the numbers of a fixed set of steps, or compare with what was written: a rebuilding must change none.

    OMP_NUM_THREADS=1 python benchmarks/fixed_numbers.py --out benchmarks/results/numbers.json
    OMP_NUM_THREADS=1 python benchmarks/fixed_numbers.py --compare benchmarks/results/numbers.json
    python benchmarks/fixed_numbers.py --compare benchmarks/results/numbers.json --only 'kfac*' --steps 10

Every optimizer takes 50 steps on digits, a transformer, a recurrent network and two physics problems, and on a small
network with each of its options, in float64; a small study and a small tuning, in steps, have a strategy of every kind
(`fixed_numbers_study.toml`, `fixed_numbers_tuning.toml`). Kept are, at each step, what the report says and a hash of
the parameters' bits, and at the end a hash of everything that the optimizer's state holds.

`--compare` says every difference and ends with status 1 if there is one. On the machine that wrote the file, or one
that is alike, numbers must be equal bit for bit. With another processor or torch, sums are taken in another order, and
the difference grows with the steps: a warning says so, only the first steps are compared, and within a tolerance.

What the library's names are is in `fixed_numbers_cases.py` and the two tables; the file knows names of cases only.
"""

import argparse
import contextlib
import copy
import fnmatch
import hashlib
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import fixed_numbers_studies as studies
import torch
from fixed_numbers_cases import CASES, GONE, RENAMED, STEPS, Case
from fixed_numbers_file import Records, Table, environment, everything, kept, read, write
from fixed_numbers_tasks import task
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

LEFT_OUT = ("seconds",)
"""Fields of reports that no two runs have in common."""
ELSEWHERE = {"rows": 3, "relative": 1e-6}
"""On another machine: the first rows that are compared, and the relative difference that they may have."""
NARROW = 1e-3
"""That difference where parameters are in float32: studies, tunings, and cases that say so."""
SHOWN = 5
"""Differences that are printed of each case."""


def cell(value: Any) -> Any:
    """A number as it is, and everything else in a form that JSON can hold and == compares."""
    if isinstance(value, (list, tuple)):
        return " ".join(str(each) for each in value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or type(value) in (bool, int, float) else str(value)


def fields(report: Any) -> dict[str, Any]:
    """What a report says, by the names in the stored file."""
    found: dict[str, Any] = report.as_dict()
    return {RENAMED.get(name, name): cell(value) for name, value in found.items() if name not in LEFT_OUT}


def digest(tensors: Sequence[Tensor]) -> str:
    """A hash of the tensors' bits."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return found.hexdigest()[:16]


def state_of(optimizer: torch.optim.Optimizer) -> str:
    """A hash of all vectors in the optimizer's state, whatever they are called and in whichever order they come."""
    leaves = tree_leaves(optimizer.state_dict()["state"])
    hashes = sorted(digest([leaf]) for leaf in leaves if isinstance(leaf, Tensor) and leaf.numel() > 1)
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()[:16]


def steps_of(case: Case, steps: int) -> dict[str, Any]:
    """Take the steps of a case."""
    torch.manual_seed(0)
    function = task(case.task)
    model: nn.Module = function.model().to(case.dtype).train(case.training)
    optimizer = case.make(model)
    columns: Table = {}
    for step in range(steps):
        if case.resumed and step == case.resumed:
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = case.make(model)
            optimizer.load_state_dict(state)
        for group in optimizer.param_groups:
            group["lr"] *= case.schedule
        loss = optimizer.step(**case.feed(function, model, step))
        row = {"returned": float(loss)} | fields(optimizer.report)
        row["parameters"] = digest(list(model.parameters()))
        for name, value in row.items():
            columns.setdefault(name, []).append(cell(value))
    end = {"rows": steps, "damping": cell(float(optimizer.damping)), "state": state_of(optimizer)}
    return {"columns": columns, "end": end | {"buffers": digest(list(model.buffers()))}}


@contextlib.contextmanager
def fixed() -> Iterator[None]:
    """One thread, deterministic kernels, and no warnings; afterwards as before."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


def record(only: str = "*", steps: int = STEPS) -> Records:
    """Run what the pattern names; a case that fails says so in the place of its numbers."""
    runs = {name: lambda case=case: steps_of(case, steps) for name, case in CASES.items()} | studies.RUNS
    found: Records = {}
    for name, run in runs.items():
        if not (fnmatch.fnmatchcase(name, only) or (name in studies.RUNS and only.startswith(name))):
            continue
        started = sum(os.times()[:4])
        with fixed():
            try:
                made = run()
            except Exception as error:
                made = {"columns": {}, "end": {"rows": 0, "error": f"{type(error).__name__}: {error}"[:300]}}
        for each, of_each in ({name: made} if "columns" in made else made).items():
            found[each] = of_each
        print(f"{name}: {sum(os.times()[:4]) - started:.1f} s {made.get('end', {}).get('error', '')}", flush=True)
    return found


def differences(stored: Records, now: Records, alike: bool = True) -> dict[str, list[str]]:
    """What differs in each case that was stored.

    Args:
        stored: records of the file.
        now: records of today; where they have fewer rows, only those are compared.
        alike: whether the machine is that of the file, so that every bit counts.
    """
    found: dict[str, list[str]] = {}
    for name, old in stored.items():
        if name in GONE:
            continue
        lines = ["is missing"] if name not in now else _of_case(name, old, now[name], alike)
        if lines:
            found[name] = lines
    return found


def _of_case(name: str, old: dict[str, Any], new: dict[str, Any], alike: bool) -> list[str]:
    if "error" in new["end"] or "error" in old["end"]:
        same = old["end"].get("error") == new["end"].get("error")
        return [] if same else [f"was {old['end']}", f"is {new['end']}"]
    whole = old["end"]["rows"] == new["end"]["rows"]
    rows = min(old["end"]["rows"], new["end"]["rows"], *([] if alike else [ELSEWHERE["rows"]]))
    gone = [column for column in old["columns"] if column not in new["columns"]]
    lines = [f"{column}: no such column now" for column in gone]
    for place, row in enumerate(kept(rows)):
        for column in (each for each in old["columns"] if each not in gone):
            before, after = old["columns"][column][place], new["columns"][column][row]
            if not _equal(name, column, before, after, alike):
                lines.append(f"row {row}, {column}: was {before!r}, is {after!r}")
    if alike and whole:
        end = dict(new["end"])
        if not lines:
            end["everything"] = everything(new["columns"], list(old["columns"]))
        lines += [
            f"at the end, {key}: was {old['end'].get(key)!r}, is {end[key]!r}" for key in _unequal(old["end"], end)
        ]
    elif alike and name not in CASES:  # of a study: all rows or none
        lines.append(f"{old['end']['rows']} rows were there, {new['end']['rows']} are")
    return lines


def _unequal(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [key for key in new if repr(old.get(key)) != repr(new[key])]


def _equal(name: str, column: str, old: Any, new: Any, alike: bool) -> bool:
    if alike or repr(old) == repr(new):
        return repr(old) == repr(new)
    if isinstance(old, float) and isinstance(new, (int, float)):
        wide = name in CASES and CASES[name].dtype == torch.float64 and "float32" not in name
        return math.isclose(old, new, rel_tol=ELSEWHERE["relative"] if wide else NARROW, abs_tol=1e-12)
    return column == "parameters"


def compare(path: Path, only: str, steps: int) -> int:
    """Run again, say what differs, and return how many cases differ."""
    written, stored = read(path)
    here = environment()
    alike = written == here
    if not alike:
        changed = [f"{key} {written.get(key)!r} -> {here[key]!r}" for key in here if written.get(key) != here[key]]
        print(f"Another environment ({', '.join(changed)}): rounding may differ, so that only the first rows are")
        print(f"compared, within {ELSEWHERE['relative']:g}; for every bit go back to that environment.")
    now = record(only, steps)
    stored = {name: case for name, case in stored.items() if fnmatch.fnmatchcase(name, only) or name in now}
    found = differences(stored, now, alike)
    for name, lines in found.items():
        more = len(lines) - SHOWN
        print(f"{name}:", *lines[:SHOWN], *([f"and {more} more"] if more > 0 else []), sep="\n    ")
    new = [name for name in now if name not in stored]
    print(
        f"{len(stored)} cases compared, {len(found)} differ" + (f"; not in the file: {', '.join(new)}" if new else "")
    )
    return len(found)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, help="write the numbers into this file")
    what.add_argument("--compare", type=Path, help="run again, and say what differs from this file")
    parser.add_argument("--only", default="*", help="names of cases, as a pattern such as 'kfac*'")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of each case, at most; default {STEPS}")
    args = parser.parse_args(arguments)
    if args.compare is not None:
        return int(compare(args.compare, args.only, args.steps) > 0)
    records = record(args.only, args.steps)
    write(args.out, records)
    failed = [name for name, case in records.items() if "error" in case["end"]]
    print(f"{len(records)} cases, {args.out.stat().st_size / 1000:.0f} kB; failed: {', '.join(failed) or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
