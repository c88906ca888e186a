"""What a suite's folder says: its own file, and the studies in it. Imports no torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...records import DamagedFile, ResultsError, read_toml, refuse_links
from ..outline import NAME
from ..results import Results, load_results, read_training_status

SUITE_TOML = "suite.toml"
RESERVED = ("report",)
"""What no problem's folder is called: the suite's page lies there."""


@dataclass(frozen=True)
class Entry:
    """A problem of a suite, as its file names it.

    Attributes:
        folder: of its study.
        problem: its name.
        kind: what kind of problem it is, in the suite's words; may be empty.
        score: what it is compared by; None: the suite's, or the study's own measure.
    """

    folder: str
    problem: str
    kind: str
    score: str | None


@dataclass(frozen=True)
class SuitePlan:
    """What a suite set out to do; its studies say the rest."""

    root: Path
    name: str
    description: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Found:
    """A problem and what its study came to: its results, or why there are none to read."""

    entry: Entry
    results: Results | None
    trouble: str = ""


def is_suite(table: Mapping[str, Any]) -> bool:
    """Whether a TOML table is that of a suite, not of a study."""
    return "problems" in table


def holds_suite(directory: Path) -> bool:
    """Whether a folder is a suite's."""
    return (directory / SUITE_TOML).is_file()


def read_suite(directory: Path) -> SuitePlan:
    """Read `suite.toml`.

    Raises:
        FileNotFoundError: There is none.
        ResultsError: It is not as a suite wrote it, or links lead out of the folder.
    """
    path = directory / SUITE_TOML
    toml = read_toml(path)
    if not toml.sealed:
        raise DamagedFile(path, "it has no checksum in its last line: no suite wrote it, or it was cut")
    table = toml.table
    texts = [table.get("name"), table.get("description", ""), table.get("score", "")]
    problems = table.get("problems")
    if not all(isinstance(text, str) for text in texts) or not isinstance(problems, list):
        raise DamagedFile(path, "it is not what a suite writes")
    entries = tuple(_entry(each, table.get("score"), path) for each in problems)
    refuse_member_links(directory, [entry.folder for entry in entries])
    return SuitePlan(directory, table["name"], table.get("description", ""), entries)


def _entry(table: Any, score: str | None, path: Path) -> Entry:
    if not isinstance(table, dict):
        raise DamagedFile(path, f"a problem is {table!r:.60}")
    folder, name, kind = table.get("folder"), table.get("name"), table.get("kind", "")
    own = table.get("score", score)
    texts = all(isinstance(text, str) for text in (folder, name, kind)) and isinstance(own, str | None)
    if not texts or not re.fullmatch(NAME, str(folder)) or folder in RESERVED:
        raise DamagedFile(path, f"a problem is {table!r:.60}")
    return Entry(str(folder), str(name), str(kind), own)


def refuse_member_links(directory: Path, folders: list[str]) -> None:
    """Refuse a suite's folder in which links would lead out of it; each study looks into its own.

    Raises:
        DamagedFile: The folder of a problem or of the page is a link.
    """
    refuse_links(directory)
    for name in (*folders, *RESERVED):
        if (directory / name).is_symlink():
            raise DamagedFile(directory / name, "a link, and links are not followed; put a folder there")


def read_members(plan: SuitePlan) -> list[Found]:
    """Read the studies of a suite as far as they have come.

    Raises:
        ResultsError: No problem has been trained yet.
    """
    members = [_found(plan, entry) for entry in plan.entries]
    if not any(member.results for member in members):
        told = "; ".join(f"{member.entry.folder}: {member.trouble}" for member in members[:3])
        raise ResultsError(f"{plan.root}: no problem of this suite has come to results yet ({told})")
    return members


def _found(plan: SuitePlan, entry: Entry) -> Found:
    folder = plan.root / entry.folder
    if not (folder / "study.toml").exists():
        return Found(entry, None, "not begun")
    try:
        if read_training_status(folder / "training" / "status.json", sealed=True).get("status") != "finished":
            return Found(entry, None, "its training is not finished")
        results = load_results(folder)
    except (ResultsError, OSError) as error:
        return Found(entry, None, str(error))
    if results.plan.problem != entry.problem:
        return Found(entry, None, f"{folder} holds a study of {results.plan.problem}, not of {entry.problem}")
    return Found(entry, results)
