"""What every reader of a study's file knows of it, with the defaults; nothing here imports torch."""

import difflib
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
"""What a strategy may be called, so that folders can be."""
DEVICE = r"^(cpu|cuda)$"


class Table(BaseModel):
    """A table of the configuration: unknown keys are errors, values are not converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def hint(name: str, known: list[str]) -> str:
    """The known name that may be meant, in words."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


class About(NamedTuple):
    """What the rest must know of a kind of strategies; a resolved study says it of its kinds.

    Attributes:
        title: what the page calls it.
        second_order: whether it uses curvature.
        has_rate: whether its learning rate is worth a look, and not the length of steps that something else chose.
        counts: of the passes that `Work` counts, those that its steps can make.
    """

    title: str
    second_order: bool = False
    has_rate: bool = True
    counts: tuple[str, ...] = ("gradients",)

    def as_table(self) -> dict[str, Any]:
        """What a resolved study says: all that readers of results need."""
        return {"title": self.title, "second_order": self.second_order, "has_rate": self.has_rate}


class Training(Table):
    """The first-order training that makes the checkpoints; what is left out comes from the problem."""

    epochs: int = Field(ge=1)
    lr: float = Field(gt=0, allow_inf_nan=False)
    batch_size: int | None = Field(default=None, ge=1, description="default: all rows at once")
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = Field(default=0.0, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)
    evaluate_every: int = Field(default=1, ge=1, description="epochs between evaluations")
    save_every: int = Field(default=1, ge=1, description="epochs after which a stopped training can go on")
