"""The tables of a study's strategies: what each kind takes, checked when the study is read."""

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from ...optim import KFAC, SGDQLR, AdamQLR, HessianFree, QuadraticOptions, in_a_table, is_former
from ..results import NAME as NAME_ALONE

NOT_IN_TOML = ("params",)
NAME = f"^{NAME_ALONE}$"
FACTORY = r"^[\w.]+:\w+$"
DEVICE = r"^(cpu|cuda)$"
SCHEDULES = ("constant", "tenth", "cosine", "plateau", "averaging")


class Table(BaseModel):
    """A table of the configuration: unknown keys are errors, values are not converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Strategy(Table):
    name: str = Field(pattern=NAME)
    label: str


class FirstOrder(_Strategy):
    """Go on with a first-order optimizer under a learning-rate schedule (Tatzel et al. 2022, Section 3.2).

    Schedules: "constant"; "tenth", a tenth of the rate; "cosine", to zero over the budget; "plateau", torch's
    ReduceLROnPlateau with a patience such that three reductions fit; "averaging", the constant rate with the average of
    the weights since the checkpoint evaluated (`torch.optim.swa_utils`), batch norm's statistics renewed on the clock.
    """

    kind: Literal["first_order"]
    schedule: Literal["constant", "tenth", "cosine", "plateau", "averaging"]
    optimizer: Literal["training", "sgd", "adam"] = Field(
        default="training", description="the training's own, its state included, or a fresh one"
    )
    lr: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="default: the training's")
    batch_size: int | None = Field(default=None, ge=1, description="default: the training's")
    options: dict[str, Any] = Field(default_factory=dict, description="of torch's optimizer, beside the rate")

    @model_validator(mode="after")
    def _known(self) -> "FirstOrder":
        if self.options and self.optimizer == "training":
            raise ValueError(
                'options go with a fresh optimizer; give optimizer = "sgd" or "adam": the training\'s goes on as it is'
            )
        if "lr" in self.options:
            raise ValueError("options.lr: give lr beside the options")
        if self.optimizer == "adam":
            _checked(torch.optim.Adam, self.options)
        elif self.optimizer == "sgd":
            _checked(torch.optim.SGD, {"momentum": 0.9} | self.options)  # the training's, where none is given
        return self


class HessianFreeSteps(_Strategy):
    """Go on with Hessian-free steps on batches of `batch_size`, judged on evaluation batches."""

    kind: Literal["hessian_free"]
    batch_size: int | None = Field(default=None, ge=1, description="default: all rows, which also judge the step")
    evaluation_batch_size: int | None = Field(
        default=None, ge=0, description="default: 1,024 or a quarter of the split; 0: judged on the batch itself"
    )
    curvature_batch_size: int | None = Field(default=None, ge=1, description="rows of the batch; default: all of it")
    preset: Literal["default", "late_phase", "fixed_rate"] = "default"
    blocks: Literal["all", "layerwise"] | list[str] = Field(
        default="all", description="of the curvature: one, one for each layer, or the names of submodules"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="parts are tables, such as options.solver")

    @field_validator("options")
    @classmethod
    def _known(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        return _checked(HessianFree, options, info.data.get("preset", "default"))

    @model_validator(mode="after")
    def _part(self) -> "HessianFreeSteps":
        if self.batch_size is None and self.evaluation_batch_size:
            raise ValueError("evaluation_batch_size: no rows are left for it where batch_size is not given")
        if self.curvature_batch_size and self.batch_size and self.curvature_batch_size > self.batch_size:
            raise ValueError(
                f"curvature_batch_size {self.curvature_batch_size} exceeds the batch of {self.batch_size} that it is "
                "drawn from"
            )
        return self


QUADRATIC_RATES = {"adamqlr": AdamQLR, "sgdqlr": SGDQLR, "kfac": KFAC}
"""Optimizers whose learning rate minimises a quadratic model."""


class QuadraticRate(_Strategy):
    """Go on with AdamQLR or SGDQLR (Clarke and Hernandez-Lobato 2024), or K-FAC, on batches of `batch_size`."""

    kind: Literal["adamqlr", "sgdqlr", "kfac"]
    batch_size: int | None = Field(default=None, ge=1, description="default: all rows")
    preset: str = Field(default="default", description='a named setting, such as "undamped"')
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _known(self) -> "QuadraticRate":
        optimizer = QUADRATIC_RATES[self.kind]
        known = ["default", *(name for name, value in vars(optimizer).items() if isinstance(value, classmethod))]
        if self.preset not in known:
            near = hint(self.preset, known)
            raise ValueError(f"preset: {optimizer.__name__} has no {self.preset!r}{near}; known: {', '.join(known)}")
        _checked(optimizer, self.options, self.preset)
        return self

    def start(self, parameters: Iterable[torch.nn.Parameter]) -> AdamQLR | SGDQLR | KFAC:
        """The optimizer."""
        return made_by(QUADRATIC_RATES[self.kind], self.preset)(parameters, **self.options)


class LBFGS(_Strategy):
    """Go on with `torch.optim.LBFGS`, a fresh batch for each of its steps."""

    kind: Literal["lbfgs"]
    batch_size: int | None = Field(default=None, ge=1, description="default: all rows")
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("options")
    @classmethod
    def _known(cls, options: dict[str, Any]) -> dict[str, Any]:
        return _checked(torch.optim.LBFGS, options)


class Custom(_Strategy):
    """A strategy of the user's own: PACKAGE.MODULE:FACTORY, called with a `StrategyContext` and the options."""

    kind: Literal["custom"]
    factory: str = Field(pattern=FACTORY)
    options: dict[str, Any] = Field(default_factory=dict)


SingleStrategy = Annotated[FirstOrder | HessianFreeSteps | QuadraticRate | LBFGS | Custom, Field(discriminator="kind")]


class Part(Table):
    """A strategy of a chain, and the share of the budget after which the next one takes over."""

    until: float = Field(gt=0, le=1, description="share of the budget")
    strategy: SingleStrategy


class Chain(_Strategy):
    """One strategy after the other, each starting where the one before it ended."""

    kind: Literal["chain"]
    parts: list[Part] = Field(min_length=2)

    @model_validator(mode="after")
    def _in_order(self) -> "Chain":
        ends = [part.until for part in self.parts]
        if ends != sorted(set(ends)) or ends[-1] != 1:
            raise ValueError(f"parts: until must rise and end with 1.0, got {', '.join(map(str, ends))}")
        return self


StrategyConfig = Annotated[
    FirstOrder | HessianFreeSteps | QuadraticRate | LBFGS | Custom | Chain, Field(discriminator="kind")
]
KINDS = ("first_order", "hessian_free", "adamqlr", "sgdqlr", "kfac", "lbfgs", "custom", "chain")
TABLES: tuple[type[Table], ...] = (FirstOrder, HessianFreeSteps, QuadraticRate, LBFGS, Custom, Chain, Part)


def singles(strategy: Any) -> list[Any]:
    """The strategies that a strategy consists of: itself, or a chain's parts."""
    return [part.strategy for part in strategy.parts] if isinstance(strategy, Chain) else [strategy]


def made_by(optimizer: type, preset: str) -> Callable[..., Any]:
    """What makes an optimizer: the class, or a named setting of it."""
    return optimizer if preset == "default" else getattr(optimizer, preset)


def _checked(optimizer: Any, options: dict[str, Any], preset: str = "default") -> dict[str, Any]:
    """Options of an optimizer beside a preset's, names and values tried out."""
    parameters = inspect.signature(optimizer).parameters.values()
    known = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in NOT_IN_TOML]
    if optimizer in (AdamQLR, SGDQLR):
        known += QuadraticOptions.__annotations__
    for name, value in options.items():
        if optimizer is HessianFree and is_former(name):
            raise ValueError(f"options.{name} is {in_a_table(name, value)}")
        if name not in known:
            raise ValueError(f"{name!r} is no option of {optimizer.__name__}{hint(name, known)}")
    try:
        made_by(optimizer, preset)([torch.zeros(1, requires_grad=True)], **options)
    except ValueError:
        raise
    except Exception as error:  # of torch's optimizers, for values of the wrong kind
        raise ValueError(f"options: {optimizer.__name__} does not take them: {error}") from error
    return options


def hint(name: str, known: list[str]) -> str:
    """The known name that may be meant, in words."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


_MISSING = {
    "problem": "a name that `latephase problems` lists, or PACKAGE.MODULE:FACTORY of your own",
    "name": "letters, digits, dots and hyphens, as files are called by it",
    "label": "what it is called in tables and figures",
    "seeds": "a list, such as [0, 1, 2]",
    "checkpoints": "epochs that strategies start from, or how many of them",
    "strategies": "at least one table [[strategies]]",
    "factory": "PACKAGE.MODULE:FACTORY of your own",
    "schedule": ", ".join(SCHEDULES),
}
"""What belongs at a key, said where it is missing."""
_PATTERNS = {
    NAME: "must begin with a letter or digit and hold letters, digits, dots and hyphens only: files are called by it",
    FACTORY: "must be PACKAGE.MODULE:FACTORY",
    DEVICE: "must be cpu or cuda",
}


def in_words(detail: Mapping[str, Any], tables: Iterable[type[Table]]) -> str:
    """One error of pydantic in words: the key's path, what is wrong and what may be meant, by the keys of `tables`."""
    *parents, last = detail["loc"] or ("",)
    path = [str(part) for part in parents if part not in KINDS]  # pydantic names the kind of a strategy, too
    path += [str(last)] if detail["type"] == "extra_forbidden" or last not in KINDS else []
    key, given, kind = ".".join(part for part in path if part), detail.get("input"), detail["type"]
    if kind == "extra_forbidden":
        known = {name for table in tables for name in table.model_fields}
        return f"unknown key {key}{hint(path[-1], sorted(known))}"
    if kind == "missing":
        return f"missing key {key}{f': {_MISSING[path[-1]]}' if path[-1] in _MISSING else ''}"
    if kind.startswith("union_tag"):
        return f"{key}: {_about_kind(given, KINDS[:-1] if 'parts' in path else KINDS)}"
    message: str = detail["msg"].removeprefix("Value error, ")
    if kind == "string_pattern_mismatch":
        message = _PATTERNS.get(detail["ctx"]["pattern"], message)
    elif kind in ("model_type", "model_attributes_type", "dict_type"):
        message = "must be a table"
    if kind == "literal_error" and isinstance(given, str):
        near = hint(given, re.findall("'([^']*)'", message))
        message += f", got {_shortened(given)}{near}"
    elif kind != "value_error":
        message += f", got {_shortened(given)}"
    return f"{key}: {message}" if key else message


def _about_kind(table: Any, known: Sequence[str]) -> str:
    """What is wrong with the kind of a strategy's table."""
    if not isinstance(table, dict):
        return f"must be a table, got {_shortened(table)}"
    who = f"strategy {table['name']!r}" if isinstance(table.get("name"), str) else "a strategy without a name"
    kind = table.get("kind")
    if kind is None:
        near = [name for name in table if name not in ("name", "label") and difflib.get_close_matches(name, ["kind"])]
        meant = f" (did you mean it by {near[0]!r}?)" if near else ""
        return f"{who} has no kind{meant}; known kinds: {', '.join(known)}"
    return (
        f"{who} has the unknown kind {_shortened(kind)}{hint(str(kind), list(known))}; known kinds: {', '.join(known)}"
    )


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
