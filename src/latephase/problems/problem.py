"""What a test problem is: a model, a loss, data, and the first-order setting it is trained with."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Splits:
    """The three disjoint parts of a data set, each a pair (inputs [N, ...], targets [N]).

    The parts are a property of the problem: they do not depend on any seed.
    """

    train: tuple[Tensor, Tensor]
    valid: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class TrainingSetting:
    """The first-order setting of a problem: plain SGD, momentum 0, constant learning rate.

    It has no momentum and no schedule, so that training ends in diffusion at the given rate. That is how the
    problems of Schmidt, Schneider and Hennig (2021, "Descending through a Crowded Valley") were trained.

    Attributes:
        lr: The constant learning rate.
        batch_size: Rows of one SGD step. The last short batch of an epoch is dropped.
        epochs: Passes over the training split.
    """

    lr: float
    batch_size: int
    epochs: int


@dataclass(frozen=True)
class Problem:
    """A versioned test problem.

    All callables are module-level functions, so a problem can be pickled and sent to a worker process.

    Attributes:
        name: The name under which `latephase.problems.get` finds it.
        version: Raised by one whenever a change of the definition moves results. Results of different versions
            do not belong in one table.
        title: A short title for figures and tables.
        description: Data, model and regularisation in a sentence or two.
        model: () -> module, freshly initialised from torch's default generator. It needs no data.
        loss: (outputs, targets) -> scalar, without the L2 term.
        weight_decay: wd, or (wd, predicate(name, parameter)). The L2 term 0.5 * wd * sum theta_i^2 over the
            parameters for which the predicate holds is part of the loss, its gradient and its curvature.
        load: () -> Splits. It may read from disk or download, and always returns the same values.
        augment: (inputs of one batch, generator) -> augmented inputs of the same shape, for training batches only.
            All its randomness comes from the generator.
        training: The first-order setting.
    """

    name: str
    version: int
    title: str
    description: str
    model: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    weight_decay: float | tuple[float, Callable[[str, nn.Parameter], bool]]
    load: Callable[[], Splits]
    augment: Callable[[Tensor, torch.Generator], Tensor]
    training: TrainingSetting


def is_weight(name: str, parameter: nn.Parameter) -> bool:
    """Say whether a parameter is a weight, that is not a bias: the L2 term's predicate, as in DeepOBS.

    Args:
        name: The parameter's name in `named_parameters()`.
        parameter: The parameter; not looked at.
    """
    del parameter
    return name == "weight" or name.endswith(".weight")
