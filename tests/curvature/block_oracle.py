"""Dense Gauss-Newton matrices with the cross blocks set to zero, and the comparison of products over blocks."""

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from block_networks import NETWORKS
from product_cases import CASES, TIGHT, Case, randn
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from latephase import Objective, layerwise
from latephase.curvature import linearize, over_blocks

Blocks = list[list[nn.Parameter]]
METHODS = {"products", "pruned", "jacobian", "bottleneck"}
"""The exact ones."""
REUSED = [
    "cross_entropy_smoothing_weights", "cross_entropy_ignore_weights", "cross_entropy_positions", "squared_error",
    "binary_weights", "smooth_l1", "convolution", "tied", "shared_module", "recurrent", "frozen_layer",
    "unused_parameter", "dict_inputs", "lambda_coupling_rows", "lambda_linear",
]  # fmt: skip
ALL: dict[str, Case] = {name: CASES[name] for name in REUSED} | NETWORKS
EXPECTED = [1, 10_000]
"""How many products are announced: set-up never pays, and always."""


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def dense_ggn(case: Case, model: nn.Module, forward: Any = None, loss: Any = None) -> Tensor:
    """J' H_L J [P, P] over the trainable parameters in the model's order, on the whole batch, by torch.autograd alone.

    J is the Jacobian of all outputs of all rows and H_L the whole Hessian of the loss in them, so that nothing is
    assumed about which row depends on which.
    """
    twin, forward = copy.deepcopy(model), forward or case.forward or (lambda model, inputs: model(inputs))
    for module in twin.modules():
        if isinstance(module, nn.Embedding):
            module.sparse = False  # the numbers are the same
    named = {name: p.detach() for name, p in twin.named_parameters() if p.requires_grad}

    def outputs_of(theta: Tensor) -> Tensor:
        pieces = theta.split([p.numel() for p in named.values()])
        point = {name: piece.view_as(p) for (name, p), piece in zip(named.items(), pieces, strict=True)}
        with sdpa_kernel(SDPBackend.MATH):
            return forward(lambda *args: functional_call(twin, point, args), case.inputs)

    theta = torch.cat([p.reshape(-1) for p in named.values()])
    z = outputs_of(theta).detach()
    jacobian = torch.autograd.functional.jacobian(lambda t: outputs_of(t).reshape(-1), theta)
    inner = torch.autograd.functional.hessian(lambda u: (loss or case.loss)(u.view_as(z), case.targets), z.reshape(-1))
    assert isinstance(jacobian, Tensor)
    assert isinstance(inner, Tensor)
    return jacobian.T @ inner @ jacobian


@cache
def dense_of(name: str) -> Tensor:
    return dense_ggn(ALL[name], ALL[name].model())


def objective_of(case: Case, model: nn.Module, **options: Any) -> Objective:
    return Objective(model, case.loss, (case.inputs, case.targets), **case.options(), **options)


def partitions(model: nn.Module) -> dict[str, Blocks]:
    """Blocks of layers; of single parameters, part of a layer each; of several layers; not in the model's order."""
    p = trainable(model)
    middle = max(len(p) // 2, 1)
    found = {
        "layers": [group["params"] for group in layerwise(model)],
        "parameters": [[each] for each in p],
        "halves": [p[:middle], p[middle:]],
        "alternating": [p[1::2], p[::2]],
        "whole": [p],
    }
    return {name: [block for block in blocks if block] for name, blocks in found.items()}


def sizes_of(blocks: Blocks) -> list[int]:
    return [sum(p.numel() for p in block) for block in blocks]


def without_cross_blocks(matrix: Tensor, model: nn.Module, blocks: Blocks) -> Tensor:
    """A matrix over `trainable(model)` -> the same in the order of the blocks, with zeros outside of them."""
    ends = torch.tensor([p.numel() for p in trainable(model)]).cumsum(0).tolist()
    places = {id(p): range(end - p.numel(), end) for p, end in zip(trainable(model), ends, strict=True)}
    order = torch.tensor([place for block in blocks for p in block for place in places[id(p)]])
    owner = torch.arange(len(blocks)).repeat_interleave(torch.tensor(sizes_of(blocks)))
    return matrix[order][:, order] * (owner[:, None] == owner)


def agree(product: Tensor, expected: Tensor, sizes: Sequence[int], tolerance: float, least: float, what: str) -> None:
    """Block by block, relative to the block's largest entry, or to `least` where that is larger."""
    assert product.shape == expected.shape
    for index, (one, other) in enumerate(zip(product.double().split(sizes), expected.split(sizes), strict=True)):
        error = float((one - other).abs().max()) / max(float(other.abs().max()), least)
        assert error < tolerance, f"block {index} of {len(sizes)} is off by {error:.1e} {what}"


def check(
    objective: Objective, matrix: Tensor, blocks: Blocks, expected: int, tolerance: float = TIGHT, **options: Any
) -> tuple[str, ...]:
    """Products with random vectors, and with vectors some of whose pieces are zero, against a matrix in blocks.

    Compared within each block; but a block whose curvature is below 1e-2 of the largest need not be right relative to
    itself: a bias before batch normalisation has none but for rounding.

    Args:
        objective: what is linearised.
        matrix: over the trainable parameters in the model's order [P, P].
        blocks: the partition.
        expected: products announced.
        tolerance: relative.
        **options: of `linearize`.

    Returns:
        The methods.
    """
    wanted, sizes = without_cross_blocks(matrix, objective.model, blocks), sizes_of(blocks)
    curved = linearize(objective, parameters=[p for block in blocks for p in block], at_once=True, **options)
    over = over_blocks(curved, sizes, expected=expected)
    least = 1e-2 * float(wanted.abs().max()) + 1e-300
    everything = {*range(len(blocks))}
    for seed, moving in enumerate((everything, everything, {*range(0, len(blocks), 2)}, {len(blocks) - 1})):
        v = randn(len(wanted), seed=100 + seed)
        masked = torch.cat([piece * (b in moving) for b, piece in enumerate(v.split(sizes))])
        product = over.matvec(masked.to(curved.space.dtype))
        assert product.dtype == curved.space.dtype
        what = f"with {expected} announced, {over.methods}, moving {sorted(moving)}"
        agree(product, wanted @ masked, sizes, tolerance, least, what)
        for b, piece in enumerate(product.split(sizes)):
            assert b in moving or not piece.any(), f"block {b} rests, and has a product {what}"
    assert len(over.methods) == len(blocks)
    assert set(over.methods) <= METHODS
    return over.methods
