"""The configuration of a suite: a study's TOML with `problems` in place of `problem`, taken apart into studies."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tomli_w

from ...problems import get
from ..config import ConfigError, Study, parse_study
from ..outline import NAME, hint
from .reading import RESERVED, SUITE_TOML, is_suite

OF_THE_SUITE = ("name", "problem", "jobs", "threads", "device")
"""Keys of a study that a problem of a suite does not override: one pool of processes performs all runs."""
OF_A_PROBLEM = ("name", "folder", "kind", "score")
"""Keys of a problem's table beside those of the study that it overrides."""
Change = Callable[[Study], Study]


class Member(NamedTuple):
    """A problem of a suite.

    Attributes:
        folder: of its study, in the suite's.
        study: its study, as it would be in a file of its own.
        table: that study's table, as it was put together.
    """

    folder: str
    study: Study
    table: dict[str, Any]


class Suite(NamedTuple):
    """Several problems with the same strategies.

    Attributes:
        name: as on the page.
        members: the problems' studies, in order.
        table: the suite's own table, a table for each problem.
    """

    name: str
    members: list[Member]
    table: dict[str, Any]

    def toml(self) -> str:
        """The suite as TOML; each problem's study, with its defaults, is in its own folder."""
        return tomli_w.dumps(self.table)

    def changed(self, change: Change) -> "Suite":
        """The suite with every study changed in the same way, as by `latephase.study.config.scaled`."""
        return self._replace(members=[member._replace(study=change(member.study)) for member in self.members])


def member_tables(table: Mapping[str, Any], source: str) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Take a suite's table apart; nothing of a problem's is called or checked.

    Returns:
        For each problem: folder, the table of its study, and its own table in the suite.

    Raises:
        ConfigError: `problems` is not what it should be; names the entry and the key.
    """
    problems = table["problems"]
    if "problem" in table:
        raise ConfigError(f"{source}: give problem, of a study, or problems, of a suite, not both")
    if not isinstance(problems, list) or not problems:
        raise ConfigError(f"{source}: problems must be a list of names and tables, such as ['digits', {{name = ...}}]")
    common = {key: value for key, value in table.items() if key not in ("problems", "score")}
    found: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {}
    for number, entry in enumerate(problems):
        own = {"name": entry} if isinstance(entry, str) else entry
        if not isinstance(own, dict) or not isinstance(own.get("name"), str):
            raise ConfigError(f"{source}: problems.{number}: give a problem's name, or a table with name")
        folder = own.get("folder", own["name"].rpartition(":")[2])
        _check_entry(own, folder, f"{source}: problems.{folder}")
        if folder in found:
            raise ConfigError(
                f"{source}: problems: {folder!r} is there twice; give one of them a folder of its own: "
                f"{{ name = {own['name']!r}, folder = ... }}"
            )
        changes = {key: value for key, value in own.items() if key not in OF_A_PROBLEM}
        merged = _merged(common, changes, f"{source}: problems.{folder}")
        merged |= {"name": f"{table.get('name', 'suite')}-{folder}", "problem": own["name"]}
        found[folder] = (folder, merged, own | {"folder": folder})
    return list(found.values())


def _check_entry(own: dict[str, Any], folder: Any, where: str) -> None:
    if not isinstance(folder, str) or not re.fullmatch(NAME, folder) or folder in RESERVED:
        raise ConfigError(f"{where}: folder must be letters, digits, dots and hyphens, and not {' or '.join(RESERVED)}")
    known = [key for key in Study.model_fields if key not in OF_THE_SUITE]
    for key in own:
        if key in OF_THE_SUITE and key != "name":
            raise ConfigError(f"{where}.{key}: it is the same for all problems; give it beside problems")
        if key not in (*known, *OF_A_PROBLEM):
            raise ConfigError(f"{where}: unknown key {key}{hint(key, [*known, *OF_A_PROBLEM])}")
    for key in ("kind", "score"):
        if not isinstance(own.get(key, ""), str):
            raise ConfigError(f"{where}.{key} must be a text, got {own[key]!r}")


def _merged(common: Mapping[str, Any], changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The suite's keys with a problem's in their place; tables are merged, strategies by their names.

    A budget's share and amount stand for each other: the problem's takes the place of the suite's.
    """
    merged = dict(common)
    for key, value in changes.items():
        before = merged.get(key)
        if key == "strategies":
            merged[key] = _merged_strategies(before, value, where)
        elif isinstance(before, dict) and isinstance(value, dict):
            either = {"share", "amount"} if key == "budget" and {"share", "amount"} & value.keys() else set()
            merged[key] = {name: each for name, each in before.items() if name not in either} | value
        else:
            merged[key] = value
    return merged


def _merged_strategies(common: Any, changes: Any, where: str) -> list[Any]:
    strategies = list(common) if isinstance(common, list) else []
    names = [each.get("name") if isinstance(each, dict) else None for each in strategies]
    for change in changes if isinstance(changes, list) else [changes]:
        name = change.get("name") if isinstance(change, dict) else None
        if name not in names:
            known = [each for each in names if isinstance(each, str)]
            raise ConfigError(
                f"{where}.strategies: the suite has no strategy {name!r}{hint(str(name), known)}; a problem can change "
                "keys of the suite's strategies, by their names"
            )
        place = names.index(name)
        strategies[place] = _merged(strategies[place], change, where)
    return strategies


def parse_suite(table: Mapping[str, Any], source: str, *, call: bool = True) -> Suite:
    """Check a suite's table; `source` names it in errors.

    Args:
        table: as it was read; `is_suite` says that it is one.
        source: what errors call it.
        call: whether problems that are not latephase's are called; what those would say is a stand-in otherwise.

    Raises:
        ConfigError: an unknown problem or key, a value that does not fit, or a score that a problem does not measure.
    """
    assert is_suite(table)
    name, score = table.get("name"), table.get("score")
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        raise ConfigError(f"{source}: name must be a text of letters, digits, dots and hyphens, got {name!r}")
    if not isinstance(score, str | None) or not isinstance(table.get("description", ""), str):
        raise ConfigError(f"{source}: score and description must be texts")
    members, entries = [], []
    for folder, own, entry in member_tables(table, source):
        where = f"{source}: problems.{folder}"
        study = parse_study(own, where, call=call)
        if call and (wanted := entry.get("score", score)) is not None:
            _check_score(study, wanted, where)
        members.append(Member(folder, study, own))
        entries.append(entry)
    return Suite(name, members, {**table, "problems": entries})


def _check_score(study: Study, score: str, where: str) -> None:
    splits = ("train", "valid", "test")
    metrics = get(study.problem, **study.problem_options).metrics
    known = [f"{split}_loss" for split in splits]
    known += [f"{split}_{m.name}" for m in metrics for split in splits if m.on_train or split != "train"]
    if score not in known:
        raise ConfigError(f"{where}: score {score!r} is not measured{hint(score, known)}; there are {', '.join(known)}")


__all__ = ["SUITE_TOML", "Member", "Suite", "is_suite", "member_tables", "parse_suite"]
