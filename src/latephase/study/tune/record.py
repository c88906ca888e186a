"""What a trial came to, as the storage holds it: with a checksum, as databases have none of their own."""

import json
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from ...records import CHECK, DamagedFile, checksum


def sealed_record(trial: optuna.Trial | FrozenTrial, record: dict[str, Any]) -> str:
    """The record of a trial as JSON, with a checksum of it and of what the trial tried."""
    return json.dumps(record | {CHECK: _seal(trial, record)})


def record_of(trial: FrozenTrial, where: str) -> dict[str, Any]:
    """What became of a concluded trial.

    Args:
        trial: the trial.
        where: the address of its storage, to be said in errors.

    Raises:
        DamagedFile: the storage does not hold what was written into it.
    """
    try:
        record = json.loads(trial.user_attrs["record"])
        right = record.pop(CHECK, None) == _seal(trial, record)
    except (KeyError, TypeError, ValueError, AttributeError):
        right, record = False, {}
    if not right:
        place = trial.user_attrs.get("place")
        raise DamagedFile(
            f"the storage {where}",
            f"the checksum of place {place}, trial {trial.number}, is another: a value was changed; restore it, or "
            "choose another folder with --out, or another storage",
        )
    return record


def _seal(trial: optuna.Trial | FrozenTrial, record: dict[str, Any]) -> str:
    return checksum({"record": record, "params": trial.params, "place": trial.user_attrs["place"]})
