"""What `latephase.finish` refuses, in words and before anything is done."""

import math

import pytest
import torch
from small_tasks import blobs, descent, loader, plain, quick
from torch import nn
from torch.utils.data import TensorDataset

import latephase
from latephase import Objective


def test_a_checkpoint_with_nan_is_refused_before_anything_is_done(tmp_path):
    model = plain()
    with torch.no_grad():
        model[2].weight[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"held-out loss of the model is nan, not all values of 2\.weight are finite"):
        latephase.finish(**quick(model=model, out=tmp_path / "run"))
    assert not (tmp_path / "run" / "best.pt").exists()


WRONG = {
    "both budgets": ({"seconds": 1.0}, "seconds or steps, not both"),
    "a budget of nothing": ({"steps": 0}, "above 0"),
    "a base of another model": ({"base": torch.optim.SGD(plain().parameters(), lr=0.1)}, "4 parameters of the base"),
    "a base that is none": ({"base": 0.1}, "base must be a torch optimizer, got float"),
    "no loss": ({"loss": None}, "needs a loss and data"),
    "no data": ({"data": None}, "needs a loss and data"),
    "a dataset": ({"data": TensorDataset(*blobs())}, "give a DataLoader of it"),
    "a tensor": ({"data": torch.ones(3)}, "got a Tensor"),
    "a number": ({"held_out": 3}, "held_out must be .*got a int"),
    "an objective as data": ({"held_out": Objective(plain(), nn.CrossEntropyLoss(), blobs())}, "not an Objective"),
    "batches without labels": ({"data": [{"x": 1}]}, 'or a dict with "labels"'),
    "an empty loader": ({"data": []}, "training data gives no batch"),
    "empty held-out data": ({"held_out": []}, "held-out data gives no batch"),
    "a loader alone": ({"data": loader(blobs()), "held_out": None}, "a loader's rows cannot be divided"),
    "few rows alone": ({"data": blobs(12), "held_out": None}, "12 rows are too few"),
    "rows of two lengths": (
        {"data": (blobs()[0][:200], blobs()[1][:7])},
        "data has 200 rows of inputs but 7 of targets",
    ),
    "a batch of no rows": ({"batch_size": 0}, "batch_size must be a whole number"),
    "a model that is none": ({"model": 3}, "model must be a torch module"),
    "nothing to train": ({"model": nn.Flatten()}, "nothing to train"),
    "more to judge by than there is": (
        {"contestants": [descent("a", 0.1, wants=(10, 500))]},
        "wants 500 rows to judge",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_will_not_do_is_refused_in_words(case):
    changes, says = WRONG[case]
    with pytest.raises((TypeError, ValueError), match=says):
        latephase.finish(**quick(**changes))


def test_an_objective_takes_no_data_beside_it():
    with pytest.raises(TypeError, match="leave out loss"):
        latephase.finish(Objective(plain(), nn.CrossEntropyLoss(), blobs()), batch_size=3, steps=3)
