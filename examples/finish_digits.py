"""A small trained model and its data, for `latephase finish finish_digits:make`, in this folder.

A convolutional network on scikit-learn's digits, trained by SGD for some seconds; on two cores a minute of finishing
shows the race. `make finish` in the repository's root runs it.
"""

from typing import Any

import torch

from latephase import problems

EPOCHS = 30


def make() -> dict[str, Any]:
    """The arguments of `latephase.finish`."""
    torch.manual_seed(0)
    problem = problems.get("digits")
    model, splits = problem.model(), problem.load()
    inputs, targets = problem.batch(splits.train)
    base = problem.training.start(model.parameters())
    batch = problem.training.batch_size or len(targets)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(targets)).split(batch):
            base.step(problem.objective(model, (inputs[rows], targets[rows])))  # pyright: ignore[reportArgumentType]
    return {
        "model": model,
        "loss": problem.loss,
        "data": (inputs, targets),
        "held_out": problem.batch(splits.valid),
        "base": base,
        "batch_size": batch,
        "weight_decay": problem.weight_decay,
    }
