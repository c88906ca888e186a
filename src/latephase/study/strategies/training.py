"""The training that makes the checkpoints."""

from typing import Literal

from pydantic import Field

from .tables import Table


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
