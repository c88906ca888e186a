"""Optimizers whose steps are written down by the writers under test."""

import torch
from torch import nn

from latephase import HessianFree, Objective, layerwise


def problem(blocks=1):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    data = torch.randn(20, 3), torch.randint(3, (20,))
    params = model.parameters() if blocks == 1 else layerwise(model)
    optimizer = HessianFree(params, damping=0.1, blocks=blocks > 1)
    return optimizer, Objective(model, nn.CrossEntropyLoss(), data)


def diverged():
    """An optimizer whose next step meets a loss that is not a number."""
    point = nn.ParameterList([torch.tensor([-1.0])])
    return HessianFree(point.parameters()), Objective.from_forward(point, lambda: (point[0].log().sum(), point[0]))
