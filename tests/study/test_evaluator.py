"""A study measures the function that is trained: parts of a split weigh what chunks of an objective weigh."""

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latephase import Objective
from latephase.problems import Problem, Splits, TrainingSetting
from latephase.study.performing.evaluate import ROWS_AT_ONCE, Evaluator

ROWS = 2 * ROWS_AT_ONCE + 100


def _labelled() -> Splits:
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(ROWS, 4, generator=random)
    targets = torch.randint(3, (ROWS,), generator=random)
    targets[: ROWS_AT_ONCE - 10] = -100  # nearly none counts in the first part
    targets[ROWS_AT_ONCE : ROWS_AT_ONCE + 500] = 2  # and the second is heavy
    return Splits((inputs, targets), (inputs, targets), (inputs[:50], targets[-50:]))


def own(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, ignore_index=-100)


def declared(outputs: Tensor, targets: Tensor) -> Tensor:
    return own(outputs, targets)


declared.reduction = "mean"  # pyright: ignore[reportFunctionMemberAccess]
declared.normalizer = lambda targets: (targets != -100).sum()  # pyright: ignore[reportFunctionMemberAccess]


def labelled_problem(loss: Any) -> Problem:
    return Problem(
        name="ignored",
        version=1,
        title="Ignored",
        description="Targets that do not count.",
        model=lambda: nn.Linear(4, 3),
        loss=loss,
        load=_labelled,
        training=TrainingSetting(lr=0.1, batch_size=None, epochs=1),
        metrics=(),
    )


@pytest.mark.parametrize(
    "loss", [nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 9.0])), nn.CrossEntropyLoss(reduction="sum"), own, declared]
)
def test_the_loss_of_a_split_is_that_of_all_its_rows(loss):
    problem = labelled_problem(loss)
    torch.manual_seed(1)
    model, splits = problem.model(), _labelled()
    found = Evaluator(problem, model, splits)(model.state_dict())
    whole = float(Objective(model, loss, splits.train).value())
    assert found["train_loss"] == pytest.approx(whole, rel=1e-5)  # float32 sums of some thousand rows in another order


def total(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, ignore_index=-100, reduction="sum")


def no_total(outputs: Tensor, targets: Tensor) -> Tensor:
    return own(outputs, targets)


total.reduction = no_total.reduction = "sum"  # pyright: ignore[reportFunctionMemberAccess]


@pytest.mark.parametrize("loss", [total, functools.partial(F.cross_entropy, reduction="sum"), no_total])
def test_a_sum_over_the_rows_is_one_or_refused(loss):
    problem = labelled_problem(loss)
    torch.manual_seed(1)
    model, splits = problem.model(), _labelled()
    evaluate = Evaluator(problem, model, splits)
    if loss is no_total:
        with pytest.raises(ValueError, match="no sum over the rows"):
            evaluate(model.state_dict())
        return
    whole = float(Objective(model, loss, splits.train).value())
    assert evaluate(model.state_dict())["train_loss"] == pytest.approx(whole, rel=1e-5)
