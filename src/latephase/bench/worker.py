"""The process that measures: `python -m latephase.bench.worker REQUEST.json RESULT.json`."""

import json
import sys
from pathlib import Path

from .measure import Settings, measure_network, measure_overhead


def main(request: Path, result: Path) -> None:
    """Do what the request says: {"network": name, or null for the overhead; "settings": ...}."""
    asked = json.loads(request.read_text(encoding="utf-8"))
    settings = Settings(**asked["settings"])
    name = asked["network"]
    record = measure_overhead(settings) if name is None else measure_network(name, settings)
    result.write_text(json.dumps(record), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
