"""What a test problem is: a model, a loss, data, metrics, and the first-order setting it is trained with."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..objective import Decay, Objective
from .metrics import Metric, accuracy

Batch = tuple[Any, Tensor]
"""Inputs (a tensor, or a tuple or dict of tensors) and targets; dimension 0 counts the rows."""

Data = Any
"""A `Batch`; or a list of batches of different form whose losses add up, as in a physics-informed problem."""

Augment = Callable[[Any, Tensor, torch.Generator], Batch]

TrainEvaluation = Callable[["Problem", "Splits", torch.Generator], Data]


@dataclass(frozen=True)
class Splits:
    """The three disjoint parts of a data set, in the form in which they are kept: images as uint8, for instance.

    The parts are a property of the problem: they do not depend on any seed. `Problem.batch` makes of their rows what
    the model takes.
    """

    train: Data
    valid: Data
    test: Data

    def to(self, device: torch.device | str) -> "Splits":
        """The same data on a device."""
        return Splits(*(_each_tensor(lambda t: t.to(device), part) for part in (self.train, self.valid, self.test)))


def start_optimizer(
    kind: str, parameters: Iterable[nn.Parameter], lr: float, momentum: float, options: Mapping[str, Any] | None = None
) -> torch.optim.SGD | torch.optim.Adam:
    """A fresh first-order optimizer, "sgd" or "adam"; Adam has no use for the momentum. Options are torch's."""
    settings: dict[str, Any] = {"lr": lr, **(options or {})}
    if kind == "adam":
        return torch.optim.Adam(parameters, **settings)
    settings.setdefault("momentum", momentum)
    return torch.optim.SGD(parameters, **settings)


@dataclass(frozen=True)
class TrainingSetting:
    """The first-order setting of a problem.

    The problems of Tatzel et al. (2022, Table 1) have plain SGD: no momentum and no schedule, so that training ends in
    diffusion at the given rate, as in Schmidt, Schneider and Hennig (2021, "Descending through a Crowded Valley").

    Attributes:
        lr: The constant learning rate.
        batch_size: Rows of one step; None for all rows of the training split. The last short batch of an epoch is
            dropped.
        epochs: Passes over the training split.
        optimizer: "sgd" or "adam".
        momentum: of SGD.
    """

    lr: float
    batch_size: int | None
    epochs: int
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.0

    def start(self, parameters: Iterable[nn.Parameter]) -> torch.optim.SGD | torch.optim.Adam:
        """A fresh optimizer of this setting."""
        return start_optimizer(self.optimizer, parameters, self.lr, self.momentum)


@dataclass(frozen=True)
class Problem:
    """A versioned test problem.

    All callables are module-level functions, or `functools.partial`s of such, so that a problem can be pickled and sent
    to a worker process.

    Attributes:
        name: The name under which `latephase.problems.get` finds it.
        version: Raised by one whenever a change of the definition moves results. Results of different versions
            do not belong in one table.
        title: A short title for figures and tables.
        description: Data, model and regularisation in a sentence or two.
        model: () -> module, freshly initialised from torch's default generator. It needs no data.
        loss: (outputs, targets) -> scalar, without the L2 term: a mean over the rows, or a sum where it says
            `reduction == "sum"`.
        load: () -> Splits. It may read from disk or download, and always returns the same values; of a
            physics-informed problem in torch's default dtype.
        training: The first-order setting.
        source: The paper, and where in it, that the problem is from.
        weight_decay: wd, or (wd, predicate(name, parameter)). The L2 term 0.5 * wd * sum theta_i^2 over the
            parameters for which the predicate holds is part of the loss, its gradient and its curvature.
        forward: (model, inputs) -> outputs where the ordinary call of the model does not fit.
        prepare: Inputs as they are kept, or as `augment` returns them, -> the model's inputs; no randomness. Default:
            they are the same.
        augment: (inputs of a batch as they are kept, targets, generator) -> (inputs, targets), for training batches
            only; the same number of rows. All its randomness comes from the generator. For generated problems it draws
            new rows. Default: none.
        metrics: What is measured beside the loss.
        train_evaluation: (problem, splits, generator) -> the data, as the model takes it, on which the training loss is
            measured. Default: all of the training split, not augmented.
        redraw: generator -> training data on fresh points of the same distribution, in the form in which
            `load().train` is kept, for a problem whose data is points of a domain. All its randomness comes from the
            generator, which is on the CPU. Default: none.
        dataset: Name of the data set that `load` needs (`latephase.problems.data`); None where nothing is read.
        options: What `latephase.problems.get` was given beside the name.
    """

    name: str
    version: int
    title: str
    description: str
    model: Callable[[], nn.Module]
    loss: Callable[[Any, Tensor], Tensor]
    load: Callable[[], Splits]
    training: TrainingSetting
    source: str = ""
    weight_decay: Decay = 0.0
    forward: Callable[[nn.Module, Any], Any] | None = None
    prepare: Callable[[Any], Any] | None = None
    augment: Augment | None = None
    metrics: tuple[Metric, ...] = (accuracy,)
    train_evaluation: TrainEvaluation | None = None
    redraw: Callable[[torch.Generator], Data] | None = None
    dataset: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def batch(self, data: Data, rows: Tensor | slice | None = None, generator: torch.Generator | None = None) -> Data:
        """Rows of a split as the model takes them, ready for `Objective`.

        What is kept in float32 is widened where torch's default dtype is float64, as that of the model then is.

        Args:
            data: a split, or rows of one.
            rows: which, int64 [n] or a slice. Default: all, in order.
            generator: source of the augmentation, for a training batch. Default: no augmentation.

        Returns:
            (inputs, targets); a list of them where the split is one.

        Raises:
            ValueError: rows of a split that is a list of batches, which belong together.
        """
        if not is_batch(data):
            if rows is not None:
                raise ValueError(f"{self.name} is trained on all of its data at once: it has no rows to choose from")
            return [self._prepared(batch, generator) for batch in data]
        if rows is not None:
            data = _each_tensor(lambda leaf: leaf[rows.to(leaf.device) if isinstance(rows, Tensor) else rows], data)
        return self._prepared(data, generator)

    def _prepared(self, batch: Any, generator: torch.Generator | None) -> Batch:
        inputs, targets = batch
        if self.augment is not None and generator is not None:
            inputs, targets = self.augment(inputs, targets, generator)
        batch = (inputs if self.prepare is None else self.prepare(inputs)), targets
        return _each_tensor(_widened, batch) if torch.get_default_dtype() == torch.float64 else batch

    def objective(self, model: nn.Module, data: Data, **options: Any) -> Objective:
        """The objective of a model on what `batch` returned, the L2 term included.

        Args:
            model: the model.
            data: the data, as the model takes it.
            options: of `Objective`, such as `microbatch_size`.
        """
        return Objective(model, self.loss, data, weight_decay=self.weight_decay, forward=self.forward, **options)


def is_batch(data: Data) -> TypeGuard[Batch]:
    """Whether data is one batch, and not a list of batches."""
    return isinstance(data, tuple)


def parts_of(splits: Splits) -> tuple[Batch, Batch, Batch]:
    """Training, validation and test split, each being one batch."""
    train, valid, test = splits.train, splits.valid, splits.test
    assert is_batch(train)
    assert is_batch(valid)
    assert is_batch(test)
    return train, valid, test


def row_count(data: Data) -> int:
    """The number of rows of a split."""
    return len(data[1]) if is_batch(data) else sum(len(targets) for _, targets in data)


def _each_tensor(function: Callable[[Tensor], Tensor], data: Any) -> Any:
    return tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) and leaf.dim() else leaf, data)


def _widened(leaf: Tensor) -> Tensor:
    """Data that is kept in float32 fits models that are made in float64, torch's default dtype then."""
    return leaf.double() if leaf.dtype == torch.float32 else leaf


def is_weight(name: str, parameter: nn.Parameter) -> bool:
    """Say whether a parameter is a weight, that is not a bias: the L2 term's predicate, as in DeepOBS.

    Args:
        name: The parameter's name in `named_parameters()`.
        parameter: The parameter; not looked at.
    """
    del parameter
    return name == "weight" or name.endswith(".weight")


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Say whether a parameter is the weight of a dense or convolutional layer: the L2 term's predicate beside norms.

    Args:
        name: The parameter's name in `named_parameters()`.
        parameter: The parameter; batch norm's have one dimension.
    """
    return is_weight(name, parameter) and parameter.dim() > 1
