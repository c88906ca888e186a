"""A suite from its configuration to its page: every problem's study is held, and one pool performs all their runs."""

import contextlib
from itertools import zip_longest
from pathlib import Path

from filelock import FileLock

from ...records import DamagedFile, ResultsError, read_toml, sealed_toml, write_text_atomic
from ..config import ConfigError
from ..page import write_report
from ..performing import PlannedRun, StudyError, StudyProgress, held, in_words, perform, resolve, runs_of
from .config import Suite
from .page import write_suite_report
from .reading import SUITE_TOML, refuse_member_links


def resolve_suite(suite: Suite) -> Suite:
    """The suite with everything filled in that depends on the data and the machine.

    Raises:
        ConfigError: as `latephase.study.performing.resolve`, with the problem's name.
        DataError: data is missing and cannot be downloaded.
    """
    members = []
    for member in suite.members:
        try:
            members.append(member._replace(study=resolve(member.study)))
        except ConfigError as error:
            raise ConfigError(f"problems.{member.folder}: {error}") from error
    return suite._replace(members=members)


def conduct_suite(
    suite: Suite, directory: Path, progress: StudyProgress, executor: str = "local", shard: tuple[int, int] = (1, 1)
) -> tuple[Path, list[str]]:
    """Run a suite, or what is left of it, and write its page and those of its studies.

    The trainings come first, one after the other. Then the runs of all problems go through one pool, those with the
    first seed of every problem before those with the second: a suite that is stopped half-way has something of each.

    Args:
        suite: the resolved suite.
        directory: its folder; every problem's study is a folder in it.
        progress: told what is running.
        executor: "local" or "ray".
        shard: (i, N): perform the i-th of N parts of each study's runs, the others being other processes' work.

    Returns:
        The path of the page, and a line for each run that broke or problem whose training died.

    Raises:
        ConfigError: the folder holds another suite, or another process works on it.
        DamagedFile: links lead out of the folder.
        StudyError: the system refused something, such as room on the disk.
        ExecutorError: the executor is not installed.
        ResultsError: no problem came to results.
    """
    refuse_member_links(directory, [member.folder for member in suite.members])
    with in_words():
        directory.mkdir(parents=True, exist_ok=True)
        with FileLock(directory / ".lock", timeout=10.0):  # of several parts one after the other
            claim_suite(suite, directory)
        with contextlib.ExitStack() as stack:
            by_study, broken = [], []
            for number, member in enumerate(suite.members, start=1):
                progress.note(f"{member.folder}, problem {number} of {len(suite.members)}")
                try:
                    shared = stack.enter_context(held(member.study, directory / member.folder, progress, shard))
                except StudyError as error:  # of this problem's training: the others go on
                    broken.append(f"{member.folder}: {error}")
                    progress.note(broken[-1])
                    continue
                by_study.append([(shared, key) for key in runs_of(member.study, shard)])
            broken += perform(interleaved(by_study), progress, executor)
            for runs in by_study:
                with contextlib.suppress(ResultsError):  # which the suite's page says
                    write_report(runs[0][0].directory)
            return write_suite_report(directory), broken


def interleaved(by_study: list[list[PlannedRun]]) -> list[PlannedRun]:
    """The runs of several studies: with the first seed of every study, then with the second; else in their order."""
    by_seed = []
    for runs in by_study:
        seeds = dict.fromkeys(key.seed for _, key in runs)
        by_seed.append([[run for run in runs if run[1].seed == seed] for seed in seeds])
    return [run for same in zip_longest(*by_seed, fillvalue=[]) for runs in same for run in runs]


def claim_suite(suite: Suite, directory: Path) -> None:
    """Write the suite's file into its folder, unless something else is there.

    Whether a problem's study may go on is that study's to judge: problems may be added to a suite that has run.

    Raises:
        ConfigError: the folder holds another suite, a study, or something else.
    """
    path = directory / SUITE_TOML
    if (directory / "study.toml").exists():
        raise ConfigError(f"{directory} holds a study, and not a suite; choose another folder with --out")
    if path.is_symlink() or path.exists():
        try:
            toml = read_toml(path)
        except DamagedFile as error:
            raise ConfigError(f"{error}; restore it, or choose another folder with --out") from error
        if not toml.sealed or toml.table.get("name") != suite.name:
            whose = f"is of {toml.table.get('name')!r}" if toml.sealed else "was not written by a suite"
            raise ConfigError(f"{path} {whose}, and this is {suite.name!r}; choose another folder with --out")
    elif any(not entry.name.startswith(".") for entry in directory.iterdir()):
        raise ConfigError(
            f"{directory} is not empty and holds no suite ({SUITE_TOML}); choose another folder with --out"
        )
    write_text_atomic(path, sealed_toml(suite.toml()))
