"""The Hessian-free optimizer (Martens 2010; Tatzel, Hennig and Schneider 2022)."""

import math
import time
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, is_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from ..curvature import Linearization, block_diagonal, damped, linearize
from ..curvature.traces import MAX_TRACES
from ..objective import Objective
from ..parameters import ParameterSpace
from ..solve import armijo, backtrack, conjugate_gradient, levenberg_marquardt, reduction_ratio
from .local_model import LocalModel, Outcome, Trials
from .options import check_groups, check_number, check_objective, per_parameter, trainable_size
from .report import StepReport

DAMPING_RANGE = (1e-12, 1e12)
"""Adapted damping stays in here, so that it can always come back by factors."""


class HessianFree(Optimizer):
    """Hessian-free optimization: truncated Newton steps by conjugate gradients on curvature products.

    One step (Tatzel et al. 2022, Algorithm 1): gradient and curvature on the objective's data; conjugate gradients on
    the damped quadratic model, started from the last solution; the best of its iterates, the damping of the next step
    and the step size are then judged by the loss on the evaluation objective. Give the evaluation objective data that
    the objective does not have: on the same data the progress is overestimated, and the steps become too large (the
    same paper, Appendix A.2).

    A step that meets a loss, gradient or product that is not finite, or whose line search fails, leaves the parameters
    as they were, forgets the start of the next conjugate gradients, and says so in `report`.

    Args:
        params: parameters or param groups. A group may set `lr`, `damping_scale` (a factor on the damping, default 1)
            and, with block_diagonal=True, `cg_tolerance` for itself; every other option is global.
        curvature: "ggn" (default; positive semi-definite for convex losses, which conjugate gradients need) or
            "hessian".
        damping: initial lambda of the damped curvature C + lambda I. Default 1.0 (Tatzel et al. 2022).
        adapt_damping: adapt lambda by the reduction ratio (`solve.levenberg_marquardt`). Default True.
        lr: first step size of the line search, or the step size itself without one. Default 1.0, the Newton step.
        line_search: Armijo's rule on the evaluation objective (`solve.armijo`). Default True: steadier where the
            damping is not yet right.
        cg_max_iter: cap on iterations of conjugate gradients. Default 250 (Martens 2010).
        cg_decay_x0: factor on the last solution where the next run starts. Default 0.95 (Martens and Sutskever 2012).
            A start that is worse than zero is scaled to its best multiple at no cost.
        cg_backtracking: choose among the iterates on a grid (`solve.backtrack`); else take the last. Default True.
        cg_stopping: "martens" (default) or "residual" (`solve.conjugate_gradient`).
        cg_tolerance: relative progress per iteration (default 5e-4, Martens 2010), or |r|/|b|.
        preconditioner: callable r [P] -> M^-1 r [P], symmetric positive definite; block-diagonal if the curvature is.
            Default none, as in the paper's experiments.
        nonpositive_curvature: "truncate" (default), "ignore" or "absolute" (`solve.conjugate_gradient`).
        curvature_dtype: dtype in which products run, loss and gradient staying in the parameters' own. Default that.
        compile: send products through `torch.compile` once a shape is traced, and on CUDA capture each iteration of
            conjugate gradients as a graph that is replayed. Default False: compiling takes some tens of seconds for
            each shape, so that it pays in long runs only.
        iterates_on_host: keep the candidates of conjugate gradients in the host's memory: about 20 vectors of the size
            of the parameters at 250 iterations. Default False.
        block_diagonal: curvature only within each param group (Zhang et al. 2017), see `layerwise`; each iteration
            costs one product per block for now. Default False.

    Attributes:
        report: `StepReport` of the last step; None before the first.

    Raises:
        ValueError: an unknown option value, or a global option that differs between groups.
    """

    report: StepReport | None = None
    _preconditioner: Callable[[Tensor], Tensor] | None = None
    _ranks_compared = False

    def __init__(
        self,
        params: Iterable[Any],
        curvature: str = "ggn",
        damping: float = 1.0,
        adapt_damping: bool = True,
        lr: float = 1.0,
        line_search: bool = True,
        cg_max_iter: int = 250,
        cg_decay_x0: float = 0.95,
        cg_backtracking: bool = True,
        cg_stopping: str = "martens",
        cg_tolerance: float = 5e-4,
        preconditioner: Callable[[Tensor], Tensor] | None = None,
        nonpositive_curvature: str = "truncate",
        curvature_dtype: torch.dtype | None = None,
        block_diagonal: bool = False,
        compile: bool = False,
        iterates_on_host: bool = False,
    ):
        if preconditioner is not None and not callable(preconditioner):
            raise ValueError(f"preconditioner must be None or a callable r -> M^-1 r, got {preconditioner!r}")
        defaults = {
            "lr": lr,
            "curvature": curvature,
            "damping": damping,
            "adapt_damping": adapt_damping,
            "damping_scale": 1.0,
            "line_search": line_search,
            "cg_max_iter": cg_max_iter,
            "cg_decay_x0": cg_decay_x0,
            "cg_backtracking": cg_backtracking,
            "cg_stopping": cg_stopping,
            "cg_tolerance": cg_tolerance,
            "nonpositive_curvature": nonpositive_curvature,
            "curvature_dtype": curvature_dtype,
            "block_diagonal": block_diagonal,
            "compile": compile,
            "iterates_on_host": iterates_on_host,
        }
        super().__init__(params, defaults)
        check_groups(self.param_groups)
        self._preconditioner = preconditioner

    @property
    def damping(self) -> float:
        """Lambda of the next step, adapted or initial; may be set."""
        return self._first_state().get("damping", self.param_groups[0]["damping"])

    @damping.setter
    def damping(self, value: float) -> None:
        check_number("damping", value)
        self._first_state()["damping"] = float(value)
        self._ranks_compared = False

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        objective: Objective,
        evaluation: Objective | None = None,
        curvature_objective: Objective | None = None,
    ) -> Tensor:
        """Take one step.

        Args:
            objective: gives loss and gradient.
            evaluation: gives the loss that chooses candidate, damping and step size. Default: the objective; better is
                one on other data.
            curvature_objective: gives the curvature, on a part of the data for example. Default: the objective.

        Returns:
            The objective's loss before the step, scalar.

        Raises:
            TypeError: a plain closure in place of an Objective.
            ValueError: a parameter that is not the model's, data that is not finite, objectives of different models,
                ranks with different parameters, or a global option that differs between groups.
        """
        started = time.perf_counter()
        evaluation = objective if evaluation is None else evaluation
        curvature_objective = objective if curvature_objective is None else curvature_objective
        objectives = {id(o): o for o in (objective, evaluation, curvature_objective)}.values()
        for each in objectives:
            check_objective(each, objective)
        check_groups(self.param_groups)
        space = objective.space([p for group in self.param_groups for p in group["params"]])
        self._compare_ranks(objective, space)
        for each in objectives:
            each.reseed()
        model = self._solve(objective, curvature_objective, space)
        if not model.finite:
            for each in objectives:
                each.check_data()
        outcome = self._try(model, evaluation, float(model.loss) if evaluation is objective else None)
        self._settle(model, outcome, objective)
        form = _form(curvature_objective)
        if form not in (known := self._known_forms()):
            self._first_state()["forms"] = [*known, form][-MAX_TRACES:]
        self.report = StepReport(
            loss=float(model.loss),
            new_loss=outcome.new_loss if evaluation is objective else None,
            evaluation_loss=outcome.loss,
            new_evaluation_loss=outcome.new_loss,
            gradient_norm=model.gradient_norm,
            step_norm=outcome.step_norm,
            damping=model.damping,
            reduction_ratio=outcome.ratio,
            lr=outcome.lr * float(self.param_groups[0]["lr"]),
            cg_iterations=model.cg.iterations,
            cg_status=model.cg.status,
            cg_chosen=outcome.iteration,
            products=model.products,
            method=model.method,
            recomputed=model.recomputed,
            accepted=outcome.vector is not None,
            seconds=time.perf_counter() - started,
        )
        return model.loss

    def _compare_ranks(self, objective: Objective, space: ParameterSpace) -> None:
        """At the first step, and the first after loading: every rank must start from the same numbers."""
        if self._ranks_compared:
            return
        start = self._start(space)
        start = torch.zeros((), device=space.device) if start is None else start
        damping = torch.tensor([self.damping], dtype=torch.float64, device=space.device)
        names = [*space.names, "start of conjugate gradients", "damping"]
        objective.reduce.check_equal([*space.parameters, start, damping], names)
        self._ranks_compared = True

    def _solve(self, objective: Objective, curvature_objective: Objective, space: ParameterSpace) -> LocalModel:
        """Gradient and curvature of the objective, and the iterates of conjugate gradients on them."""
        options = self.param_groups[0]
        same = curvature_objective is objective
        curved = linearize(
            curvature_objective,
            options["curvature"],
            space.parameters,
            options["curvature_dtype"],
            at_once=_form(curvature_objective) in self._known_forms(),
            compile=options["compile"],
        )
        linear = curved if same else linearize(objective, parameters=space.parameters, products=False)
        blocks, tolerances = self._blocks(space)
        multiply = block_diagonal(curved.matvec, blocks) if options["block_diagonal"] else curved.matvec
        scale = per_parameter(self.param_groups, "damping_scale", space)
        damping = self.damping
        downhill = -linear.gradient
        if not linear.loss.isfinite():
            downhill.fill_(math.nan)  # ends conjugate gradients at once, with the status that says why
        cg = conjugate_gradient(
            damped(multiply, damping * scale),
            downhill,
            self._start(space),
            preconditioner=self._preconditioner,
            max_iter=options["cg_max_iter"],
            stopping=options["cg_stopping"],
            tolerance=tolerances,
            block_sizes=blocks,
            nonpositive_curvature=options["nonpositive_curvature"],
            rescale_x0=True,
            share=objective.reduce.share,
            capture=options["compile"] and _may_be_captured(curved, options["block_diagonal"]),
            iterates_device="cpu" if options["iterates_on_host"] else None,
        )
        return LocalModel(
            space=space,
            loss=linear.loss,
            gradient=linear.gradient,
            gradient_norm=float(objective.reduce.share(linear.gradient.norm())),
            damping=damping,
            damping_scale=scale,
            cg=cg,
            products=max(cg.products, curved.products),  # a captured product is replayed without being counted
            method=curved.method,
            recomputed=curved.recomputed,
            buffers=linear.buffers,
        )

    def _known_forms(self) -> list[int]:
        """Forms of data that came before, so that a trace of them pays.

        This is state of the optimizer, not of the process, so that a run that is resumed takes the same steps.
        """
        return self._first_state().get("forms", [])

    def _try(self, model: LocalModel, evaluation: Objective, loss: float | None) -> Outcome:
        """Choose candidate and step size by the evaluation objective; nothing is written."""
        options = self.param_groups[0]
        if not model.finite:
            loss = math.nan if loss is None else loss
            return Outcome(loss, loss)
        trials = Trials(evaluation, model.space)
        if loss is None:
            loss = float(evaluation.value())
        if not math.isfinite(loss):
            evaluation.check_data()
            return Outcome(loss, loss)
        iterates = model.cg.iterates
        if options["cg_backtracking"]:
            chosen, candidate_loss, _ = backtrack(lambda index: trials.value(iterates[index]), len(iterates))
        else:
            chosen, candidate_loss = len(iterates) - 1, trials.value(iterates[-1])
        lr = per_parameter(self.param_groups, "lr", model.space)
        candidate = iterates[chosen].to(model.space.device)
        direction = candidate if isinstance(lr, float) and lr == 1 else lr * candidate
        known = candidate_loss if direction is candidate else None
        numbers = torch.stack([model.predicted(chosen), torch.dot(model.gradient, direction).double()])
        predicted, slope = evaluation.reduce.share(numbers).tolist()
        ratio = reduction_ratio(candidate_loss - loss, predicted)
        if options["line_search"]:
            search = armijo(lambda alpha: trials.value(alpha * direction), loss, slope, known=known)
            alpha, new_loss = search.lr, search.value
        else:
            alpha, new_loss = 1.0, trials.value(direction) if known is None else known
        accepted = alpha > 0 and math.isfinite(new_loss)
        step = alpha * direction
        return Outcome(
            loss=loss,
            new_loss=new_loss if accepted else loss,
            ratio=ratio,
            iteration=model.cg.indices[chosen],
            lr=alpha if accepted else 0.0,
            step_norm=float(step.norm()) if accepted else 0.0,
            vector=trials.point(step) if accepted else None,
        )

    def _settle(self, model: LocalModel, outcome: Outcome, objective: Objective) -> None:
        """Write parameters and buffers if the step is accepted; keep the damping and the start of the next step."""
        if outcome.vector is not None:
            model.space.write(outcome.vector)
            objective.write_buffers(model.buffers)
        for p, x in zip(
            model.space.parameters, model.space.unflatten(model.cg.solution, model.space.dtype), strict=True
        ):
            if outcome.vector is None:
                self.state[p].pop("x0", None)
            else:
                self.state[p]["x0"] = x
        if self.param_groups[0]["adapt_damping"] and model.damping > 0:
            low, high = DAMPING_RANGE
            damping = min(max(levenberg_marquardt(model.damping, outcome.ratio), low), high)
            self._first_state()["damping"] = damping

    def _start(self, space: ParameterSpace) -> Tensor | None:
        """Where conjugate gradients start: the decayed last solution, zero for parameters that have none."""
        if not any("x0" in self.state[p] for p in space.parameters):
            return None
        starts = [self.state[p].get("x0", torch.zeros_like(p)) for p in space.parameters]
        return self.param_groups[0]["cg_decay_x0"] * space.flatten(starts)

    def _blocks(self, space: ParameterSpace) -> tuple[list[int], list[float]]:
        """Size and tolerance of each block: the param groups that can move, or all of them as one."""
        first = self.param_groups[0]
        if not first["block_diagonal"]:
            return [space.size], [float(first["cg_tolerance"])]
        groups = [(trainable_size(group), float(group["cg_tolerance"])) for group in self.param_groups]
        sizes, tolerances = zip(*[group for group in groups if group[0]], strict=True)
        return list(sizes), list(tolerances)

    def _first_state(self) -> dict[str, Any]:
        return self.state[next(p for group in self.param_groups for p in group["params"])]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; the start of conjugate gradients keeps its dtype, which may be wider than the parameters'."""
        super().load_state_dict(state_dict)
        self._ranks_compared = False
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        own = [p for group in self.param_groups for p in group["params"]]
        for index, p in zip(saved, own, strict=True):
            x0 = state_dict["state"].get(index, {}).get("x0")
            if x0 is not None:
                self.state[p]["x0"] = x0.to(p.device, copy=True)

    def __getstate__(self) -> dict[str, Any]:
        """What pickling and copying keep: beside torch's own, the last report and the preconditioner."""
        return super().__getstate__() | {"report": self.report, "_preconditioner": self._preconditioner}


def _may_be_captured(curved: Linearization, block_diagonal: bool) -> bool:
    """Whether a product enqueues the same work every time and reads nothing back."""
    return (
        curved.method == "traced" and not curved.recomputed and not block_diagonal and curved.objective.reduce.size == 1
    )


def _form(objective: Objective) -> int:
    """A number for the shapes of an objective's inputs: loading a torch optimizer's state mangles anything else."""
    leaves = [leaf for chunk in objective.chunks for leaf in tree_leaves(chunk.inputs) if is_tensor(leaf)]
    return zlib.crc32(repr(sorted({tuple(leaf.shape) for leaf in leaves})).encode())
