"""The block-diagonal curvature matrix of a linearised objective."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from ...objective import LossOfOutputs, available, random_signs, seed_of_chunk, shared_seed
from ..chunk import ChunkCurvature
from ..eager import ForwardPass
from ..linearization import Linearization
from ..loss import hessian_root
from ..operators import block_diagonal
from ..tracing import CannotTrace
from .block_trace import BlockPass, Blocks

METHODS = ("pruned", "jacobian", "bottleneck", "sampled", "products")

HEAD = 1024
"""Entries of a vector that are looked at first: one that is not zero seldom begins with so many zeros."""


def over_blocks(
    curved: Linearization, sizes: Sequence[int], expected: int = 1, samples: int | None = None
) -> "OverBlocks":
    """The curvature matrix with its blocks beside the diagonal set to zero (Zhang et al. 2017).

    Args:
        curved: the linearised objective; what is set up is kept with it.
        sizes: number of entries of each block: consecutive parameters, summing to P.
        expected: about how many products will be asked for: with many, more set-up pays. Default 1.
        samples: estimate blocks from this many random columns where that is cheaper, instead of all outputs: unbiased
            and positive semi-definite, see `OverBlocks`. Default: exact.

    Raises:
        ValueError: a block ends within a parameter, or samples that cannot be taken: fewer than one, or of the Hessian.
    """
    if samples is not None and (samples < 1 or curved.curvature != "ggn"):
        raise ValueError(f"samples must be at least 1, and the curvature ggn; got {samples} of {curved.curvature}")
    key = "blocks", tuple(sizes), samples
    if key not in curved.kept or curved.kept[key].expected < expected:
        curved.kept[key] = OverBlocks(curved, sizes, expected, samples)
    return curved.kept[key]


class OverBlocks:
    """Products with the curvature matrix whose blocks beside the diagonal are set to zero (Zhang et al. 2017).

    Made by `over_blocks`. The block of a group of parameters is J_b' H_L J_b, with J_b the derivative of
    the outputs in them. Of a traced chunk each block's product is computed in the cheapest of these ways, all exact but
    "sampled":

    - "pruned": tangents start at the block and the backward pass ends there.
    - "jacobian": where everything from the block passes through one tensor z whose rows stay apart from there on, the
      derivative of each row's outputs in z is stored, and the network behind z is not run again.
    - "bottleneck": the same with J' H_L J of each row multiplied out, where z is narrow: the code of an autoencoder.
    - "sampled": as "jacobian", with random columns in place of the outputs: an estimate, unbiased and positive
      semi-definite.
    - "products": one product with the whole matrix per block, where a chunk is not traced.

    Attributes:
        expected: about how many products were announced.
        methods: of each block, the last of `METHODS` that a chunk needed; known after the first product.
    """

    def __init__(self, curved: Linearization, sizes: Sequence[int], expected: int, samples: int | None):
        self._curved, self._sizes, self.expected, self._samples = curved, list(sizes), expected, samples
        self._blocks = _parameters_of(curved.space.sizes, self._sizes)
        self._passes: dict[ChunkCurvature, BlockPass | None] = {}
        self._seed = 0 if samples is None else shared_seed(curved.objective.reduce.share, curved.space.device)
        self.methods: tuple[str, ...] | None = None

    def matvec(self, v: Tensor) -> Tensor:
        """The block-diagonal curvature matrix times a vector; blocks where it is zero cost nothing.

        Args:
            v: vector [P].

        Returns:
            The product [P], in the dtype of the flat vectors.

        Raises:
            RuntimeError: the parameters changed since the objective was linearised.
            ValueError: v is not of shape [P].
        """
        v = self._curved.checked(v)
        active = _nonzero(v.split(self._sizes))
        self._curved.products += 1
        return self._curved.sum_of_chunks(lambda part, kept: self._of_chunk(part, v, active, kept), v)

    def _of_chunk(self, part: ChunkCurvature, v: Tensor, active: list[int], kept: bool) -> Tensor:
        """One chunk's share [P]; what is set up for a chunk that is linearised anew at every product is let go."""
        if part in self._passes:
            blocks = self._passes[part]
        else:
            blocks = self._pass_of(part, self.expected if kept else 1)
            if kept:
                self._passes[part] = blocks
            self._note(["products"] * len(self._sizes) if blocks is None else blocks.methods)
        if blocks is None:
            self._curved.products += max(len(active) - 1, 0)
            return block_diagonal(part.product, self._sizes)(v)
        pieces = part.split(v)
        results = blocks.products({block: [pieces[i] for i in self._blocks[block]] for block in active})
        found = [
            results[block] if block in results else [torch.zeros_like(pieces[i]) for i in own]
            for block, own in enumerate(self._blocks)
        ]
        return self._curved.space.flatten(itertools.chain.from_iterable(found))

    def _pass_of(self, part: ChunkCurvature, expected: int) -> BlockPass | None:
        objective = self._curved.objective
        limit = objective.memory_limit
        memory = (available(self._curved.space.device) // 2 if limit is None else limit) / len(objective.chunks)
        columns = None if self._samples is None else self._columns(part)
        if part.traced is None:
            return None
        try:
            return BlockPass(self._blocks, part.traced, expected, memory, columns)
        except CannotTrace:
            return None

    def _columns(self, part: ChunkCurvature) -> list[Tensor] | None:
        """Random columns S s of a root S of the loss's Hessian, s random signs; None where S is not known."""
        task, objective = part.task, part.task.objective
        if not isinstance(objective.program, LossOfOutputs) or self._curved.curvature != "ggn":
            return None
        outputs = ForwardPass(task).outputs
        root = hessian_root(objective.program.loss, outputs, task.chunk.targets) if len(outputs) == 1 else None
        if root is None:
            return None
        generator = torch.Generator(outputs[0].device).manual_seed(
            seed_of_chunk(self._seed, task.index, objective.reduce.rank)
        )
        return [root([random_signs(outputs[0], generator)])[0] for _ in range(self._samples or 0)]

    def _note(self, methods: Sequence[str]) -> None:
        before = self.methods or methods
        self.methods = tuple(max(pair, key=METHODS.index) for pair in zip(before, methods, strict=True))


def _nonzero(pieces: Sequence[Tensor]) -> list[int]:
    """Which vectors are not zero, at one transfer from the device in the ordinary case."""
    heads = torch.stack([piece[:HEAD].any() for piece in pieces]).tolist()
    return [i for i, (piece, found) in enumerate(zip(pieces, heads, strict=True)) if found or bool(piece.any())]


def _parameters_of(parameters: Sequence[int], sizes: Sequence[int]) -> Blocks:
    """Of each block the positions of its parameters.

    Raises:
        ValueError: a block ends within a parameter.
    """
    ends = list(itertools.accumulate(parameters, initial=0))
    borders = list(itertools.accumulate(sizes, initial=0))
    if borders[-1] != ends[-1] or any(size < 1 for size in sizes) or not set(borders) <= set(ends):
        raise ValueError(
            f"blocks of {', '.join(map(str, sizes))} entries do not consist of whole parameters, which have "
            f"{', '.join(map(str, parameters))}"
        )
    at = [ends.index(border) for border in borders]
    return tuple(tuple(range(first, last)) for first, last in itertools.pairwise(at))
