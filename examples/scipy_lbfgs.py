"""SciPy's L-BFGS, one evaluation at a time, so that it can be paused while an error is measured."""

import queue
import threading

import numpy as np
import torch
from scipy.optimize import minimize
from timed_runs import Step
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from latephase import Objective

HISTORY = 100


def scipy_lbfgs(model: nn.Module, objective: Objective) -> Step:
    """L-BFGS-B without bounds, tolerances off, which begins anew where its line search ends; an evaluation a step.

    `torch.optim.LBFGS` is no baseline where a loss becomes small: it learns nothing about the curvature from a step s
    with a change y of the gradient that has y's below 1e-10, and on `forces.py` stood still at a loss of 7e-6.
    """
    turn: queue.Queue[None] = queue.Queue()
    values: queue.Queue[float | BaseException] = queue.Queue()
    parameters = list(model.parameters())

    best = float("inf"), parameters_to_vector(parameters).detach().clone()

    def evaluate(x: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best
        turn.get()
        trial = torch.from_numpy(x.copy())
        vector_to_parameters(trial, parameters)
        model.zero_grad()
        loss = float(objective())
        gradient = np.concatenate([p.grad.numpy().ravel() for p in parameters if p.grad is not None])
        best = min(best, (loss, trial), key=lambda pair: pair[0])
        vector_to_parameters(best[1].clone(), parameters)  # what is measured is no trial of a line search
        values.put(loss)
        return loss, gradient

    def work() -> None:
        torch.set_num_threads(1)  # a setting of each thread
        options = {"maxcor": HISTORY, "maxiter": 10**9, "maxfun": 10**9, "ftol": 0, "gtol": 0, "maxls": 50}
        x = parameters_to_vector(parameters).detach().numpy().copy()
        try:
            while True:
                x = minimize(evaluate, x, jac=True, method="L-BFGS-B", options=options).x
        except BaseException as error:  # told where the step is asked for
            values.put(error)

    thread = threading.Thread(target=work, daemon=True)

    def step() -> dict[str, float]:
        if thread.ident is None:
            thread.start()
        turn.put(None)
        found = values.get()
        if isinstance(found, BaseException):
            raise found
        return {"loss": found}

    return step
