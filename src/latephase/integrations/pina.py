"""PINA: the conditions of a solver as residuals, and a solver that trains on them with second-order steps."""

import contextlib
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..objective import Objective
from .hidden import Hidden
from .lightning import SecondOrderModule

try:
    from pina import LabelTensor  # pyright: ignore[reportMissingImports]
    from pina.solver import PhysicsInformedSingleModelSolver  # pyright: ignore[reportMissingImports]
    from pina.weighting import ScalarWeighting  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise ImportError(
        'latephase.integrations.pina needs pina-mathlab; install it with pip install "latephase[pina]"'
    ) from error

__all__ = ["SecondOrderPINN", "residual_objective"]

Batch = Sequence[tuple[str, Mapping[str, Any]]]


class SecondOrderPINN(  # pyright: ignore[reportIncompatibleMethodOverride]
    SecondOrderModule,
    PhysicsInformedSingleModelSolver,  # pyright: ignore[reportGeneralTypeIssues, reportUntypedBaseClass]
):
    """PINA's `PhysicsInformedSingleModelSolver` (`PINN`) whose steps are taken on the residuals of its conditions.

        solver = SecondOrderPINN(problem, model, optimizer=TorchOptimizer(GaussNewton))
        Trainer(solver, max_epochs=50).train()

    `TorchOptimizer` takes any optimizer of latephase, or of torch, to which the objective is the closure; PINA's
    `SwitchOptimizer` goes from one to the other. Batches, `train_loss` in the log, checkpoints, callbacks that redraw
    points and unknown parameters of inverse problems are as in PINA. The losses of single conditions are not logged.

    Weights are those of `ScalarWeighting`, the loss is the mean squared error, and the Trainer's settings are those of
    `SecondOrderModule`.

    Args:
        problem: as of PINA's solver, and so are the others.
        model: a network, or several in one module.
        optimizer: a `TorchOptimizer`.
        scheduler: a `TorchScheduler`.
        weighting: a `ScalarWeighting`, or none.

    Raises:
        ValueError: at the first batch, see `residual_objective`.
    """

    def training_step(self, batch: Batch, batch_idx: int) -> Objective:
        """The objective of a batch.

        Args:
            batch: names of conditions with their points.
            batch_idx: not used.
        """
        self._clamp_params()
        return residual_objective(self, batch)

    def on_train_batch_end(self, outputs: Mapping[str, Tensor], batch: Batch, batch_idx: int) -> None:
        """Log the loss before the step as PINA does.

        Args:
            outputs: with the loss.
            batch: whose size is logged.
            batch_idx: not used.
        """
        size, loss = self.get_batch_size(batch), outputs["loss"].item()
        self.log(name="train_loss", value=loss, batch_size=size, **self.trainer.logging_kwargs)
        super().on_train_batch_end(outputs, batch, batch_idx)


def residual_objective(solver: Any, batch: Batch | None = None, **options: Any) -> Objective:
    """The loss of a physics-informed solver as an objective of residuals, a term for each condition.

    f = sum over conditions of their weight times the mean of the squared residuals, which is the solver's own loss. The
    model of the objective is the solver's, with the unknown parameters of an inverse problem.

    Args:
        solver: `PhysicsInformedSingleModelSolver`, on a problem whose domains are discretised.
        batch: names of conditions with their points, as the solver gets them. Default: all points.
        **options: of `Objective.from_residuals`, `microbatch_size` for example.

    Raises:
        ValueError: a weighting that is not scalar, a loss that is not the mean squared error, or points that are no
            tensors.
    """
    _check_loss(solver)
    batch = _all_points(solver.problem) if batch is None else batch
    module = solver.model if solver._params is None else _with_unknowns(solver)
    terms = {name: _term(solver, name, data) for name, data in batch}
    weighting = solver.weighting
    weights = {name: float(weighting.values.get(name, weighting.default_value_weights)) for name in terms}
    return Objective.from_residuals(module, terms, weights=weights, **options)


class _WithUnknowns(nn.Module):
    """A network with the unknown parameters of an inverse problem beside it."""

    def __init__(self, network: nn.Module, unknowns: Mapping[str, nn.Parameter]):
        super().__init__()
        self.network = network
        self.unknowns = nn.ParameterDict(dict(unknowns))


def _with_unknowns(solver: Any) -> nn.Module:
    """The same module at every step, by which what is known of its passes is kept."""
    known = vars(solver).get("_latephase_model")
    if known is None or any(known.unknowns[name] is not p for name, p in solver._params.items()):
        known = _WithUnknowns(solver.model, solver._params)
        object.__setattr__(solver, "_latephase_model", known)  # no submodule: checkpoints stay PINA's
    return known


class _Residual:
    """The residuals of a condition at points, (module, points) -> [N, k], scaled so that PINA's mean is ours.

    Args:
        solver: whose model and condition they are.
        name: of the condition.
        labels: of the points, by name.
    """

    def __init__(self, solver: Any, name: str, labels: Mapping[str, Any]):
        self.condition, self.labels = solver.problem.conditions[name], dict(labels)
        self.variables = solver.problem.input_variables, solver.problem.output_variables

    def __call__(self, module: nn.Module, points: Mapping[str, Tensor]) -> Tensor:
        """The residuals, in the model that is given."""
        unknowns, network = None, module
        if isinstance(module, _WithUnknowns):
            unknowns, network = {name: module.unknowns[name] for name in module.unknowns}, module.network
        inputs, outputs = self.variables

        def forward(x: Any) -> Any:
            x = x.extract(inputs)
            try:  # layers are spared the labels, which slow every operation down
                return _labelled(network(x.as_subclass(Tensor)), outputs)
            except AttributeError:  # of a network that asks for them
                return _labelled(network(x), outputs)

        with _conversions_shown():
            data: dict[str, Any] = {name: _labelled(points[name], self.labels[name]) for name in points}
            if hasattr(self.condition, "equation"):  # one of a domain has no other way until a Trainer has it
                samples = data["input"].requires_grad_()
                residual = self.condition.equation.residual(samples, forward(samples), unknowns)
            else:
                view = types.SimpleNamespace(forward=forward, model=network, _params=unknowns)
                residual = self.condition.evaluate(data, view)
            residual = residual.as_subclass(Tensor)
        residual = residual.reshape(len(residual), -1)
        return residual / math.sqrt(residual.shape[1])


@contextlib.contextmanager
def _conversions_shown() -> Iterator[None]:
    """Within, tensors that become `LabelTensor`s are seen to be what they were.

    Torch hides `as_subclass`, by which every operation on a `LabelTensor` ends, from what records operations: it would
    meet tensors that came from nowhere, so that products would not be traced, and rows be computed point by point. The
    two places belong to the process; passes wait for each other (`objective.exclusive`).
    """
    made = vars(LabelTensor)["__new__"]
    torch.Tensor.as_subclass = _as_subclass  # pyright: ignore[reportAttributeAccessIssue]  # shadows that of its base
    LabelTensor.__new__ = staticmethod(_new)
    try:
        yield
    finally:
        del torch.Tensor.as_subclass
        LabelTensor.__new__ = made


def _as_subclass(tensor: Tensor, kind: type) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        result = torch.ops.aten.alias(tensor)
    result.__class__ = kind
    return result


def _new(kind: type, x: Any, labels: Any, *args: Any, **kwargs: Any) -> Any:
    return x if isinstance(x, LabelTensor) else _as_subclass(torch.as_tensor(x), kind)


def _labelled(tensor: Tensor, labels: Any) -> Any:
    if labels is None:
        return tensor
    result: Any = tensor.as_subclass(LabelTensor)
    result.labels = labels
    return result


def _term(solver: Any, name: str, data: Mapping[str, Any]) -> tuple[Hidden, dict[str, Tensor]]:
    points, labels = {}, {}
    for key, value in data.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{key!r} of condition {name!r} is a {type(value).__name__}: only tensors of points can be residuals "
                "here; write Objective.from_forward(model, forward) for it"
            )
        labels[key] = getattr(value, "labels", None)
        points[key] = value.detach().as_subclass(Tensor)
    known = vars(solver).get("_latephase_residuals")
    if known is None:
        known = {}
        object.__setattr__(solver, "_latephase_residuals", known)
    key = (id(solver.problem.conditions[name]), repr(labels))
    if key not in known:  # the same object at every step, by which its trace is found
        known[key] = Hidden(_Residual(solver, name, labels))
    return known[key], points


def _all_points(problem: Any) -> Batch:
    batch = []
    for name, condition in problem.conditions.items():
        if hasattr(condition, "domain"):
            batch.append((name, {"input": problem.discretised_domains[condition.domain]}))
        else:
            kept = {key: getattr(condition, key) for key in ("input", "target") if hasattr(condition, key)}
            batch.append((name, kept))
    return batch


def _check_loss(solver: Any) -> None:
    """Refuse a solver whose loss is no weighted sum of mean squares.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(solver.weighting, ScalarWeighting):
        raise ValueError(
            f"the weights of {type(solver.weighting).__name__} change with the losses, so that a step has no function "
            "to descend; use ScalarWeighting, or Adam first and SwitchOptimizer to go on with fixed weights"
        )
    if type(solver.loss) is not torch.nn.MSELoss or solver._reduction != "mean":
        raise ValueError(
            f"the solver's loss is {type(solver.loss).__name__} with reduction {solver._reduction!r}: residuals are "
            "squared and averaged; leave it at MSELoss()"
        )
