"""The problems of `finish.py`: how they are trained, with what budgets they are finished, where steps get data."""

import copy
import io
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latephase import Objective, Wants
from latephase.problems import Problem, Splits, get
from latephase.problems.problem import is_batch, row_count, start_optimizer
from latephase.problems.sampling import StepRows, Stream, generator
from latephase.records import write_atomic
from latephase.study.performing.evaluate import Evaluator

PARTS = 10
"""Of the held-out rows, so that differences have an interval."""


@dataclass(frozen=True)
class Setting:
    """How a problem is trained and finished.

    Attributes:
        train: processor seconds of the base, before.
        finish: processor seconds of what is compared.
        optimizer: of the base, "sgd" or "adam"; default: the problem's.
        lr: of the base; default: the problem's.
        batch: rows of the base's steps; default: the problem's.
        held_out: validation rows that score states, the first so many; default: all.
        deterministic: whether all steps of the base see the same data.
        modes: whether the model has dropout or batch norm.
        dtype: of data and model.
        options: of the problem.
    """

    train: float
    finish: float
    optimizer: str | None = None
    lr: float | None = None
    batch: int | None = None
    held_out: int | None = None
    deterministic: bool = False
    modes: bool = False
    dtype: str = "float32"
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def told(self) -> dict[str, Any]:
        """As plain values, as lines have it."""
        return asdict(self)


def shorter(setting: Setting, scale: float) -> Setting:
    """The same with other seconds."""
    return replace(setting, train=scale * setting.train, finish=scale * setting.finish)


def points(finish: float = 27) -> Setting:
    """A physics problem, whose steps all see the same points."""
    return Setting(8, finish, deterministic=True, dtype="float64")


PROBLEMS = {
    "digits": Setting(20, 12),
    "fmnist_mlp50": Setting(20, 14),
    "curves_autoencoder": Setting(45, 22),
    "uci_energy": Setting(4, 10, lr=3e-3, deterministic=True, dtype="float64"),
    "uci_protein": Setting(20, 15, lr=3e-3),
    "rnn_addition": Setting(12, 15, optimizer="adam", lr=3e-3, held_out=500, options={"length": 20}),
    "shakespeare_gpt": Setting(
        40, 22, lr=3e-3, batch=32, held_out=500, options={"width": 64, "layers": 2, "length": 32}
    ),
    "shakespeare_lstm": Setting(30, 20, lr=3e-3, held_out=500, modes=True, options={"width": 64, "length": 25}),
    "pinn_poisson2d": points(),
    "pinn_heat1d": points(),
    "pinn_burgers": points(),
    "pinn_helmholtz": points(),
}
"""Sizes and rates where the problem's own are those of another machine, or would leave nothing to be finished."""


@dataclass
class Data:
    """The training data as the hand-over draws it, augmented as in the training, and what scores states.

    Attributes:
        problem: whose.
        splits: its data.
        model: which is finished.
        batch: of the base's steps; None for all rows.
        seed: of what is drawn.
        held_out: objectives of the validation split.
    """

    problem: Problem
    splits: Splits
    model: nn.Module
    batch: int | None
    seed: int
    held_out: list[Objective]
    rows: int | None = None
    deterministic: bool = False

    def __post_init__(self):
        self.rows, self.deterministic = row_count(self.splits.train), self.batch is None
        self._drawing = StepRows(self.rows, self.seed)
        self._whole: Objective | None = None

    def draw(self, wants: Wants, step: int) -> tuple[Objective, Objective | None]:
        """The data of a step."""
        if self.deterministic:
            self._whole = self._of(None, None) if self._whole is None else self._whole
            return self._whole, None
        random = generator(Stream.AUGMENTATION, self.seed, step)
        own, judging = self._drawing.of_step(wants.rows, wants.evaluation, step)
        return self._of(own, random), None if judging is None else self._of(judging, random)

    def statistics(self) -> Sequence[Objective]:
        """Batches for batch norm's statistics of an average; the same always."""
        if self.deterministic:
            return [self.draw(Wants(), 0)[0]]
        return [self._of(rows, None) for rows in self._drawing.statistics(self.batch)]

    def _of(self, rows: Tensor | None, random: torch.Generator | None) -> Objective:
        return self.problem.objective(self.model, self.problem.batch(self.splits.train, rows, random))


@dataclass
class Trained:
    """A trained model, from which all runs of a problem and seed start.

    Attributes:
        problem: the problem.
        splits: its data.
        model: its model; `begun` puts it back.
        setting: of training and finish.
        seed: of all that is random.
        state: of model and base after the training.
    """

    problem: Problem
    splits: Splits
    model: nn.Module
    setting: Setting
    seed: int
    state: dict[str, Any]

    def begun(self) -> tuple[nn.Module, Any, Data]:
        """The model as it was trained, its base with its state, and the data."""
        self.model.load_state_dict(self.state["model"])
        self.model.train()
        base = base_of(self.problem, self.model, self.setting)
        base.load_state_dict(copy.deepcopy(self.state["base"]))
        return self.model, base, Data(
            self.problem, self.splits, self.model, batch_of(self.problem, self.setting), self.seed, self._held_out()
        )  # fmt: skip

    def _held_out(self) -> list[Objective]:
        """The validation split in parts, without the L2 term."""
        problem, valid = self.problem, self.splits.valid
        plain = replace(problem, weight_decay=0.0)
        if not is_batch(valid):
            return [plain.objective(self.model, problem.batch(valid))]
        rows = torch.arange(min(row_count(valid), self.setting.held_out or row_count(valid)))
        return [plain.objective(self.model, problem.batch(valid, part)) for part in rows.tensor_split(PARTS)]

    def tested(self, model: nn.Module) -> dict[str, float | None]:
        """Loss and metrics of the test split."""
        found = Evaluator(self.problem, model, self.splits, only="test")(model.state_dict())
        return {name: value if value is None or math.isfinite(value) else None for name, value in found.items()}


def base_of(problem: Problem, model: nn.Module, setting: Setting) -> Any:
    """The base, fresh."""
    own = problem.training
    kind, lr = setting.optimizer or own.optimizer, setting.lr or own.lr
    return start_optimizer(kind, model.parameters(), lr, own.momentum)


def batch_of(problem: Problem, setting: Setting) -> int | None:
    """Rows of the base's steps; None for all."""
    return None if setting.deterministic else setting.batch or problem.training.batch_size


def trained(name: str, seed: int, setting: Setting, path: Path) -> Trained:
    """A problem's model after its training, from a file where that is done."""
    torch.manual_seed(seed)
    problem = get(name, **setting.options)
    model, splits = problem.model(), problem.load()
    at = Trained(problem, splits, model, setting, seed, {})
    kept = torch.load(path, weights_only=True) if path.is_file() else {}
    if kept.get("setting") == setting.told:
        at.state = kept
        return at
    base = base_of(problem, model, setting)
    data = Data(problem, splits, model, batch_of(problem, setting), seed, [])
    started, step = time.process_time(), 0
    while time.process_time() - started < setting.train:
        base.step(data.draw(Wants(data.batch), step)[0])
        step += 1
    state = {"setting": setting.told, "steps": step, "model": model.state_dict(), "base": base.state_dict()}
    at.state = copy.deepcopy(state)  # runs move the tensors of the model and of the base
    buffer = io.BytesIO()
    torch.save(at.state, buffer)
    write_atomic(path, buffer.getvalue())
    return at
