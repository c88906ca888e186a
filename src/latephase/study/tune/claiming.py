"""Whose the trials in a storage are: one configuration's, of one code, and in seconds of one machine."""

import json
from typing import Any

import optuna
import torch

from ...records import describe_environment
from ..config import ConfigError
from ..performing import code_version, own_code
from .config import Tuning


def configuration(tuning: Tuning, strategy: str) -> dict[str, Any]:
    """All that moves the trials of a strategy: what must be as before when a tuning goes on."""
    study, tune = tuning.study, tuning.tune
    own = next(entry for entry in study.strategies if entry.name == strategy)
    table = {
        **{key: getattr(study, key) for key in ("problem", "problem_version", "problem_options", "threads", "device")},
        "training": study.training.model_dump(),
        "budget": study.budget.model_dump(),
        "strategy": own.model_dump(exclude={"label"}),
        "search": {
            path: search.model_dump(exclude_defaults=True) for path, search in tuning.searches[strategy].items()
        },
        **tune.model_dump(include={"sampler", "metric", "seed", "halving"}),
        "code": code_version(),
        "own_code": own_code(study.problem, [own]),
        "torch": torch.__version__,
    }
    if study.budget.unit == "seconds":  # of one machine, which are not those of another
        machine = describe_environment(study.threads, study.jobs, study.device)
        table |= {key: machine[key] for key in ("cpu", "device")}
    return json.loads(json.dumps(table))


def claim_study(study: optuna.Study, table: dict[str, Any], where: str) -> None:
    """Write down the configuration of a strategy's trials, unless others did.

    Raises:
        ConfigError: they did, and it was another; names what differs.
    """
    before = study.user_attrs.get("configuration", table)
    for key in table:
        if before.get(key) != table[key]:
            raise ConfigError(
                f"the storage {where} holds trials of {study.study_name} with {key} {before.get(key)!r}, this is "
                f"{table[key]!r}: they do not compare; choose another folder with --out, or another storage"
            )
    study.set_user_attr("configuration", table)
