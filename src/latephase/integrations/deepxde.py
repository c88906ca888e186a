"""DeepXDE on PyTorch: a model's losses as residuals, and its training by second-order steps."""

import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..objective import Objective
from ..optim import SecondOrder
from .hidden import Hidden

try:
    os.environ.setdefault("DDE_BACKEND", "pytorch")  # else the first import asks the disk, and writes there
    import deepxde as dde  # pyright: ignore[reportMissingImports]
    from deepxde import gradients  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise ImportError(
        'latephase.integrations.deepxde needs deepxde; install it with pip install "latephase[deepxde]"'
    ) from error

__all__ = ["compile_second_order", "residual_objective"]

OF_ALL = (dde.icbc.RobinBC, dde.icbc.OperatorBC, dde.icbc.PointSetOperatorBC)
"""Conditions with a function of NumPy points, which gets all of them."""
Points = dict[str, Tensor]
Residual = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]


def compile_second_order(model: Any, optimizer: SecondOrder, **options: Any) -> None:
    """Compile a DeepXDE model so that its training takes second-order steps; use it in place of `model.compile`.

        model = dde.Model(data, net)
        compile_second_order(model, SelfScaledBroyden(net.parameters()), loss_weights=[1, 100])
        model.train(iterations=200)

    Everything else is DeepXDE's: callbacks, redrawn points, `save` and `restore`, after which a run goes on with the
    same numbers. The model may have been compiled and trained with another optimizer before.

    Args:
        model: `deepxde.Model` on `deepxde.data.PDE`, `TimePDE`, `DataSet` or `Function`; see `residual_objective`.
        optimizer: one of latephase's, on the parameters of `model.net`.
        **options: of `model.compile`: `loss_weights`, `metrics`, `decay`, which is a schedule of the rate.

    Raises:
        TypeError: an optimizer of another kind.
        ValueError: another loss than the mean squared error, unknowns that are not the network's, mixed precision, or
            what `residual_objective` refuses.
    """
    if not isinstance(optimizer, SecondOrder):
        raise TypeError(
            f"compile_second_order needs an optimizer of latephase, got {type(optimizer).__name__}; model.compile "
            "takes the others"
        )
    if options.get("external_trainable_variables"):
        raise ValueError(
            "external_trainable_variables are no parameters of the network, so that no step can try other values: "
            "write net.register_parameter('c', torch.nn.Parameter(...)) and let the equation read net.c"
        )
    if dde.config.mixed:
        raise ValueError("mixed precision has too few digits for a damping: dde.config.set_default_float('float32')")
    model.compile(optimizer, **options)
    model.train_step = _Step(model)
    _check_loss(model)


class _Step:
    """(inputs, targets, auxiliary variables) -> nothing: one step, as DeepXDE's training calls it.

    The objective stays as long as the arrays are the same, as DeepXDE keeps them until points are redrawn.
    """

    def __init__(self, model: Any):
        self.model = model
        self.objective: Objective | None = None
        self.arrays: tuple[Any, ...] = ()

    def __call__(self, inputs: Any, targets: Any, auxiliary: Any) -> None:
        model, arrays = self.model, (inputs, targets, auxiliary)
        model.net.train(mode=True)
        if self.objective is None or any(a is not b for a, b in zip(arrays, self.arrays, strict=True)):
            self.objective, self.arrays = residual_objective(model), arrays
        model.opt.step(self.objective)
        if model.lr_scheduler is not None:
            model.lr_scheduler.step()


def residual_objective(model: Any, **options: Any) -> Objective:
    """The training loss of a DeepXDE model as an objective of residuals.

    f = sum of the loss weights times the means of the squared residuals: those of the equations in one term, "pde",
    each condition in a term of its own ("bc 0", "bc 1", ...), or "data" where a network is fitted to values. An l2
    regularizer is the L2 term.

    Args:
        model: a model that was compiled, with the points that it trains on now.
        **options: of `Objective.from_residuals`.

    Raises:
        ValueError: data of another kind, a condition that has not one residual for each point (`PeriodicBC`,
            `Interface2DBC`, minibatches of a point set), derivatives by forward mode, or an l1 regularizer.
    """
    kind, factor = model.net.regularizer or ("l2", 0.0)
    if kind != "l2":
        raise ValueError(f"the network's {kind} regularizer is no sum of squares; use 'l2', or none")
    options.setdefault("weight_decay", factor)
    return Objective.from_residuals(model.net, _terms(model), **options)


def _terms(model: Any) -> dict[str, tuple[Residual, Points]]:
    if dde.config.autodiff != "reverse":
        raise ValueError("derivatives must be in reverse mode: dde.config.set_default_autodiff('reverse')")
    data = model.data
    if type(data) in (dde.data.PDE, dde.data.TimePDE):
        return _terms_of_pde(model)
    if type(data) in (dde.data.DataSet, dde.data.Function):
        inputs, targets = data.train_next_batch(model.batch_size)
        residual = _kept(model, _of_fit, _weight(model, 0))
        return {"data": (residual, {"x": _tensor(inputs), "values": _tensor(targets)})}
    raise ValueError(
        f"the losses of {type(data).__name__} are not known here, only those of PDE, TimePDE, DataSet and Function; "
        "write Objective.from_residuals(net, terms)"
    )


def _terms_of_pde(model: Any) -> dict[str, tuple[Residual, Points]]:
    data = model.data
    inputs, _, auxiliary = data.train_next_batch(model.batch_size)
    ends = np.cumsum([0, *data.num_bcs]).tolist()
    terms: dict[str, tuple[Residual, Points]] = {}
    equations = 0
    if data.pde is not None:
        points = {"x": _tensor(inputs[ends[-1] :])}
        if auxiliary is not None:
            points["auxiliary"] = _tensor(auxiliary[ends[-1] :])
        sizes = [each.shape[1] for each in _equations(data.pde, model.net, points)]
        equations = len(sizes)
        scales = [math.sqrt(_weight(model, index) / size) for index, size in enumerate(sizes)]
        terms["pde"] = (_kept(model, _scaled_equations, data.pde, tuple(scales)), points)
    for index, condition in enumerate(data.bcs):
        own = inputs[ends[index] : ends[index + 1]]
        all_points = own if isinstance(condition, OF_ALL) else None
        residual = _kept(model, _of_condition, condition, all_points, _weight(model, equations + index))
        terms[f"bc {index}"] = (residual, _points_of(condition, own))
    return {name: pair for name, pair in terms.items() if len(pair[1]["x"])}


def _kept(model: Any, function: Callable[..., Tensor], *arguments: Any) -> Hidden:
    """The residuals of a term: the same object as long as they are the same function, so that its trace is found."""
    known = vars(model).setdefault("_latephase_residuals", {})
    key = (function, *(each if isinstance(each, (float, tuple)) else id(each) for each in arguments))
    if key not in known:
        known[key] = Hidden(functools.partial(function, *arguments))  # which keeps what has these ids alive
    return known[key]


def _weight(model: Any, index: int) -> float:
    return 1.0 if model.loss_weights is None else float(model.loss_weights[index])


def _tensor(array: Any) -> Tensor:
    return torch.as_tensor(array, dtype=dde.config.real(torch))


def _equations(pde: Callable[..., Any], net: nn.Module, points: Mapping[str, Tensor]) -> list[Tensor]:
    """The residuals of each equation, [N, k]."""
    inputs = points["x"].detach().requires_grad_()
    others = [points["auxiliary"]] if "auxiliary" in points else []
    gradients.clear()  # DeepXDE keeps derivatives by the tensors that they are of, until it is told to forget
    try:
        found = pde(inputs, net(inputs), *others)
    finally:
        gradients.clear()
    found = found if isinstance(found, (list, tuple)) else [found]
    return [each.reshape(len(inputs), -1) for each in found]


def _scaled_equations(
    pde: Callable[..., Any], scales: Sequence[float], net: nn.Module, points: Mapping[str, Tensor]
) -> Tensor:
    """Residuals of all equations, scaled so that the mean of their squares is DeepXDE's loss."""
    scaled = [scale * each for scale, each in zip(scales, _equations(pde, net, points), strict=True)]
    return scaled[0] if len(scaled) == 1 else torch.cat(scaled, 1)


def _scaled(error: Tensor, weight: float) -> Tensor:
    error = error.reshape(len(error), -1)
    return math.sqrt(weight / error.shape[1]) * error


def _of_fit(weight: float, net: nn.Module, points: Mapping[str, Tensor]) -> Tensor:
    """What the outputs are away from given values."""
    return _scaled(net(points["x"]) - points["values"], weight)


def _of_condition(
    condition: Any, all_points: Any, weight: float, net: nn.Module, points: Mapping[str, Tensor]
) -> Tensor:
    """Residuals of a boundary or initial condition, as `condition.error` has them, from values that come as points."""
    inputs = points["x"].detach().requires_grad_()
    outputs = net(inputs)
    if all_points is not None and len(inputs) != len(all_points):
        raise ValueError(
            f"the function of {type(condition).__name__} gets all of its points at once; leave microbatch_size out"
        )
    if isinstance(condition, (dde.icbc.OperatorBC, dde.icbc.PointSetOperatorBC)):
        gradients.clear()
        error = condition.func(inputs, outputs, all_points)
        gradients.clear()
        return _scaled(error - points["values"] if "values" in points else error, weight)
    component = condition.component
    error = outputs[:, component] if isinstance(component, list) else outputs[:, component : component + 1]
    if "normals" in points:
        (slopes,) = torch.autograd.grad(error.sum(), inputs, create_graph=True)
        error = (slopes * points["normals"]).sum(1, keepdim=True)
    given = points["values"] if "values" in points else condition.func(all_points, outputs)
    return _scaled(error - given, weight)


def _points_of(condition: Any, points: Any) -> Points:
    """A condition's points, with what it knows of each.

    Raises:
        ValueError: it has not one residual for each point.
    """
    known = (
        *(dde.icbc.DirichletBC, dde.icbc.NeumannBC, dde.icbc.RobinBC, dde.icbc.OperatorBC, dde.icbc.IC),
        *(dde.icbc.PointSetBC, dde.icbc.PointSetOperatorBC),
    )
    if type(condition) not in known or getattr(condition, "batch_size", None) is not None:
        batches = " in minibatches" if type(condition) in known else ""
        raise ValueError(
            f"{type(condition).__name__}{batches} has not one residual for each point; write "
            "Objective.from_residuals(net, terms), with the pair as one point"
        )
    found, rows = {"x": _tensor(points)}, len(points)
    if isinstance(condition, (dde.icbc.DirichletBC, dde.icbc.NeumannBC, dde.icbc.IC)):
        found["values"] = _for_each(condition.func(points, 0, rows, None), rows)
    elif isinstance(condition, (dde.icbc.PointSetBC, dde.icbc.PointSetOperatorBC)):
        found["values"] = _for_each(condition.values, rows)
    if isinstance(condition, (dde.icbc.NeumannBC, dde.icbc.RobinBC)):
        found["normals"] = _tensor(condition.boundary_normal(points, 0, rows, None))
    return found


def _for_each(values: Any, rows: int) -> Tensor:
    """Values for all points, of which DeepXDE allows one number."""
    values = _tensor(values)
    return values.expand(rows, *(values.shape[1:] or (1,))).clone()


def _check_loss(model: Any) -> None:
    """Refuse a model whose own loss is another one.

    Raises:
        ValueError: it is.
    """
    inputs, targets, *others = model.data.train_next_batch(model.batch_size)
    own = float(model.outputs_losses_train(inputs, targets, others[0] if others else None)[1].detach().sum())
    ours = float(residual_objective(model, weight_decay=0.0).value())
    if not abs(own - ours) <= 1e-3 * max(abs(own), 1e-6):  # float32, over some thousand points
        raise ValueError(
            f"the model's loss is {own:.6g}, and {ours:.6g} is that of its residuals, squared and averaged: use "
            "loss='MSE'"
        )
