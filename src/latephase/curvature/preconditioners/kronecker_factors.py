"""Kronecker factors of the Gauss-Newton matrix of linear and convolutional layers."""

import contextlib
import warnings
import weakref
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ...objective import (
    Chunk,
    LossOfOutputs,
    Objective,
    differentiable_kernels,
    loss_reduction,
    random_signs,
    seed_of_chunk,
)
from ..linearization import Linearization
from ..loss import MOST_COLUMNS, Product, root_of_any
from .base import owners
from .layer_calls import called_once, calls_of
from .layer_moments import Layer, LayerMoments

LAYERS = (nn.Linear, nn.Conv2d)

WEIGHT_SHARING = ("expand", "reduce")
"""What is made of a layer's positions (Eschenhagen et al. 2023)."""
_warned: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()
OTHERWISE = "use HessianFree, alone or with the preconditioner 'ggn_diagonal' or 'nystrom'"


def supported_layers(curved: Linearization, blocks: Sequence[int]) -> list[Layer]:
    """The linear and two-dimensional convolutional layers that get factors.

    That is those that the model calls once in a pass, with one tensor, and whose parameters are used nowhere else
    (`LayerUses`); of the convolutions those in one group that pad with zeros, as much before as behind. Found out on up
    to eight examples. A warning names, once for each model, layers that look as if they had factors and have none.

    Args:
        curved: the curvature.
        blocks: sizes of the consecutive blocks; a weight and a bias are joint where they are in the same.
    """
    model, space = curved.objective.model, curved.space
    holders = owners(model)
    starts = dict(zip(map(id, space.parameters), accumulate([0, *space.sizes[:-1]]), strict=True))
    ends = list(accumulate(blocks))
    candidates: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        own = {key: p for key, p in module.named_parameters() if id(p) in starts}
        named = bool(own) and set(own) <= {"weight", "bias"} and module._parameters.get("weight") is not None
        if isinstance(module, LAYERS) and named and not any(holders[id(p)] > 1 for p in own.values()):
            candidates[name] = module
    inside: set[str] = set()
    once = called_once(
        curved.objective, candidates, lambda chunk: calls_of(curved.objective, chunk, candidates, inside)
    )
    found, without = [], {}
    for name, in_the_way in once.items():
        module = candidates[name]
        if not _padded_evenly(module):
            continue
        if obstacle := _several_groups(module) or in_the_way:
            without[name] = obstacle
            continue
        weight, bias = (starts.get(id(module._parameters[key]), -1) for key in ("weight", "bias"))
        joint = weight >= 0 and bias >= 0 and bisect_right(ends, weight) == bisect_right(ends, bias)
        shape = module.get_parameter("weight").shape
        found.append(Layer(name, weight, bias, shape[1:].numel(), shape[0], joint))
    _warn(model, without, [layer.name for layer in found if layer.name in inside])
    return found


def _warn(model: nn.Module, without: Mapping[str, str], inside: Sequence[str]) -> None:
    """Say once for each model which layers have no factors, and which have factors that know only a part."""
    if model in _warned or not (without or inside):
        return
    _warned.add(model)
    named = {name: repr(name or type(model).__name__) for name in (*without, *inside)}
    if without:
        reasons = "; ".join(f"{named[name]}: {reason}" for name, reason in without.items())
        warnings.warn(f"layers that get a diagonal instead of Kronecker factors: {reasons}", stacklevel=3)
    if inside:
        warnings.warn(
            f"Kronecker factors of the layers {', '.join(named[name] for name in inside)} are rough: derivatives of "
            "the network inside the pass use the weights, too, of which the factors know the layer's own inputs, and "
            "the slopes of all backward passes in one sum, so that their scale is none of the curvature's. KFAC takes "
            "its rate from the exact matrix and trains with them; as a preconditioner of HessianFree use 'nystrom', or "
            "none",
            stacklevel=3,
        )


def _several_groups(module: nn.Module) -> str | None:
    """The factor of the inputs would be that of the groups' mean input, too small and of no group."""
    groups = module.groups if isinstance(module, nn.Conv2d) else 1
    return f"a convolution in {groups} groups" if groups > 1 else None


def _padded_evenly(module: nn.Module) -> bool:
    """Whether a layer is no convolution, or one that pads with zeros, as much before as behind."""
    if not isinstance(module, nn.Conv2d):
        return True
    extents = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    return module.padding_mode == "zeros" and (module.padding != "same" or all(n % 2 == 0 for n in extents))


def kronecker_factors(
    curved: Linearization, layers: list[Layer], probes: int, seed: int, weight_sharing: str = "expand"
) -> list[Tensor]:
    """Of each layer in turn the factor A of its inputs (where its weight is in the space) and B of its slopes.

    A is the second moment of the inputs, a one beside them where the layer is joint. B is the sum of the second moments
    of the slopes of u'S'outputs in the layer's outputs, with random signs u and S a square root of the loss's Hessian
    as in `GGNDiagonal`: their expectation is that under the model's own distribution. Where a layer is used at R
    positions of each example, "expand" takes every position for an example of its own, with A their mean and B their
    sum; "reduce" first takes the mean of an example's inputs and the sum of its slopes over the positions (Eschenhagen
    et al. 2023, Sections 3.2 and 3.3).

    Args:
        curved: the curvature.
        layers: what `supported_layers` found.
        probes: number of random vectors.
        seed: of the signs.
        weight_sharing: "expand" or "reduce".

    Returns:
        Symmetric matrices, summed over chunks and ranks.

    Raises:
        ValueError: on every rank alike, where no root of the loss's Hessian is known.
    """
    objective, space = curved.objective, curved.space
    if not isinstance(objective.program, LossOfOutputs):
        raise ValueError(f"K-FAC does not know the loss of an objective made by from_forward; {OTHERWISE}")
    several = len(objective.chunks) * objective.reduce.size > 1 or objective.weights != [1.0]
    summed = several and loss_reduction(objective.program.loss) == "sum"
    weighed = sum(weight * chunk.rows for weight, chunk in zip(objective.weights, objective.chunks, strict=True))
    wide = torch.float32 if space.device.type == "mps" else torch.float64
    rows = float(objective.reduce.sum([torch.tensor(weighed, dtype=wide, device=space.device)])[0])
    sizes = [size for layer in layers for size in (layer.columns, layer.outputs) if size]

    def term(chunk: Chunk, index: int) -> tuple[Tensor, ...]:
        run = _Probed(objective, chunk, index, seed_of_chunk(seed, index, objective.reduce.rank))
        # With a sum over the examples the slopes are summed; the inputs are averaged over all data in any case, each
        # example's with the weight that it has in the sum.
        found = _of_chunk(run, curved, layers, probes, probes * (rows if summed else chunk.rows), weight_sharing)
        factors = found or [torch.zeros(size, size, dtype=space.dtype, device=space.device) for size in sizes]
        return torch.tensor(float(found is None), device=space.device), *factors

    unknown, *factors = objective.sum(term)
    if unknown > 0:
        loss = getattr(objective.program.loss, "func", objective.program.loss)
        raise ValueError(
            "K-FAC needs a loss of one tensor that is convex in it, not linear, and a sum or mean over the examples, "
            f"with at most {MOST_COLUMNS} numbers in an example's output where it is not one of torch's, as "
            "nn.CrossEntropyLoss and nn.MSELoss are; "
            f"got {getattr(loss, '__name__', type(loss).__name__)}; {OTHERWISE}"
        )
    return factors


def _of_chunk(
    run: "_Probed", curved: Linearization, layers: list[Layer], probes: int, count: float, weight_sharing: str
) -> list[Tensor] | None:
    """The factors of one chunk, the inputs' divided by `count`; None where its loss has no root."""
    objective = curved.objective
    watched = [
        LayerMoments(layer, objective.model.get_submodule(layer.name), count, weight_sharing) for layer in layers
    ]
    starts = accumulate([0, *curved.space.sizes[:-1]])
    own = {start for layer in layers for start in (layer.weight, layer.bias)}
    parameters = [p for p, start in zip(curved.space.parameters, starts, strict=True) if start in own]
    buffers = objective.buffers()
    objective.check_buffers()  # the model itself runs, and moves its own
    try:
        with torch.enable_grad(), differentiable_kernels(objective.model), contextlib.ExitStack() as stack:
            for each in watched:
                stack.enter_context(each)
            for _ in range(probes):
                # A loss of derivatives may know nothing of a bias.
                torch.autograd.grad(run.probe(), parameters, allow_unused=True)
    except _Unknown:
        return None
    finally:
        objective.write_buffers(buffers)
    factors = []
    for each in watched:
        if each.layer.columns:
            factors.append(_or_zeros(each.inputs, each.layer.columns, curved))
        factors.append(_or_zeros(each.slopes, each.layer.outputs, curved) / probes)
    return factors


def _or_zeros(factor: Tensor | None, size: int, curved: Linearization) -> Tensor:
    """A factor in the dtype of the space; zeros where no pass came through the layer."""
    space = curved.space
    return torch.zeros(size, size, dtype=space.dtype, device=space.device) if factor is None else factor.to(space.dtype)


class _Unknown(Exception):
    """No root of the loss's Hessian is known."""


class _Probed:
    """Numbers whose slopes in the model's outputs on a chunk are S u, with fresh signs u each time."""

    def __init__(self, objective: Objective, chunk: Chunk, index: int, seed: int):
        self._objective, self._chunk, self._index = objective, chunk, index
        self._root: Product | None = None
        self._generator = torch.Generator(next(objective.model.parameters()).device).manual_seed(seed)

    def probe(self) -> Tensor:
        """Such a number, of a pass of its own."""
        program = self._objective.program
        with self._objective.random_numbers(self._index):
            _, tree = self._objective.plain_pass(self._chunk)
        outputs = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.requires_grad]
        if self._root is None:  # it is the same for every probe
            self._root = root_of_any(program.loss, outputs, self._chunk.targets, isinstance(tree, Tensor))
        if self._root is None:
            raise _Unknown
        slopes = self._root([random_signs(output, self._generator) for output in outputs])
        return torch.stack([(output * slope).sum() for output, slope in zip(outputs, slopes, strict=True)]).sum()
