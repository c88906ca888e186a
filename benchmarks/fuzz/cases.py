"""What a trial may be: model, loss, data and options, drawn by the trial's number."""

import dataclasses
import math
import random
from typing import Any

import torch
from torch import Tensor, nn

from latephase import KFAC, SGDQLR, AdamQLR, HessianFree, Objective, QuadraticLearningRate, layerwise
from latephase.curvature.preconditioners import EmpiricalFisher, GGNDiagonal, Kronecker, Nystrom

from .networks import CLASSES, CLASSIFYING, FEATURES, MODELS, REGRESSING

SETTING: dict[str, list[Any]] = {
    "optimizer": ["HessianFree"] * 5 + ["KFAC", "AdamQLR", "SGDQLR", "momentum", "AdamW"],
    "model": [*MODELS, "tanh", "tanh"],
    "loss": [*CLASSIFYING, *REGRESSING, "cross_entropy", "squared"],
    "dtype": [torch.float64, torch.float64, torch.float32, torch.float32, torch.bfloat16, torch.float16],
    "rows": [1, 2, 7, 13],
    "data": ["normal"] * 6 + ["zeros", "equal", "one_class", "outlier", "nan", "infinite", "subnormal", "empty"],
    "input_scale": [1.0] * 4 + [1e-12, 1e-4, 30.0, 1e4, 1e12],
    "target_scale": [1.0] * 4 + [1e-12, 1e-4, 1e4, 1e12],
    "parameter_scale": [1.0] * 6 + [0.0, 1e-12, 1e-3, 1e3, 1e12],
    "chunks": [None, None, 1, 5, "auto"],
    "weight_decay": [0.0, 0.0, 0.01, 1e6, 1e-12],
    "evaluation": ["none", "none", "same", "copy", "other", "other"],
    "curved": ["none", "none", "none", "part"],
    "rates": [None, None, (0.5, 2.0), (1.0, 0.0)],
    "damping_scales": [None, None, (1.0, 0.0), (0.1, 10.0)],
    "steps": [3, 4],
}

_FINITE_RANGES = [(1e-12, 1e12), (1e-12, 1e12), (0.0, math.inf), (1e-10, 300.0)]

HESSIAN_FREE: dict[str, list[Any]] = {
    "curvature.kind": ["ggn", "ggn", "hessian"],
    "damping.initial": [0.0, 1e-12, 1e-4, 0.03, 1.0, 1.0, 300.0, 1e12],
    "damping.fixed": [False, False, True],
    "lr": [0.0, 1e-12, 1e-3, 0.5, 1.0, 1.0, 1.0, 4.0],
    "line_search": [True, True, True, False],
    "solver.max_iter": [1, 2, 7, 30, 100],
    "solver.warm_start": [0.0, 0.5, 0.95, 1.0, 3.0],
    "solver.candidates": ["best", "best", "last"],
    "solver.stopping": ["martens", "martens", "residual"],
    "solver.tolerance": [0.0, 1e-12, 5e-4, 0.5],
    "solver.nonpositive_curvature": ["truncate", "ignore", "absolute"],
    "curvature.dtype": [None, None, None, None, torch.float32, torch.float64, torch.bfloat16],
    "blocks": [False, False, True],
    "solver.on_host": [False, False, True],
    "damping.thresholds": [(0.25, 0.75), (0.25, 0.75), (0.5, 0.5), (0.0, 0.0), (-2.0, 3.0), (0.9, 0.99)],
    "damping.factors": [(2 / 3, 3 / 2), (2 / 3, 3 / 2), (1.0, 1.0), (0.01, 100.0), (1e-12, 1e12)],
    "damping.range": _FINITE_RANGES,
    "damping.model": ["undamped", "undamped", "damped"],
    "damping.data": ["evaluation", "evaluation", "objective"],
    "curvature.structural_damping": [0.0, 0.0, 0.0, 1 / 30, 10.0],
    "solver.max_step_norm": [None, None, 1e-12, 0.1, 10.0, 1e12],
    "debias": [False, False, False, True],
    "solver.preconditioner": [
        None, None, "empirical_fisher", "ggn_diagonal", "nystrom", "kfac",
        EmpiricalFisher(every=2, exponent=1.0), GGNDiagonal(probes=2, every=3), Nystrom(rank=3, every=2),
        Kronecker(every=2, probes=2, damping="exact"),
    ],
}  # fmt: skip
"""Fields of parts by option and name."""
KFAC_OPTIONS: dict[str, list[Any]] = {
    "lr": [None, None, 1e-12, 0.1, 1.0],
    "momentum": [None, None, 0.0, 0.9],
    "damping.initial": [1e-12, 1e-4, 1.0, 1.0, 300.0, 1e12],
    "damping.fixed": [False, False, True],
    "damping.factors": [(0.95, 1 / 0.95), (0.95, 1 / 0.95), (0.1, 10.0), (1e-200, 1e200)],
    "damping.range": [(1e-8, math.inf), (1e-8, math.inf), (1e-12, 1e12)],
    "damping.model": ["undamped", "damped"],
    "adapt_period": [1, 2, 5],
    "factors.period": [1, 1, 2],
    "factors.inverse_period": [1, 2, 5],
    "factors.decay": [0.0, 0.95, 0.999],
    "factors.probes": [1, 2],
    "factors.weight_sharing": ["expand", "reduce"],
}
QUADRATIC: dict[str, list[Any]] = {
    "curvature": ["ggn", "ggn", "hessian", "absolute_hessian"],
    "damping.initial": [0.0, 1e-12, 1e-3, 1.0, 1e12],
    "damping.fixed": [False, False, True],
    "damping.kind": ["levenberg_marquardt", "levenberg_marquardt", "decreasing_loss"],
    "damping.factors": [(0.5, 2.0), (0.5, 2.0), (1e-12, 1e12)],
    "damping.range": [(1e-8, math.inf), (1e-8, math.inf), (0.0, math.inf), (1e-12, 1e12)],
    "damping.model": ["damped", "undamped"],
    "lr_clip": [None, None, 1e-12, 0.1, 1e12],
    "amplification": [1.0, 1.0, 0.5, 1e-12],
}


@dataclasses.dataclass(frozen=True)
class Trial:
    """One configuration.

    Attributes:
        number: of the trial, from which everything is drawn.
        setting: model, loss, data and how they are put together.
        options: of the optimizer.
    """

    number: int
    setting: dict[str, Any]
    options: dict[str, Any]

    def as_text(self) -> dict[str, Any]:
        """For a row of JSON."""
        return {"setting": {k: str(v) for k, v in self.setting.items()}} | {
            "options": {k: str(v) for k, v in self.options.items()}
        }


def draw(number: int) -> Trial:
    """The trial of this number; half of them differ from the defaults in a few options only."""
    generator = random.Random(number)
    setting = {name: generator.choice(values) for name, values in SETTING.items()}
    table = {"HessianFree": HESSIAN_FREE, "KFAC": KFAC_OPTIONS}.get(setting["optimizer"], QUADRATIC)
    options = {name: generator.choice(values) for name, values in table.items()}
    if generator.random() < 0.9:  # else combinations that are documented errors
        if setting["model"] != "recurrent":
            options.pop("curvature.structural_damping", None)
        if setting["evaluation"] in ("none", "same"):
            options.pop("debias", None)
    if generator.random() < 0.5:
        kept = generator.sample(sorted(options), min(3, len(options)))
        options = {name: value for name, value in options.items() if name in kept}
    return Trial(number, setting, options)


def model_of(trial: Trial) -> nn.Module:
    """The model, its parameters drawn by the number of the trial."""
    torch.manual_seed(trial.number)
    model = MODELS[trial.setting["model"]]().to(trial.setting["dtype"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(trial.setting["parameter_scale"])
    return model


def in_parts(options: dict[str, Any]) -> dict[str, Any]:
    """Options, the fields of each part in a table; a damping that stays has its value alone."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        option, _, field = name.partition(".")
        if field:
            found.setdefault(option, {})[field] = value
        else:
            found[option] = value
    if "damping" in found and found["damping"].pop("fixed", False):
        found["damping"] = {"kind": "fixed", "value": found["damping"].get("initial", 1.0)}
    return found


def optimizer_of(trial: Trial, model: nn.Module) -> HessianFree | KFAC | QuadraticLearningRate:
    """The optimizer with its options; param groups by layer where rates are to differ."""
    groups = [dict(group) for group in layerwise(model)]
    kind = trial.setting["optimizer"]
    own: dict[str, Any] = {"lr": trial.setting["rates"]} if kind in ("HessianFree", "KFAC") else {}
    if kind == "HessianFree":
        own["damping_scale"] = trial.setting["damping_scales"]
    for name, values in own.items():
        if values is not None:
            groups[0][name], groups[-1][name] = values
    options = in_parts(trial.options)
    match kind:
        case "HessianFree":
            return HessianFree(groups, **options)
        case "KFAC":
            return KFAC(groups, **options)
        case "AdamQLR":
            return AdamQLR(groups, **options)
        case "SGDQLR":
            return SGDQLR(groups, **options)
        case "momentum":
            return QuadraticLearningRate(torch.optim.SGD(groups, lr=0.1, momentum=0.9), **options)
    return QuadraticLearningRate(torch.optim.AdamW(groups, lr=0.1, amsgrad=True), **options)


def batch(trial: Trial, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs [rows, 4] and targets, as the setting wants them spoilt."""
    setting, rows = trial.setting, trial.setting["rows"]
    kind = setting["data"]
    rows = 0 if kind == "empty" else rows
    inputs = torch.randn(rows, FEATURES, generator=generator, dtype=torch.float64) * setting["input_scale"]
    targets = torch.randn(rows, CLASSES, generator=generator, dtype=torch.float64) * setting["target_scale"]
    classes = torch.randint(CLASSES, (rows,), generator=generator)
    match kind:
        case "zeros":
            inputs, targets = inputs * 0, targets * 0
        case "equal":
            inputs, targets = inputs[:1].expand(rows, -1).clone(), targets[:1].expand(rows, -1).clone()
        case "one_class":
            classes = classes * 0
        case "outlier":
            inputs[0] *= 1e6
        case "nan":
            inputs[-1, 0] = math.nan
        case "infinite":
            inputs[-1, 0] = math.inf
        case "subnormal":
            inputs, targets = inputs * 1e-310, targets * 1e-310
    if setting["loss"] in CLASSIFYING:
        return inputs.to(setting["dtype"]), classes
    return inputs.to(setting["dtype"]), targets.to(setting["dtype"])


def objectives_of(trial: Trial, model: nn.Module, step: int) -> tuple[tuple[Any, ...], Objective]:
    """The arguments of a step, and the objective that judges it."""
    setting = trial.setting
    generator = torch.Generator().manual_seed(1000 * trial.number + step)
    loss = (CLASSIFYING | REGRESSING)[setting["loss"]]()
    loss = loss.to(setting["dtype"]) if isinstance(loss, nn.Module) else loss

    def objective(data: tuple[Tensor, Tensor]) -> Objective:
        options = {"microbatch_size": setting["chunks"], "weight_decay": setting["weight_decay"]}
        return Objective(model, loss, data, **options)

    data = batch(trial, generator)
    first = objective(data)
    evaluation = {
        "none": lambda: None,
        "same": lambda: first,
        "copy": lambda: objective(data),
        "other": lambda: objective(batch(trial, generator)),
    }[setting["evaluation"]]()
    kind = setting["optimizer"]
    if kind not in ("HessianFree", "KFAC"):
        return (first,), first
    if kind == "KFAC":
        return (first, evaluation), first if evaluation is None else evaluation
    curved = objective(batch(trial, generator)) if setting["curved"] == "part" else None
    return (first, evaluation, curved), first if evaluation is None else evaluation
