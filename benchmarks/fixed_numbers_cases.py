"""The cases of `fixed_numbers.py`: what takes the steps, on which task, and from which objectives.

This is the place that changes where the library's options are spelt otherwise. Results are kept by the names of the
cases, which stay.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from fixed_numbers_tasks import Task
from torch import Tensor, nn

from latephase import (
    CG,
    GGN,
    KFAC,
    SGDQLR,
    AdamQLR,
    Blocks,
    DecreasingLoss,
    EmpiricalFisher,
    Fixed,
    GGNDiagonal,
    HessianFree,
    Kronecker,
    KroneckerFactors,
    LevenbergMarquardt,
    Nystrom,
    Objective,
    QuadraticLearningRate,
    by_module,
    layerwise,
)

STEPS = 50
Make = Callable[[nn.Module], Any]
Feed = Callable[[Task, nn.Module, int], dict[str, Objective]]


def own(task: Task, model: nn.Module, step: int, **options: Any) -> dict[str, Objective]:
    """One objective for everything."""
    return {"objective": task.objective(model, task.data(step)[0], **options)}


def judged(task: Task, model: nn.Module, step: int, **options: Any) -> dict[str, Objective]:
    """Other data judge the step."""
    batch, judging = task.data(step)
    return {
        "objective": task.objective(model, batch, **options),
        "evaluation": task.objective(model, judging, **options),
    }


def part(task: Task, model: nn.Module, step: int) -> dict[str, Objective]:
    """Other data judge the step, and the curvature is that of a part of the batch."""
    given = judged(task, model, step)
    return given | {"curvature_objective": given["objective"].subsample(24, torch.Generator().manual_seed(step))}


def cut(task: Task, model: nn.Module, step: int) -> dict[str, Objective]:
    """Chunks of uneven size."""
    (inputs, targets), judging = task.data(step)
    chunks = list(zip(inputs.split([70, 36, 22]), targets.split([70, 36, 22]), strict=True))
    return {"objective": task.objective(model, chunks), "evaluation": task.objective(model, judging)}


def in_microbatches(task: Task, model: nn.Module, step: int) -> dict[str, Objective]:
    """Microbatches, the last a short one."""
    return judged(task, model, step, microbatch_size=48)


def recomputed(task: Task, model: nn.Module, step: int) -> dict[str, Objective]:
    """Microbatches, of which products may keep nothing."""
    return judged(task, model, step, microbatch_size=48, memory_limit=0)


def undecayed(task: Task, model: nn.Module, step: int) -> dict[str, Objective]:
    """No L2 term."""
    return judged(task, model, step, weight_decay=0.0)


def decayed(task: Task, model: nn.Module, step: int) -> dict[str, Objective]:
    """A strong L2 term on all parameters."""
    return judged(task, model, step, weight_decay=0.01)


def same_data(task: Task, model: nn.Module, step: int) -> dict[str, Objective]:
    """The same data in every step."""
    return judged(task, model, 0)


@dataclass(frozen=True)
class Case:
    """Steps of one optimizer.

    Attributes:
        task: name of the task.
        make: model -> optimizer.
        feed: (task, model, step) -> arguments of the step.
        dtype: of the parameters.
        training: whether the model is in training mode.
        resumed: the step before which another optimizer takes over the state dict; none: 0.
        schedule: factor on the rate at each step.
    """

    task: str
    make: Make
    feed: Feed = judged
    dtype: torch.dtype = torch.float64
    training: bool = False
    resumed: int = 0
    schedule: float = 1.0


def momentum(model: nn.Module) -> torch.optim.Optimizer:
    """Gradient descent with momentum, as a base."""
    return torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW, as a base."""
    return torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.01)


def first_layer_apart(model: nn.Module, **settings: Any) -> list[dict[str, Any]]:
    """Two param groups, the first with settings of its own."""
    first, *others = model.parameters()
    return [{"params": [first], **settings}, {"params": others}]


def diagonal(residual: Tensor) -> Tensor:
    """A preconditioner of one's own: a fixed diagonal."""
    return residual / torch.linspace(1.0, 2.0, len(residual), dtype=residual.dtype)


def cg(**fields: Any) -> CG:
    """Conjugate gradients, 12 iterations where the fields do not say it."""
    given: dict[str, Any] = {"max_iter": 12} | fields
    return CG(**given)


def hf(preset: str = "", **options: Any) -> Make:
    """HessianFree on all parameters, 12 iterations and damping 0.1 where neither preset nor options say it."""
    if preset:
        return lambda model: getattr(HessianFree, preset)(model.parameters(), **options)
    return grouped(lambda model: model.parameters(), **options)


def grouped(groups: Callable[[nn.Module], Any], **options: Any) -> Make:
    """HessianFree on param groups, 12 iterations and damping 0.1 where the options do not say it."""
    options = {"solver": cg(), "damping": 0.1} | options
    return lambda model: HessianFree(groups(model), **options)


def kfac(preset: str = "", **options: Any) -> Make:
    """KFAC on all parameters."""
    return lambda model: (getattr(KFAC, preset) if preset else KFAC)(model.parameters(), **options)


def adamqlr(**options: Any) -> Make:
    """AdamQLR on all parameters."""
    return lambda model: AdamQLR(model.parameters(), **options)


TUNED = LevenbergMarquardt(1.0, factors=(0.95, 1.0526), range=(1e-8, math.inf), model="damped")
RATIO = LevenbergMarquardt(1.0, factors=(0.9, 2.0), range=(0.0, math.inf), model="damped")
"""The rule of AdamQLR with the numbers of SGDQLR."""


def quadratic(base: Make, **options: Any) -> Make:
    """A quadratic learning rate over a base."""
    return lambda model: QuadraticLearningRate(base(model), **options)


OPTIMIZERS: dict[str, tuple[Make, Feed]] = {
    "hessian_free": (hf(), judged),
    "late_phase": (hf("late_phase"), judged),
    "kfac": (kfac(), own),
    "adamqlr": (adamqlr(), own),
    "sgdqlr": (lambda model: SGDQLR(model.parameters()), own),
    "quadratic_sgd": (quadratic(momentum), own),
    "quadratic_adam": (quadratic(adam, damping=0.1), own),
}
"""Each takes steps on each of `EVERYWHERE`."""
EVERYWHERE = ("digits", "transformer", "recurrent", "convection", "reaction")

HESSIAN_FREE: dict[str, Case] = {
    "default": Case("small", hf(solver=cg(max_iter=250), damping=1.0)),
    "own_batch": Case("small", hf(), own),
    "same_data": Case("small", hf(), same_data),
    "part_of_curvature": Case("small", hf(), part),
    "late_phase_part": Case("small", hf("late_phase"), part),
    "chunks": Case("small", hf(), cut),
    "microbatches": Case("small", hf(), in_microbatches),
    "recomputed": Case("small", hf(), recomputed),
    "no_decay": Case("small", hf(), undecayed),
    "decay": Case("small", hf(), decayed),
    "hessian_truncate": Case("small", hf(curvature="hessian", damping=1e-3)),
    "hessian_ignore": Case("small", hf(curvature="hessian", damping=1e-3, solver=cg(nonpositive_curvature="ignore"))),
    "hessian_absolute": Case(
        "small", hf(curvature="hessian", damping=1e-3, solver=cg(nonpositive_curvature="absolute"))
    ),
    "hessian_convection": Case("convection", hf(curvature="hessian")),
    "stopping_residual": Case("small", hf(solver=cg(stopping="residual", tolerance=0.1))),
    "stopping_martens": Case("small", hf(solver=cg(max_iter=60, tolerance=5e-3))),
    "no_line_search": Case("small", hf(line_search=False)),
    "last_iterate": Case("small", hf(solver=cg(candidates="last"))),
    "cold_start": Case("small", hf(solver=cg(warm_start=0.0))),
    "fixed_damping": Case("small", hf(damping=Fixed(0.1))),
    "no_damping": Case("small", hf(damping=0.0, solver=cg(max_iter=5))),
    "damping_rule": Case("small", hf(damping=LevenbergMarquardt(10.0, thresholds=(0.1, 0.6), factors=(0.5, 4.0)))),
    "damping_range": Case("small", hf(damping=LevenbergMarquardt(0.5, range=(0.2, 1.0)))),
    "ratio_damped": Case("small", hf(damping=LevenbergMarquardt(0.1, model="damped"))),
    "ratio_on_objective": Case("small", hf(damping=LevenbergMarquardt(0.1, data="objective"))),
    "iterates_on_host": Case("small", hf(solver=cg(on_host=True))),
    "max_step_norm": Case("small", hf(solver=cg(max_step_norm=0.05))),
    "rate": Case("small", hf(lr=0.5), schedule=0.97),
    "products_in_float32": Case("small", hf(curvature=GGN(dtype=torch.float32))),
    "float32": Case("small", hf(), dtype=torch.float32),
    "debias": Case("small", hf(debias=True)),
    "debias_digits": Case("digits", hf(debias=True)),
    "dropout": Case("dropout", hf(), training=True),
    "batch_norm": Case("batch_norm", hf(), training=True),
    "resumed": Case("small", hf(solver=cg(preconditioner=Nystrom(rank=5, every=4))), resumed=22),
    "structural_damping": Case("recurrent", hf(curvature=GGN(structural_damping=1 / 30))),
    "structural_damping_strong": Case("recurrent", hf(curvature=GGN(structural_damping=1.0), damping=0.1)),
    "empirical_fisher": Case("small", hf(solver=cg(preconditioner="empirical_fisher"))),
    "empirical_fisher_digits": Case("digits", hf(solver=cg(preconditioner=EmpiricalFisher(every=3)))),
    "ggn_diagonal": Case("small", hf(solver=cg(preconditioner="ggn_diagonal"))),
    "ggn_diagonal_transformer": Case("transformer", hf(solver=cg(preconditioner=GGNDiagonal(every=5)))),
    "nystrom": Case("small", hf(solver=cg(preconditioner="nystrom"))),
    "nystrom_reaction": Case("reaction", hf(solver=cg(preconditioner=Nystrom(rank=8, every=5)))),
    "kfac": Case("small", hf(solver=cg(preconditioner="kfac"))),
    "kfac_digits": Case("digits", hf(solver=cg(preconditioner=Kronecker()))),
    "own_preconditioner": Case("small", hf(solver=cg(preconditioner=diagonal))),
    "blocks_layerwise": Case("small", grouped(layerwise, blocks=True)),
    "blocks_by_module": Case("digits", grouped(lambda m: by_module(m, ["0", "2", "6", "8"]), blocks=True)),
    "blocks_transformer": Case("transformer", grouped(layerwise, blocks=True)),
    "blocks_recurrent": Case("recurrent", grouped(layerwise, blocks=True)),
    "blocks_kfac": Case("small", grouped(layerwise, blocks=True, solver=cg(preconditioner="kfac"))),
    "blocks_nystrom": Case("small", grouped(layerwise, blocks=True, solver=cg(preconditioner="nystrom"))),
    "blocks_hessian": Case("small", grouped(layerwise, blocks=True, curvature="hessian")),
    "blocks_sampled": Case("digits", grouped(layerwise, blocks=Blocks(samples=2))),
    "blocks_tolerance": Case(
        "small",
        grouped(lambda m: first_layer_apart(m, tolerance=0.05, damping_scale=3.0), blocks=True),
    ),
    "fixed_rate": Case("small", lambda model: HessianFree.fixed_rate(layerwise(model), lr=0.5, damping=0.1)),
    "groups": Case("small", grouped(lambda m: first_layer_apart(m, lr=0.5, damping_scale=2.0))),
}
"""One or two options at a time, most of them on the small network."""

OTHERS: dict[str, Case] = {
    "kfac-adaptive": Case("small", kfac("adaptive"), own),
    "kfac-unadaptive": Case("small", kfac("unadaptive"), own),
    "kfac-evaluation": Case("small", kfac(), judged),
    "kfac-no_momentum": Case("small", kfac(momentum=0.0), own),
    "kfac-fixed": Case("small", kfac(lr=0.05, momentum=0.9, damping=0.1), own, schedule=0.97),
    "kfac-ratio_damped": Case("small", kfac(damping={"model": "damped"}, adapt_period=2), own),
    "kfac-periods": Case("small", kfac(factors=KroneckerFactors(period=2, inverse_period=7, decay=0.8, probes=2)), own),
    "kfac-reduce": Case("digits", kfac(factors=KroneckerFactors(weight_sharing="reduce")), own),
    "kfac-groups": Case("small", lambda model: KFAC(first_layer_apart(model, lr=0.5)), own),
    "kfac-chunks": Case("small", kfac(), cut),
    "kfac-resumed": Case("small", kfac(), own, resumed=22),
    "adamqlr-untuned": Case("small", adamqlr(), own),
    "adamqlr-tuned": Case("small", adamqlr(damping=TUNED), own),
    "adamqlr-untuned_clipped": Case("small", adamqlr(lr_clip=0.1), own),
    "adamqlr-undamped": Case("small", adamqlr(damping=Fixed(0.0), lr_clip=0.05), own),
    "adamqlr-hessian": Case("small", adamqlr(damping=TUNED, curvature="hessian"), own),
    "adamqlr-hessian_untuned": Case(
        "small", adamqlr(curvature="absolute_hessian", damping=DecreasingLoss(1e-4, factors=(0.75, 2.0))), own
    ),
    "adamqlr-amplified": Case("small", adamqlr(damping=DecreasingLoss(), amplification=0.5), own),
    "adamqlr-ratio_undamped": Case("small", adamqlr(damping={"model": "undamped"}), own, schedule=0.97),
    "adamqlr-resumed": Case("small", adamqlr(), own, resumed=22),
    "sgdqlr-ratio": Case("small", lambda model: SGDQLR(model.parameters(), damping=RATIO), own),
    "sgdqlr-groups": Case("batch_norm", lambda model: SGDQLR(first_layer_apart(model)), own, training=True),
}

CASES: dict[str, Case] = (
    {f"{name}@{where}": Case(where, make, feed) for where in EVERYWHERE for name, (make, feed) in OPTIMIZERS.items()}
    | {f"hessian_free-{name}": case for name, case in HESSIAN_FREE.items()}
    | OTHERS
)
"""By name: OPTIMIZER@TASK, or OPTIMIZER-SETTING."""

GONE: dict[str, str] = {}
"""Cases that the library no longer has, and why: they count as no difference."""

RENAMED: dict[str, str] = {
    "options.damping.initial": "options.damping",
    "options.damping.factors.0": "options.damping_factors.0",
}
"""Fields of reports and columns of tables: today's name -> the one in the stored file."""
