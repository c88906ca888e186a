"""First-order optimizers, a loss and a run of steps, for the tests of quadratic learning rates."""

import torch
from torch import nn

from latephase import Objective

BASES = {
    "Adam": lambda params: torch.optim.Adam(params, lr=0.01),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.01, weight_decay=0.1),
    "SGD": lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9, nesterov=True),
    "SGD with weight decay": lambda params: torch.optim.SGD(params, lr=0.01, weight_decay=0.1),
    "RMSprop": lambda params: torch.optim.RMSprop(params, lr=0.01, momentum=0.5, centered=True),
    "Adagrad": lambda params: torch.optim.Adagrad(params, lr=0.01, lr_decay=0.1),
    "NAdam": lambda params: torch.optim.NAdam(params, lr=0.01),
    "Adadelta": lambda params: torch.optim.Adadelta(params, lr=0.01),
}


def cross_entropy(model, data, **options):
    return Objective(model, nn.CrossEntropyLoss(), data, **options)


def steps(optimizer, objective, number):
    return [(float(optimizer.step(objective)), optimizer.report.as_dict() | {"seconds": 0}) for _ in range(number)]
