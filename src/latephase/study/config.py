"""The configuration of a study: TOML read by pydantic, with errors that name the key."""

import difflib
import inspect
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..optim import HessianFree
from ..problems import Problem, get

STUDIES = Path(__file__).parent / "studies"
NOT_IN_TOML = ("params", "preconditioner", "curvature_dtype")
NAME = r"^[A-Za-z0-9][A-Za-z0-9.-]*$"


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Training(_Table):
    """The first-order training that makes the checkpoints; what is left out comes from the problem."""

    epochs: int = Field(ge=1)
    lr: float = Field(gt=0, allow_inf_nan=False)
    batch_size: int = Field(ge=1)
    seed: int = Field(default=0, ge=0)
    save_every: int = Field(ge=1, description="epochs between checkpoints")
    evaluate_every: int = Field(default=1, ge=1, description="epochs between evaluations")

    @model_validator(mode="after")
    def _spacing(self) -> "Training":
        if self.epochs % self.save_every or self.save_every % self.evaluate_every:
            raise ValueError(
                f"epochs ({self.epochs}) must be a multiple of save_every ({self.save_every}), and that of "
                f"evaluate_every ({self.evaluate_every})"
            )
        return self


class SGD(_Table):
    """Go on with SGD under a learning-rate schedule (Tatzel et al. 2022, Section 3.2)."""

    kind: Literal["sgd"]
    name: str = Field(pattern=NAME)
    label: str
    schedule: Literal["constant", "tenth", "cosine", "plateau"]


class HessianFreeSteps(_Table):
    """Go on with Hessian-free steps on batches of `batch_size`, judged on disjoint evaluation batches."""

    kind: Literal["hessian_free"]
    name: str = Field(pattern=NAME)
    label: str
    batch_size: int = Field(ge=1)
    evaluation_batch_size: int | None = Field(default=None, ge=1)
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("options")
    @classmethod
    def _known(cls, options: dict[str, Any]) -> dict[str, Any]:
        known = [name for name in inspect.signature(HessianFree).parameters if name not in NOT_IN_TOML]
        for name in options:
            if name not in known:
                raise ValueError(f"{name!r} is no option of HessianFree{_hint(name, known)}")
        HessianFree([torch.zeros(1, requires_grad=True)], **options)  # checks the values
        return options


StrategyConfig = Annotated[SGD | HessianFreeSteps, Field(discriminator="kind")]


class Study(_Table):
    """A study: one training, and from chosen checkpoints every strategy with every seed under one budget."""

    name: str = Field(pattern=NAME)
    description: str = ""
    problem: str
    problem_version: int
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    jobs: int = Field(default=1, ge=1, description="runs at a time")
    threads: int = Field(default=1, ge=1, description="threads of each run")
    budget_share: float = Field(default=0.1, gt=0, allow_inf_nan=False, description="budget over training time")
    evaluations: int = Field(default=16, ge=1, description="evaluations per budget, equally spaced in seconds")
    checkpoints: list[int] = Field(min_length=1, description="epochs of the checkpoints that strategies start from")
    training: Training
    strategies: list[StrategyConfig] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> "Study":
        saved = range(self.training.save_every, self.training.epochs + 1, self.training.save_every)
        for epoch in self.checkpoints:
            if epoch not in saved:
                raise ValueError(f"checkpoints: epoch {epoch} is none of the saved ones, {', '.join(map(str, saved))}")
        for what, values in (
            ("checkpoints", self.checkpoints),
            ("seeds", self.seeds),
            ("strategies", [strategy.name for strategy in self.strategies]),
        ):
            if len(set(values)) != len(values):
                raise ValueError(f"{what} must differ from each other, got {', '.join(map(str, values))}")
        return self

    def toml(self) -> str:
        """The study as TOML, every default written out."""
        return tomli_w.dumps(self.model_dump(exclude_none=True))


class ConfigError(ValueError):
    """A study's configuration is wrong; the message names file, key and remedy."""


def named_studies() -> list[str]:
    """Names of the studies that come with the package."""
    return sorted(path.stem for path in STUDIES.glob("*.toml"))


def read_study(name_or_file: str) -> Study:
    """Read a study by its name, or from a TOML file, with the problem's training setting where none is given.

    Raises:
        ConfigError: no such study, not TOML, an unknown problem, or keys and values that do not fit; all of them named.
    """
    path = Path(name_or_file)
    if path.suffix != ".toml":
        path = STUDIES / f"{name_or_file}.toml"
        if not path.is_file():
            known = named_studies()
            raise ConfigError(
                f"no study {name_or_file!r}{_hint(name_or_file, known)}; known studies: {', '.join(known)}; "
                "a study of your own is a file FILE.toml"
            )
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    return parse_study(table, str(path))


def parse_study(table: Mapping[str, Any], source: str) -> Study:
    """Check a study's table; `source` names it in errors.

    Raises:
        ConfigError: as `read_study`.
    """
    table = dict(table)
    try:
        problem = get(table["problem"]) if isinstance(table.get("problem"), str) else None
    except ValueError as error:
        raise ConfigError(f"{source}: problem: {error}") from error
    if problem:
        table.setdefault("problem_version", problem.version)
        if table["problem_version"] != problem.version:
            raise ConfigError(
                f"{source}: problem_version is {table['problem_version']}, but {problem.name} is at {problem.version}; "
                "results of different versions do not compare"
            )
    training = table.get("training", {})
    if problem and isinstance(training, dict):
        setting = problem.training
        defaults = {"epochs": setting.epochs, "lr": setting.lr, "batch_size": setting.batch_size}
        table["training"] = defaults | training
    try:
        return Study.model_validate(table)
    except ValidationError as error:
        lines = [_explain(detail) for detail in error.errors()]
        raise ConfigError("\n".join(f"{source}: {line}" for line in lines)) from error


def check_fit(study: Study, problem: Problem, rows: int) -> Study:
    """Fill in evaluation batch sizes and check that every strategy's batches fit the training split.

    The evaluation batch is 1,024 as in the paper, a quarter of the training split where that is smaller.

    Raises:
        ConfigError: a batch is larger than the split.
    """
    if study.training.batch_size > rows:
        raise ConfigError(f"training.batch_size is {study.training.batch_size}, but {problem.name} has {rows} rows")
    strategies = []
    for strategy in study.strategies:
        if isinstance(strategy, HessianFreeSteps):
            size = strategy.evaluation_batch_size or min(1024, rows // 4)
            strategy = strategy.model_copy(update={"evaluation_batch_size": size})
            if strategy.batch_size + size > rows:
                raise ConfigError(
                    f"strategy {strategy.name}: batch_size {strategy.batch_size} and the disjoint evaluation batch of "
                    f"{size} exceed the {rows} training rows of {problem.name}"
                )
        strategies.append(strategy)
    return study.model_copy(update={"strategies": strategies})


def _explain(detail: Mapping[str, Any]) -> str:
    """One error of pydantic in words: the key's path, what is wrong, the key that may be meant."""
    kinds = {"sgd", "hessian_free"}
    path = [str(part) for part in detail["loc"] if part not in kinds]
    key = ".".join(path)
    if detail["type"] == "extra_forbidden":
        known = {name for table in (Study, Training, SGD, HessianFreeSteps) for name in table.model_fields}
        return f"unknown key {key}{_hint(path[-1], sorted(known))}"
    if detail["type"] == "missing":
        return f"missing key {key}"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" if key else message


def _hint(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
