"""What a study set out to do, as its resolved ``study.toml`` says. Imports no torch."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...records import DamagedFile, ResultsError, Toml, read_toml
from ..outline import NAME, About
from .measures import UNITS
from .run_files import is_count, is_number

EARLIER = {
    "first_order": About("first order"),
    "hessian_free": About("Hessian-free", second_order=True, has_rate=False),
    "adamqlr": About("AdamQLR", second_order=True),
    "sgdqlr": About("SGDQLR", second_order=True),
    "kfac": About("K-FAC", second_order=True),
    "lbfgs": About("L-BFGS", second_order=True, has_rate=False),
    "custom": About("your own"),
}
"""The kinds of studies that do not say in `kinds` what they are: those of earlier versions. None is added here."""


@dataclass(frozen=True)
class Strategy:
    """One way to go on from a checkpoint: its name, kind, label for readers, and options.

    ``about`` says what its kind is, and what those of its parts are, where it is a chain.
    """

    name: str
    kind: str
    label: str
    options: dict[str, Any] = field(hash=False)
    about: dict[str, About] = field(hash=False)

    @property
    def title(self) -> str:
        """What the page calls its kind."""
        return self.about[self.kind].title

    @property
    def is_second_order(self) -> bool:
        """Whether the strategy, or a part of a chain, uses curvature."""
        return any(about.second_order for about in self.about.values())

    @property
    def has_rate(self) -> bool:
        """Whether the learning rate is worth a look, of all parts of a chain."""
        return all(about.has_rate for about in self.about.values())

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
    ``evaluations`` is how many a finished run has beside that of its start, None where the file does not say.
    ``sealed`` says whether the study's files carry checksums; those of earlier versions do not.
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
    evaluations: int | None
    baseline: str
    target: str
    scale: float
    curves: str
    fresh_weights: bool
    training: dict[str, Any]
    text: str
    sealed: bool

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
        ResultsError: It is damaged, or not of this version; the message names it and says what to do.
    """
    toml = read_toml(path)
    try:
        plan = _plan(toml)
    except KeyError as error:
        raise ResultsError(f"{path} has no key {error}: it is not the plan of a study of this version") from error
    except (TypeError, AttributeError, ValueError) as error:  # a table where a list should be, and so on
        raise DamagedFile(path, str(error)) from error
    _check(plan, path)
    return plan


def _plan(toml: Toml) -> Plan:
    table = toml.table
    strategies = tuple(_read_strategy(entry, table.get("kinds", {})) for entry in table["strategies"])
    names = [strategy.name for strategy in strategies]
    budget = table["budget"]
    baseline = table.get("baseline", names[0] if names else "")
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
        evaluations=table.get("evaluations"),
        baseline=baseline,
        target=table.get("target", "cosine" if "cosine" in names else baseline),
        scale=table.get("scale", 1.0),
        curves=table.get("curves", "mean"),
        fresh_weights=table.get("fresh_weights", False),
        training=table["training"],
        text=toml.text,
        sealed=toml.sealed,
    )


def _check(plan: Plan, path: Path) -> None:
    """Check that values are of the kinds that readers rely on, and name no files outside the study's folder.

    Raises:
        DamagedFile: They are not.
    """
    names = [strategy.name for strategy in plan.strategies]
    amounts = [amount for amount in (plan.budget_share, plan.budget_amount) if amount is not None]
    right = {
        "name": isinstance(plan.name, str),
        "description": isinstance(plan.description, str),
        "problem": isinstance(plan.problem, str),
        "problem_version": is_count(plan.problem_version),
        "problem_options": isinstance(plan.problem_options, dict),
        "checkpoints": bool(plan.checkpoints) and _are_different(plan.checkpoints),
        "seeds": bool(plan.seeds) and _are_different(plan.seeds),
        "strategies": bool(names) and len(set(names)) == len(names),
        "budget.unit": plan.unit in UNITS,
        "budget": len(amounts) == 1 and is_number(amounts[0], 0.0),
        "evaluations": plan.evaluations is None or (is_count(plan.evaluations) and plan.evaluations > 0),
        "baseline": plan.baseline in names,
        "target": plan.target in names,
        "scale": is_number(plan.scale, 0.0),
        "curves": plan.curves in ("mean", "median"),
        "fresh_weights": isinstance(plan.fresh_weights, bool),
        "training": isinstance(plan.training, dict) and is_count(plan.training.get("epochs", 0)),
    }
    if wrong := [key for key, is_right in right.items() if not is_right]:
        raise DamagedFile(path, f"{', '.join(wrong)} cannot be what a study wrote")


def _are_different(values: tuple[Any, ...]) -> bool:
    return all(map(is_count, values)) and len(set(values)) == len(values)


def _read_strategy(entry: dict[str, Any], kinds: dict[str, Any]) -> Strategy:
    """Options are a table of their own, further keys of the strategy, or both."""
    name, kind, label = entry["name"], entry["kind"], entry.get("label", entry["name"])
    if not all(isinstance(text, str) for text in (name, kind, label)) or not re.fullmatch(NAME, name):
        raise ValueError(f"no strategy is called {name!r:.60}")
    options = {key: value for key, value in entry.items() if key not in ("name", "kind", "label", "options")}
    options |= entry.get("options", {})
    if not isinstance(options.get("parts", []), list):
        raise ValueError(f"parts of {name} is no list")
    used = [kind, *(str(part.get("strategy", {}).get("kind")) for part in options.get("parts", []))]
    return Strategy(name, kind, label, options, {each: _about(each, kinds) for each in used})


def _about(kind: str, kinds: dict[str, Any]) -> About:
    """What a kind is, as the study says; as it was in earlier versions, where it says nothing."""
    if kind not in kinds:
        return EARLIER.get(kind, About(kind.replace("_", " ")))
    table = kinds[kind]
    about = About(table["title"], table["second_order"], table["has_rate"])
    if list(map(type, about[:3])) != [str, bool, bool]:
        raise ValueError(f"kinds.{kind:.60} cannot be what a study wrote")
    return about
