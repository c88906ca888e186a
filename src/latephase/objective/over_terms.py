"""What only an objective of several terms has: terms cut into chunks, redrawn, and looked at one by one."""

import copy
from collections.abc import Hashable, Mapping
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from .data import Chunk, check_size, cut, placeholder
from .memory import available
from .microbatch import PROBE, largest_microbatch, recut
from .over_chunks import OverChunks
from .randomness import cuda_devices, forked
from .rank_protocol import as_one_rank
from .reading_terms import check_alike, nonfinite_points, read_points
from .residuals import Residuals, term_of


class OverTerms(OverChunks):
    """The terms of an objective made by `from_residuals`.

    Attributes:
        memory_limit: bytes, or None.
    """

    memory_limit: int | None
    _microbatch_size: int | Literal["auto"] | None

    @cached_property
    def weights(self) -> list[float]:
        """Weight w_c of each of this rank's chunks: of a term w_m / n_m, otherwise as `OverChunks`."""
        if isinstance(self.program, Residuals):
            own = [] if self.idle else self.chunks
            weights = self.program.weigh(own, self.reduce, next(self.model.parameters()).device)
            return [0.0] * len(self.chunks) if self.idle else weights
        return super().weights

    @as_one_rank
    def terms(self) -> dict[str, Tensor]:
        """The mean squared residual of each term by name, over all ranks' points, without the term's weight.

        `value` is their sum, each times its weight, and the L2 term. Costs as much as `value`.

        Returns:
            A scalar for each term, in the order in which the terms were given.

        Raises:
            ValueError: the objective was not made by `from_residuals`.
        """
        program = self._terms_program()
        own = [] if self.idle else self.chunks
        rows = program.counts(own, self.reduce, next(self.model.parameters()).device)
        places = {name: place for place, name in enumerate(rows)}
        point = {name: p.detach() for name, p in self.model.named_parameters()}
        means = copy.copy(self)
        means.weights = [0.0 if self.idle else 1 / rows[term_of(chunk)] for chunk in self.chunks]

        def term(chunk: Chunk, index: int) -> tuple[Tensor]:
            with torch.enable_grad(), self.random_numbers(index):
                loss = self.forward_pass(chunk, point, self.buffers())[0].detach()
            found = loss.new_zeros(len(places))
            found[places[term_of(chunk)]] = loss
            return (found,)

        return dict(zip(places, means.sum(term)[0].unbind(), strict=True))

    def points_of(self, name: str) -> Any:
        """The points of one term, as they were given; under a process group this rank's, perhaps none ([0, d]).

        Raises:
            ValueError: an unknown term, or the objective was not made by `from_residuals`.
        """
        kinds = self._terms_program(name).kinds
        own = [chunk.inputs[name] for chunk in self.chunks if term_of(chunk) == name and not self.idle]
        return tree_map(lambda *leaves: torch.cat(leaves), *own) if own else kinds[name]

    def residuals_at(self, name: str, points: Any = None) -> Tensor:
        """The residuals of one term at its points or at others, detached; without weights, and of this rank alone.

        They are computed in pieces no larger than the objective's own chunks, so that a gradient needs more memory.

        Args:
            name: of the term.
            points: of the same kind as the term's, as many as you like. Default: the term's own.

        Returns:
            [N, k] or [N], as the term's function returns them.

        Raises:
            TypeError: these are no points, as in `from_residuals`.
            ValueError: the same; or points of another kind, an unknown term, or another objective.
        """
        program = self._terms_program(name)
        whole = read_points(name, self.points_of(name) if points is None else points)
        check_alike(name, whole.inputs[name], program.kinds[name])
        own = [chunk.rows for chunk in self.chunks if term_of(chunk) == name]
        most = max(own or [chunk.rows for chunk in self.chunks])
        point = {key: p.detach() for key, p in self.model.named_parameters()}
        apart = copy.copy(self)  # a seed that is drawn here is not the objective's
        parts = []
        for index, start in enumerate(range(0, whole.rows, most)):
            chunk = cut(whole, start, min(start + most, whole.rows))
            with torch.enable_grad(), apart.random_numbers(index):
                parts.append(apart.forward_pass(chunk, point, apart.buffers())[1].detach())
        if not parts:
            device = next(self.model.parameters()).device
            tail, dtype = program.functions.tails.get(name, ()), program.dtypes.get(name)
            return torch.zeros(0, *tail, dtype=dtype, device=device)
        return torch.cat(parts)

    def _terms_program(self, name: str | None = None) -> Residuals:
        """The program of an objective that has terms, this one among them."""
        if not isinstance(self.program, Residuals):
            raise ValueError("an objective has terms where Objective.from_residuals made it; this one is one term")
        if name is not None and name not in self.program.weights:
            raise ValueError(f"there is no term {name!r}: the terms are {', '.join(map(repr, self.program.weights))}")
        return self.program

    def kind_of(self, chunk: Chunk) -> Hashable:
        """As `FunctionalModel`; each term's passes are of a kind of their own."""
        if not isinstance(self.program, Residuals):
            return super().kind_of(chunk)
        function = self.program.functions.functions[term_of(chunk)]
        return self.model.training, term_of(chunk), getattr(function, "__code__", type(function))

    def _cut_terms(self, points: Mapping[str, Any]) -> None:
        """Make points of some terms this objective's chunks, where they take the place of those there are.

        Raises:
            TypeError: as `from_residuals`.
            ValueError: as `from_residuals`; or points of another kind than before.
        """
        if self._microbatch_size != "auto":
            check_size(self._microbatch_size)
        chunks: dict[str, list[Chunk]] = {name: [] for name in self.program.weights}
        for chunk in () if self.idle else self.chunks:
            chunks[term_of(chunk)].append(chunk)
        kinds = self.program.kinds
        for name, given in points.items():
            whole = read_points(name, given)
            if name in kinds:
                check_alike(name, whole.inputs[name], kinds[name])
            kinds.setdefault(name, cut(whole, 0, 0).inputs[name])
            chunks[name] = self._chunks_of(name, whole) if whole.rows else []
        self.chunks = [chunk for each in chunks.values() for chunk in each]
        self.idle = self.reduce.size > 1 and not self.chunks
        if self.idle:
            name = next(iter(kinds))
            self.chunks = self._chunks_of(name, placeholder(Chunk({name: kinds[name]}, None, 0)))
        _ = self.weights  # where a term has points on no rank at all

    def _chunks_of(self, name: str, whole: Chunk) -> list[Chunk]:
        size, tails = self._microbatch_size, self.program.functions.tails
        most = whole.rows if size is None else min(PROBE if size == "auto" else size, whole.rows)
        if name not in tails:
            self._try(name, cut(whole, 0, most))
        p = next(self.model.parameters())
        zeros = torch.zeros(whole.rows, *tails[name], dtype=self.program.dtypes[name], device=p.device)
        whole = Chunk(whole.inputs, zeros, whole.rows)
        if size == "auto":
            limit = available(p.device) // 2 if self.memory_limit is None else self.memory_limit
            alone = copy.copy(self)
            alone.chunks = [whole]
            return recut([whole], largest_microbatch(alone, limit))
        return [cut(whole, start, min(start + most, whole.rows)) for start in range(0, whole.rows, most)]

    def _try(self, name: str, chunk: Chunk) -> None:
        """Call a term's function once, for the form of its residuals and for what is wrong with it.

        Raises:
            TypeError: it returns no tensor of numbers.
            ValueError: residuals of a wrong shape, that no parameter moves, or, at some points, that are not finite.
        """
        point = {key: p.detach().requires_grad_(p.is_floating_point()) for key, p in self.model.named_parameters()}
        with torch.enable_grad(), forked(0, cuda_devices(self.model)):
            _, residuals = self.forward_pass(chunk, point, self.buffers())
        if not residuals.requires_grad:
            raise ValueError(
                f"the residuals of term {name!r} do not depend on the model's parameters: its function detaches them, "
                "computes under torch.no_grad, or does not use the model that it is given"
            )
        if found := self._nonfinite_residuals(name, residuals.detach()):
            raise ValueError(f"{found}; leave these points out")
        self.program.functions.tails[name] = tuple(residuals.shape[1:])
        self.program.dtypes[name] = residuals.dtype

    def _nonfinite(self) -> str | None:
        """As `OverChunks`; of terms also where residuals are not finite at points that are."""
        if not isinstance(self.program, Residuals):
            return super()._nonfinite()
        point = {name: p.detach() for name, p in self.model.named_parameters()}
        before = dict.fromkeys(self.program.weights, 0)
        for index, chunk in enumerate(self.chunks):
            name = term_of(chunk)
            with torch.enable_grad(), self.random_numbers(index):
                residuals = self.forward_pass(chunk, point, self.buffers())[1].detach()
            found = nonfinite_points(chunk, before[name]) or self._nonfinite_residuals(name, residuals, before[name])
            if found:
                return found
            before[name] += chunk.rows
        return None

    def _nonfinite_residuals(self, name: str, residuals: Tensor, before: int = 0) -> str | None:
        """At which points residuals are not finite, in words, where others are: it is not that training diverged."""
        bad = ~torch.isfinite(residuals).reshape(len(residuals), -1).all(1)
        if not bool(bad.any()) or bool(bad.all()) or not all(bool(p.isfinite().all()) for p in self.model.parameters()):
            return None
        rows = bad.nonzero().flatten()
        return (
            f"the residuals of term {name!r} are not finite at {len(rows)} points, the first in row "
            f"{before + int(rows[0])}, where the function divides by zero or overflows"
        )
