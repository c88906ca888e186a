"""The configuration of a study: TOML read by pydantic, with errors that name the key."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import Field, ValidationError, model_validator

from ..problems import Problem, get
from ..problems.registry import factory_of
from .outline import DEVICE, Budget, Outline, Table, Training, hint
from .strategies import REGISTRY, TABLES, StrategyConfig, in_words

STUDIES = Path(__file__).parent / "studies"


class Study(Outline):
    """A study: one training, and from chosen checkpoints every strategy with every seed under one budget."""

    jobs: int = Field(default=1, ge=1, description="runs at a time")
    threads: int = Field(default=1, ge=1, description="threads of each run")
    device: str = Field(default="cpu", pattern=DEVICE)
    clock: Literal["wall", "process"] = Field(
        default="wall", description="seconds that pass, or of the run's own processor time where a machine is shared"
    )
    strategies: list[StrategyConfig] = Field(min_length=1, description="at least one table [[strategies]]")

    @model_validator(mode="after")
    def _clock_fits(self) -> "Study":
        if self.clock == "process" and (self.device == "cuda" or self.threads > 1):
            raise ValueError(
                'clock: "process" adds up the time of all threads and knows nothing of a GPU: it goes with '
                'device = "cpu" and threads = 1'
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, table: Any) -> Any:
        """Equally spaced checkpoints where a number is given; the kinds are what they are."""
        if not isinstance(table, dict):
            return table
        table = dict(table)
        _check_kinds(table.pop("kinds", None))
        training, count = table.get("training"), table.get("checkpoints")
        epochs = training.get("epochs") if isinstance(training, dict) else None
        if type(count) is int and count >= 1 and type(epochs) is int and epochs >= count:
            table["checkpoints"] = [epochs * i // count for i in range(1, count + 1)]
        return table

    def toml(self) -> str:
        """The study as TOML, every default written out, and what its kinds of strategies are."""
        used = {each.kind for strategy in self.strategies for each in (strategy, *strategy.singles)}
        kinds = {kind: table.about.as_table() for kind, table in REGISTRY.items() if kind in used}
        return tomli_w.dumps(self.model_dump(exclude_none=True) | {"kinds": kinds})


def _check_kinds(given: Any) -> None:
    """What a resolved study says of its kinds is for its readers: here it must be what they are.

    Raises:
        ValueError: it is not.
    """
    known = {kind: table.about.as_table() for kind, table in REGISTRY.items()}
    if given is not None and not (isinstance(given, dict) and given.items() <= known.items()):
        raise ValueError("kinds: says what other kinds of strategies are than there are; leave this table out")


class ConfigError(ValueError):
    """A study's configuration is wrong; the message names file, key and remedy."""


def named_studies() -> list[str]:
    """Names of the studies that come with the package."""
    return sorted(path.stem for path in STUDIES.glob("*.toml") if "problems" not in read_toml(path))


def named_suites() -> list[str]:
    """Names of the suites, studies of several problems (`latephase.study.suite`), that come with the package."""
    return sorted(path.stem for path in STUDIES.glob("*.toml") if "problems" in read_toml(path))


def read_study(name_or_file: str) -> Study:
    """Read a study by its name, or from a TOML file, with the problem's training setting where none is given.

    A problem of the user's own is called for that; `study_table` reads the file and runs nothing.

    Raises:
        ConfigError: no such study, not TOML, an unknown problem, or keys and values that do not fit; all of them named.
    """
    return parse_study(*study_table(name_or_file))


def study_table(name_or_file: str) -> tuple[dict[str, Any], str]:
    """The table of a study by its name, or of a TOML file, and how errors call it; nothing of it is checked or run.

    Raises:
        ConfigError: no such study, or not TOML.
    """
    path = Path(name_or_file)
    if path.suffix != ".toml":
        path = STUDIES / f"{name_or_file}.toml"
        if not path.is_file():
            known, suites = named_studies(), named_suites()
            beside = f"suites: {', '.join(suites)}; " if suites else ""
            raise ConfigError(
                f"no study {name_or_file!r}{hint(name_or_file, known + suites)}; known studies: {', '.join(known)}; "
                f"{beside}a study of your own is a file FILE.toml"
            )
    return read_toml(path), str(path)


def read_toml(path: Path) -> dict[str, Any]:
    """The table of a TOML file.

    Raises:
        ConfigError: it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:  # the last: nested too deeply
        raise ConfigError(f"{path} is not TOML: {error}") from error


def parse_study(table: Mapping[str, Any], source: str, *, call: bool = True) -> Study:
    """Check a study's table; `source` names it in errors.

    Where `call` is false, a problem that is not latephase's is not called, and what it would say is a stand-in.

    Raises:
        ConfigError: as `read_study`.
    """
    table = dict(table)
    if "tune" in table:
        raise ConfigError(
            f"{source} has a table [tune]: latephase tune {source} --out DIR tunes it, DIR/best.toml is then a study"
        )
    name, options = table.get("problem"), table.get("problem_options", {})
    try:
        known = isinstance(name, str) and isinstance(options, dict) and (call or not factory_of(name))
        problem = get(table["problem"], **options) if known else None
    except ValueError as error:
        raise ConfigError(f"{source}: problem: {error}") from error
    if problem:
        table.setdefault("problem_version", problem.version)
        if table["problem_version"] != problem.version:
            raise ConfigError(
                f"{source}: problem_version is {table['problem_version']}, but {problem.name} is at {problem.version}; "
                "results of different versions do not compare"
            )
        table["training"] = _with_setting(table.get("training", {}), problem)
    else:  # not called, or none to call
        table = _with_unknowns(table)
    try:
        return Study.model_validate(table)
    except ValidationError as error:
        lines = [explain(detail) for detail in error.errors()]
        raise ConfigError("\n".join(f"{source}: {line}" for line in lines)) from error


def _with_setting(training: Any, problem: Problem) -> Any:
    if not isinstance(training, dict):
        return training
    setting = problem.training
    fields = ("epochs", "lr", "batch_size", "optimizer", "momentum")
    defaults = {key: getattr(setting, key) for key in fields if getattr(setting, key) is not None}
    return defaults | training


def _with_unknowns(table: dict[str, Any]) -> dict[str, Any]:
    """A table without a problem that may be called, with values in place of those that it would give."""
    checkpoints, training = table.get("checkpoints"), table.get("training", {})
    whole = [n for n in (checkpoints if isinstance(checkpoints, list) else [checkpoints]) if type(n) is int]
    unknown = {"epochs": max([1, *whole]), "lr": 1.0}
    return {"problem_version": 0} | table | {"training": unknown | training if isinstance(training, dict) else training}


def scaled(study: Study, scale: float) -> Study:
    """The study with fewer epochs, seeds and checkpoints.

    The numbers are multiplied by `scale` and rounded, seeds to no fewer than two where there were so many, the rest to
    no fewer than one; checkpoints are equally spaced again, the last one staying the last, the initialisation staying.

    Raises:
        ConfigError: a scale that is not above 0 and at most 1.
    """
    if not 0 < scale <= 1:
        raise ConfigError(f"scale must be above 0 and at most 1, got {scale:g}")
    epochs = max(1, round(scale * study.training.epochs))
    seeds = study.seeds[: max(min(2, len(study.seeds)), round(scale * len(study.seeds)))]
    later = [epoch for epoch in study.checkpoints if epoch]
    count = min(epochs, max(1, round(scale * len(later)))) if later else 0
    last = max(count, epochs * max(later, default=0) // study.training.epochs)
    every = max(1, round(scale * study.training.evaluate_every))
    training = study.training.model_copy(update={"epochs": epochs, "evaluate_every": every})
    checkpoints = [epoch for epoch in study.checkpoints if not epoch]
    checkpoints += [last * i // count for i in range(1, count + 1)]
    changes = {"scale": study.scale * scale, "seeds": seeds, "checkpoints": checkpoints, "training": training}
    return study.model_copy(update=changes)


def with_seconds(study: Study, seconds: float) -> Study:
    """The study with so many seconds as each run's budget.

    Raises:
        ConfigError: not a finite number above 0.
    """
    try:
        return study.model_copy(update={"budget": Budget(unit="seconds", amount=seconds)})
    except ValidationError as error:
        raise ConfigError(f"seconds must be a finite number above 0, got {seconds:g}") from error


def check_fit(study: Study, problem: Problem, rows: int) -> Study:
    """Fill in what of strategies depends on the training split, and check that their batches fit it.

    Raises:
        ConfigError: a batch is larger than the split, or the problem has not what a strategy asks of it.
    """
    if study.training.batch_size is not None and study.training.batch_size > rows:
        raise ConfigError(f"training.batch_size is {study.training.batch_size}, but {problem.name} has {rows} rows")
    try:
        return study.model_copy(update={"strategies": [s.fitted(problem, rows) for s in study.strategies]})
    except ValueError as error:
        raise ConfigError(str(error)) from error


def explain(detail: Mapping[str, Any], more: tuple[type[Table], ...] = ()) -> str:
    """One error of pydantic in words: the key's path, what is wrong, the key that may be meant (of `more` tables)."""
    return in_words(detail, (Study, Training, Budget, *TABLES, *more))
