"""Lets things happen to ranks at random moments of a step, and counts what came of it.

    python tests/rank_fault_campaign.py --faults 60 --out runs/rank-faults.json

All kinds of faults by turns (`rank_faults.KINDS`), on two, three and five gloo ranks of which one has no rows, with
optimizers drawn at random: an exception or an interrupt at any call of the library, SIGKILL, data that is not finite,
another option, data type, model or optimizer, a rank that is late by less or by more than the group's own timeout.
`rank_verdicts.judged` says what must come of it: all ranks end with an error that names the cause, and with the
parameters of before the step, which is taken again where the group lives; or they go on as if nothing had happened.
Exit status 1 where something else came of a fault.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from rank_verdicts import WRONG, drawn, performed


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--faults", type=int, default=60, help="how many")
    parser.add_argument("--out", type=Path, required=True, help="a JSON file for what came of each")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args()
    rows, counts, started = [], Counter[str](), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for fault, outcome, place in performed(drawn(given.faults, random.Random(given.seed)), Path(folder)):
            rows.append({**vars(fault), "outcome": outcome, "place": place})
            counts[f"{fault.kind}: {outcome.partition(':')[0]}"] += 1
            print(f"{len(rows)} of {given.faults}: {fault}: {outcome} {place}", flush=True)  # noqa: T201
    summary = {"faults": rows, "counts": dict(sorted(counts.items())), "seconds": round(time.monotonic() - started, 1)}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(summary["counts"], indent=1))  # noqa: T201
    return int(any(row["outcome"].startswith(WRONG) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
