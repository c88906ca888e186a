"""The whole benchmark: each network in a process of its own, then table, figure and files."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..records import write_json, write_text_atomic
from ..study.performing import ALLOCATOR
from .figure import draw
from .measure import Settings
from .networks import DEFAULT, find
from .tables import markdown


def bench(
    directory: Path,
    settings: Settings,
    networks: Sequence[str] = (),
    *,
    default_allocator: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure networks and write `bench.json`, `bench.md`, `bench.png` and `bench.pdf`.

    Args:
        directory: where the files go; made where it is missing.
        settings: what to measure, and how.
        networks: names. Default: all but those that are optional.
        default_allocator: leave the C library's allocator as it is, instead of letting it keep freed memory
            (`study.conduct.ALLOCATOR`) for all contenders alike.
        say: told what is being measured.

    Returns:
        What `bench.json` holds: "settings", "environment", "networks" (see `measure_network`), "sgd_overhead".

    Raises:
        ValueError: an unknown network.
    """
    names = list(networks) or DEFAULT
    for name in names:
        find(name)
    directory.mkdir(parents=True, exist_ok=True)
    variables = {} if default_allocator else ALLOCATOR
    records = []
    for position, name in enumerate(names, start=1):
        network = find(name)
        say(f"{network.title}, {network.batch_size} ({position} of {len(names)})")
        records.append(_measure(name, settings, variables))
    say("SGD through the objective")
    overhead = _measure(None, settings, variables)
    environments = [record.pop("environment") for record in records if "environment" in record]
    result = {
        "settings": asdict(settings),
        "allocator": variables or "default",
        "environment": environments[0] if environments else {},
        "networks": records,
        "sgd_overhead": overhead,
    }
    write_json(directory / "bench.json", result)
    write_text_atomic(directory / "bench.md", markdown(result))
    draw(result, directory)
    return result


def _measure(name: str | None, settings: Settings, variables: dict[str, str]) -> dict[str, Any]:
    """What a fresh process measures, with variables in its environment; a record with "error" where it died."""
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder) / "request.json", Path(folder) / "result.json"
        request.write_text(json.dumps({"network": name, "settings": asdict(settings)}), encoding="utf-8")
        threads = {"OMP_NUM_THREADS": str(settings.threads), "MKL_NUM_THREADS": str(settings.threads)}
        command = [sys.executable, "-m", f"{__package__}.worker", str(request), str(answer)]
        done = subprocess.run(command, env=os.environ | threads | variables, check=False)
        if done.returncode == 0:
            return json.loads(answer.read_text(encoding="utf-8"))
    record: dict[str, Any] = {"error": f"the measuring process ended with status {done.returncode}"}
    if name is not None:
        network = find(name)
        record |= {"name": name, "title": f"{network.title}, {network.batch_size}"}
    return record
