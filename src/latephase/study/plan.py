"""What a study set out to do, as its resolved ``study.toml`` says. Imports no torch."""

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import Damaged, open_regular

SECOND_ORDER = ("hessian_free", "adamqlr", "sgdqlr", "kfac", "lbfgs")
"""The kinds of strategies that use curvature; a chain with such a part is one too."""


NAME = r"^[A-Za-z0-9][A-Za-z0-9.-]*$"
"""What a name may be that files and folders are called by."""

_KINDS_OF_VALUES: dict[str, Any] = {
    "name": str,
    "description": str,
    "problem": str,
    "problem_version": int,
    "problem_options": dict,
    "checkpoints": list,
    "seeds": list,
    "strategies": list,
    "scale": (int, float),
    "fresh_weights": bool,
    "training": dict,
    "budget": dict,
    "budget.share": (int, float),
    "budget.amount": (int, float),
    "budget.unit": str,
}
_UNITS = ("seconds", "steps", "gradients")
_OPTIONAL = ("description", "problem_options", "scale", "fresh_weights", "budget.share", "budget.amount")


@dataclass(frozen=True)
class Strategy:
    """One way to go on from a checkpoint: its name, kind, label for readers, and options."""

    name: str
    kind: str
    label: str
    options: dict[str, Any] = field(hash=False)

    @property
    def is_second_order(self) -> bool:
        """Whether the strategy, or a part of a chain, uses curvature."""
        kinds = [self.kind, *(part.get("strategy", {}).get("kind") for part in self.options.get("parts", []))]
        return any(kind in SECOND_ORDER for kind in kinds)

    @property
    def has_blocks(self) -> bool:
        """Whether the curvature is block-diagonal."""
        return self.options.get("blocks", "all") != "all"

    @property
    def judges_on_its_own_batch(self) -> bool:
        """Whether steps are judged on the batch that suggested them (`evaluation_batch_size` 0)."""
        return self.options.get("evaluation_batch_size") == 0


@dataclass(frozen=True)
class Plan:
    """What a study set out to do, from its resolved ``study.toml``; ``text`` is that file as written.

    ``unit`` is that of the budget: "seconds", "steps" or "gradients". ``budget_share`` is its share of the training,
    ``budget_amount`` an amount in the unit; one of them is None. ``curves`` says what is drawn over the budget: "mean"
    or "median". ``fresh_weights`` says whether runs from epoch 0 start from weights of their seed's own.
    """

    name: str
    description: str
    problem: str
    problem_version: int
    problem_options: dict[str, Any]
    checkpoints: tuple[int, ...]
    strategies: tuple[Strategy, ...]
    seeds: tuple[int, ...]
    unit: str
    budget_share: float | None
    budget_amount: float | None
    baseline: str
    target: str
    scale: float
    curves: str
    fresh_weights: bool
    training: dict[str, Any]
    text: str

    @property
    def is_initial(self) -> bool:
        """Whether all strategies start from the initialisation."""
        return self.checkpoints == (0,)

    def strategy(self, name: str) -> Strategy:
        """Return the strategy of a name."""
        return next(strategy for strategy in self.strategies if strategy.name == name)


def run_id(checkpoint_epoch: int, strategy: str, seed: int) -> str:
    """Return the name of a run's folder, such as ``checkpoint-0010_hf-512_seed-0``."""
    return f"checkpoint-{checkpoint_epoch:04d}_{strategy}_seed-{seed}"


def read_plan(path: Path) -> Plan:
    """Read ``study.toml``.

    Raises:
        FileNotFoundError: There is no such file.
        Damaged: It is damaged, or not of this version; the message names it and says what to do.
    """
    with open_regular(path) as file:
        content = file.read()
    try:
        text = content.decode("utf-8")
        table = tomllib.loads(text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else error
        raise Damaged(f"{path} is damaged ({what}); start the study anew in another folder") from error
    if wrong := _what_is_wrong(table):
        raise Damaged(f"{path} {wrong}: it is not the plan of a study of this version")
    return _plan(table, text)


def _what_is_wrong(table: dict[str, Any]) -> str:
    """What keeps a table from being a plan, nothing where it is one; names lead nowhere but to folders of runs."""
    for place, kinds in _KINDS_OF_VALUES.items():
        *parents, key = place.split(".")
        inner = table[parents[0]] if parents else table
        if key not in inner and place not in _OPTIONAL:
            return f"has no key {place!r}"
        if key in inner and (not isinstance(inner[key], kinds) or (kinds is not bool and isinstance(inner[key], bool))):
            return f"has {inner[key]!r} for {place!r}"
    for key in ("checkpoints", "seeds"):
        if not table[key] or any(type(n) is not int or not 0 <= n < 2**63 for n in table[key]):
            return f"has {table[key]!r} for {key!r}"
    for entry in table["strategies"]:
        if wrong := _what_is_wrong_with_a_strategy(entry):
            return wrong
    names = [entry["name"] for entry in table["strategies"]]
    known = {
        "baseline": names,
        "target": names,
        "curves": ("mean", "median"),
        "budget.unit": ("seconds", "steps", "gradients"),
    }
    for place, values in known.items():
        *parents, key = place.split(".")
        value = (table[parents[0]] if parents else table).get(key, values[0] if values else None)
        if value not in values:
            return f"has {value!r} for {place!r}"
    return ""


def _what_is_wrong_with_a_strategy(entry: Any) -> str:
    if not isinstance(entry, dict):
        return f"has {entry!r} as a strategy"
    for key in ("name", "kind"):
        if not isinstance(entry.get(key), str):
            return f"has a strategy with {entry.get(key)!r} for its {key}"
    if not re.fullmatch(NAME, entry["name"]) or entry["name"].endswith("\n"):
        return f"has a strategy with the name {entry['name']!r}, which names no folder of runs"
    parts = entry.get("parts", [])
    if not isinstance(parts, list) or not all(
        isinstance(p, dict) and isinstance(p.get("strategy"), dict) for p in parts
    ):
        return f"has a strategy {entry['name']!r} with {parts!r} for its parts"
    if not isinstance(entry.get("label", ""), str) or not isinstance(entry.get("options", {}), dict):
        return f"has a strategy {entry['name']!r} without a text as label or a table of options"
    return ""


def _plan(table: dict[str, Any], text: str) -> Plan:
    strategies = tuple(_read_strategy(entry) for entry in table["strategies"])
    names = [strategy.name for strategy in strategies]
    budget = table["budget"]
    baseline = table.get("baseline", names[0])
    return Plan(
        name=table["name"],
        description=table.get("description", ""),
        problem=table["problem"],
        problem_version=table["problem_version"],
        problem_options=table.get("problem_options", {}),
        checkpoints=tuple(table["checkpoints"]),
        strategies=strategies,
        seeds=tuple(table["seeds"]),
        unit=budget["unit"],
        budget_share=budget.get("share"),
        budget_amount=budget.get("amount"),
        baseline=baseline,
        target=table.get("target", "cosine" if "cosine" in names else baseline),
        scale=table.get("scale", 1.0),
        curves=table.get("curves", "mean"),
        fresh_weights=table.get("fresh_weights", False),
        training=table["training"],
        text=text,
    )


def _read_strategy(entry: dict[str, Any]) -> Strategy:
    """Options are a table of their own, further keys of the strategy, or both."""
    options = {key: value for key, value in entry.items() if key not in ("name", "kind", "label", "options")}
    options |= entry.get("options", {})
    return Strategy(entry["name"], entry["kind"], entry.get("label", entry["name"]), options)
