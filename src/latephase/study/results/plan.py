"""What a study set out to do, as its resolved ``study.toml`` says. Imports no torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from ...records import DamagedFile, ResultsError, read_toml
from ..outline import NAME, About, Outline, Training, with_defaults

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


class Plan(Outline, extra="ignore"):
    """What a study set out to do, from its resolved ``study.toml``, and what that of an earlier version leaves open.

    ``evaluations`` is how many a finished run has beside that of its start, None where the file does not say. ``text``
    is the file as written. ``sealed`` says whether the study's files carry checksums; those of earlier versions do not.
    """

    name: str
    problem_version: int = Field(ge=0)
    evaluations: int | None = Field(default=None, ge=1)  # pyright: ignore[reportIncompatibleVariableOverride]
    strategies: list[Strategy] = Field(min_length=1)
    text: str
    sealed: bool

    @field_validator("training", mode="before")
    @classmethod
    def _known_keys(cls, table: Any) -> Any:
        """Without those of another version."""
        known = Training.model_fields
        return {key: value for key, value in table.items() if key in known} if isinstance(table, dict) else table

    @property
    def unit(self) -> Literal["seconds", "steps", "gradients"]:
        """Of the budget."""
        return self.budget.unit

    @property
    def is_initial(self) -> bool:
        """Whether all strategies start from the initialisation."""
        return self.checkpoints == [0]

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
        table = with_defaults(toml.table)
        strategies = [_read_strategy(entry, table.get("kinds", {})) for entry in table["strategies"]]
        return Plan.model_validate(table | {"strategies": strategies, "text": toml.text, "sealed": toml.sealed})
    except KeyError as error:
        raise ResultsError(f"{path} has no key {error}: it is not the plan of a study of this version") from error
    except ValidationError as error:
        if missing := [detail["loc"][-1] for detail in error.errors() if detail["type"] == "missing"]:
            told = f"{path} has no key {missing[0]!r}: it is not the plan of a study of this version"
            raise ResultsError(told) from error
        raise DamagedFile(path, "; ".join(map(_wrong, error.errors()))) from error
    except (TypeError, AttributeError, ValueError) as error:  # a table where a list should be, and so on
        raise DamagedFile(path, str(error)) from error


def _wrong(detail: Mapping[str, Any]) -> str:
    """What is wrong with a plan, by the path of a key where that says it."""
    key = ".".join(map(str, detail["loc"]))
    return f"{key} cannot be what a study wrote" if key else detail["msg"].removeprefix("Value error, ")


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
