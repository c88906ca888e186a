"""The param groups of `by_module`."""

import pytest
import torch
from torch import nn

from latephase import by_module


class Model(nn.Module):
    """Submodules whose names begin alike, one within another, and a weight that two of them share."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
        self.encoder2, self.decoder = nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 4))
        self.decoder[0].weight = self.encoder2.weight


def named(groups: list[dict], model: nn.Module) -> dict[str, list[str]]:
    names = {p: name for name, p in model.named_parameters()}
    return {group["name"]: [names[p] for p in group["params"]] for group in groups}


def test_groups_are_the_named_modules_in_the_order_of_the_names():
    model = Model()
    groups = by_module(model, ["decoder", "encoder.1", "encoder.0", "encoder2"])
    assert named(groups, model) == {
        "decoder": ["encoder2.weight", "decoder.0.bias", "decoder.1.weight", "decoder.1.bias"],
        "encoder.1": ["encoder.1.0.weight", "encoder.1.0.bias", "encoder.1.1.weight", "encoder.1.1.bias"],
        "encoder.0": ["encoder.0.weight", "encoder.0.bias"],
        "encoder2": ["encoder2.bias"],
    }
    assert list(named(groups, model)) == ["decoder", "encoder.1", "encoder.0", "encoder2"]
    torch.optim.SGD(groups, lr=0.1)  # refuses a parameter that is in two groups


def test_a_shared_parameter_goes_to_the_first():
    model = Model()
    first, second, _ = by_module(model, ["encoder2", "decoder", "encoder"])
    assert any(p is model.encoder2.weight for p in first["params"])
    assert not any(p is model.encoder2.weight for p in second["params"])


def test_frozen_parameters_are_left_out():
    model = Model()
    model.encoder[0].requires_grad_(False)
    model.decoder[1].bias.requires_grad_(False)
    groups = named(by_module(model, ["encoder.1", "encoder2", "decoder"]), model)
    assert groups["decoder"] == ["decoder.0.bias", "decoder.1.weight"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["encoder", "encoder2"], r"decoder\.0\.bias.*decoder\.1\.weight.*decoder\.1\.bias"),
        (["encoder.1", "encoder2", "decoder"], r"encoder\.0\.weight.*encoder\.0\.bias"),
        (["encoder", "encoder.1", "encoder2", "decoder"], r"encoder\.1.*encoder"),
        (["encoder.1.0", "encoder2", "encoder", "decoder"], r"encoder\.1\.0.*encoder"),
        (["encoder", "encoder", "encoder2", "decoder"], "encoder"),
        (["encoder", "encoder3", "decoder"], "encoder3"),
        (["encoder", "encoder2", "decoder", "encoder2.weight"], r"encoder2\.weight"),
        ([], r"encoder\.0\.weight"),
    ],
    ids=["left_out", "part_left_out", "inside", "deep_inside", "twice", "unknown", "a_parameter", "none"],
)
def test_refusals_name_what_is_wrong(names, said):
    with pytest.raises(ValueError, match=said):
        by_module(Model(), names)


def test_a_parameter_beside_the_modules_is_named():
    model = Model()
    model.register_parameter("scale", nn.Parameter(torch.ones(())))
    with pytest.raises(ValueError, match="scale"):
        by_module(model, ["encoder", "encoder2", "decoder"])
