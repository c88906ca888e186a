"""The Kronecker factors of K-FAC over its steps: moving averages, and damped inverses that are kept for a while."""

import math
from typing import Any

import torch
from torch import Tensor

from ...curvature import Estimate, Kronecker, Linearization, blocks_of, diagonal_inverse, factored, floored
from ...parameters import ParameterSpace
from .options import KroneckerFactors

YOUNG = 3
"""Averages of so few estimates are inverted whatever the period is (Martens and Grosse 2015, Algorithm 2)."""

Factors = dict[str, Any]
"""What is kept: "count" of estimates so far, "stale" where the averages have moved since the inverses were made,
"moments" (`curvature.preconditioners.Kronecker.moments`, averaged) and "inverses" of their blocks' factors, damped."""


def renewed(
    kept: Factors | None, curved: Linearization, options: KroneckerFactors, step: int, damping: float
) -> tuple[Factors, bool]:
    """The factors that a step uses, and whether they were estimated anew; what was kept stays as it is.

    Args:
        kept: of the last step; none at first.
        curved: the curvature at the current parameters.
        options: how they are kept.
        step: number of steps taken before.
        damping: lambda.
    """
    size = curved.space.size
    if kept is not None and len(kept["moments"]["diagonal"]) != size:
        kept = None
    due = kept is None or step % options.period == 0
    if due:
        method = Kronecker(probes=options.probes, weight_sharing=options.weight_sharing)
        kept = _averaged(kept, method.moments(curved, [size]), options.decay)
    assert kept is not None
    wanted = kept["count"] <= YOUNG or step % options.inverse_period == 0
    if not kept["inverses"] or (kept["stale"] and wanted):
        kept = kept | {"stale": 0, "inverses": _inverses(kept["moments"], damping)}
    return kept, due


def _averaged(kept: Factors | None, found: Estimate, decay: float) -> Factors:
    """The moving average, epsilon = min(1 - 1/k, decay) at estimate k (Martens and Grosse 2015, Section 5)."""
    old = {} if kept is None else kept["moments"]
    if kept is None or _layout(old) != _layout(found):  # the model runs through other layers than before
        return {"count": 1, "stale": 1, "moments": found, "inverses": {}}
    count = kept["count"] + 1
    weight = 1 - min(1 - 1 / count, decay)
    moments = {name: found[name] if name == "layers" else torch.lerp(old[name], found[name], weight) for name in found}
    return kept | {"count": count, "stale": 1, "moments": moments}


def _layout(moments: Estimate) -> Any:
    return moments["layers"].tolist(), {name: moment.shape for name, moment in moments.items()}


def finite(factors: Factors) -> Tensor:
    """Whether all averages are, 1.0 or 0.0: no entry of a factor is larger than the largest of its diagonal."""
    moments = [moment for name, moment in factors["moments"].items() if name != "layers"]
    diagonals = torch.cat([moment if moment.dim() == 1 else moment.diagonal() for moment in moments])
    return diagonals.isfinite().all().double()


def _inverses(moments: Estimate, damping: float) -> Estimate:
    """The inverses of A + pi sqrt(level), "i.inputs" of block i, and of B + sqrt(level) / pi, "i.slopes".

    That of B + level where there is no A. The level is the mean of wd + lambda over the block.
    """
    ridge, found = moments["diagonal"] + damping, {}
    for index, block in enumerate(blocks_of(moments)):
        level, b = block.level(ridge), moments[block.slopes]
        if block.inputs:
            a = moments[block.inputs]
            on_a, on_b = factored(level, a.diagonal().mean(), b.diagonal().mean())
            found[f"{index}.inputs"] = _inverse(a, on_a)
            found[f"{index}.slopes"] = _inverse(b, on_b)
        else:
            found[f"{index}.slopes"] = _inverse(b, level)
    return found


def _inverse(factor: Tensor, ridge: Tensor) -> Tensor:
    """(F + ridge I)^-1, the ridge at least the rounding of F's largest eigenvalue, by Cholesky's decomposition.

    Eigenvectors take seven times as long (785 inputs, float32, one core: 51 ms and 7 ms); they serve where the
    decomposition fails, F being singular to rounding. Not a number where F is not finite.
    """
    ridge = torch.maximum(ridge, torch.finfo(factor.dtype).eps * factor.diagonal().sum())
    damped = (factor + factor.T) / 2 + torch.diag(ridge.expand(len(factor)))
    lower, failed = torch.linalg.cholesky_ex(damped)
    if not failed:
        return torch.cholesky_inverse(lower)
    if not damped.isfinite().all():
        return torch.full_like(damped, math.nan)
    # In float32 it may not converge.
    values, vectors = (each.to(damped.dtype) for each in torch.linalg.eigh(damped.double()))
    return (vectors / floored(values.clamp(min=0))) @ vectors.T


def preconditioned(factors: Factors, r: Tensor, damping: float) -> Tensor:
    """F^-1 r [P]: the damped inverses as they were made, and the diagonal with lambda as it is now."""
    moments, inverses = factors["moments"], factors["inverses"]
    result = diagonal_inverse(moments["diagonal"], damping, 1.0, [len(r)])(r)
    for index, block in enumerate(blocks_of(moments)):
        matrix = inverses[f"{index}.slopes"] @ block.read(r)
        block.write(matrix @ inverses[f"{index}.inputs"] if block.inputs else matrix, result)
    return result


def diagonal_layers(factors: Factors, model: torch.nn.Module, space: ParameterSpace) -> tuple[str, ...]:
    """Names of the modules with parameters that have a diagonal block, in model order."""
    covered = {start for block in blocks_of(factors["moments"]) for start, _ in block.pieces}
    starts, begin = {}, 0
    for p, size in zip(space.parameters, space.sizes, strict=True):
        starts[id(p)], begin = begin, begin + size
    return tuple(
        name or type(model).__name__
        for name, module in model.named_modules()
        if any(starts.get(id(p)) not in covered for p in module._parameters.values() if id(p) in starts)
    )
