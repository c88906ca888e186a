"""Sums over the ranks of a torch.distributed process group, and their rows together: every collective there is."""

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .rank_differences import by_rank, difference, text_of
from .rank_heads import ROOM, agree, head_of, met, numbers_of
from .rank_protocol import RankError
from .rank_tensors import RowsOfRanks, bytes_of, form_of_rows, form_of_sum, may_ride, size_of
from .rank_traffic import note

TEXT = 2_000  # characters of an error that the other ranks are told


class ProcessGroup:
    """Sums over the ranks of a torch.distributed process group.

    Every collective begins with a meeting: one small sum of fixed shape, to which each rank brings whether it has
    failed and what it is about to do. So a rank that failed meets the others wherever they are, all see it, tell each
    other what happened, and leave; ranks that are about to do different things see that as well, where they would wait
    for ever, or send each other numbers of the wrong shape. Few numbers travel with the meeting itself. Meetings are
    held on the CPU, so that no accelerator is waited for: a backend that has none for it (nccl) gets a gloo group
    beside it.

    Args:
        group: the process group; its backend must reach the tensors' device (gloo: CPU, nccl: CUDA).
    """

    def __init__(self, group: dist.ProcessGroup):
        self.group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)

    def sum(self, tensors: Sequence[Tensor], what: str = "a sum") -> tuple[Tensor, ...]:
        """All-reduce each tensor in place and return it.

        Raises:
            RankError: another rank failed, or is about to do something else.
        """
        tensors = tuple(tensor.contiguous() for tensor in tensors)
        rides = may_ride(tensors, ROOM)
        what = f"{what} of {form_of_sum(tensors, rides)}"
        if rides:
            summed = self._meet(what, torch.cat([tensor.reshape(-1).double() for tensor in tensors]))
            parts = summed.split([tensor.numel() for tensor in tensors])
            return tuple(part.view_as(own).to(own.dtype) for part, own in zip(parts, tensors, strict=True))
        self._meet(what, then=[partial(dist.all_reduce, tensor, group=self.group) for tensor in tensors])
        return tensors

    def concatenate(self, tensors: Sequence[Tensor], what: str = "rows") -> tuple[Tensor, ...]:
        """Send every rank's rows to all, detached; errors as in `sum`, also where dtype or the row's shape differ."""
        tensors = tuple(tensor.detach().contiguous() for tensor in tensors)
        rows = RowsOfRanks(tensors, self.group)
        what = f"{what}: {', '.join(map(form_of_rows, tensors)) or 'none'}"
        self._meet(what, then=[partial(dist.all_reduce, rows.counts, group=self._meeting), rows.broadcasts])
        return rows.together

    def share(self, tensor: Tensor) -> Tensor:
        """Broadcast the first rank's tensor; errors as in `sum`."""
        tensor = tensor.contiguous()
        rides = may_ride([tensor], ROOM)
        what = f"sharing with all what the first rank has, {form_of_sum([tensor], rides)}"
        if rides:
            own = tensor.reshape(-1).double()
            return self._meet(what, own if self.rank == 0 else torch.zeros_like(own)).view_as(tensor).to(tensor.dtype)
        self._meet(what, then=[partial(dist.broadcast, tensor, group=self.group, group_src=0)])
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, pickled; errors as in `sum`."""
        values: list[Any] = [None] * self.size
        self._meet("gathering one object of each rank", then=[self._gathering(values, value)])
        return values

    def compare(self, named: Callable[[], Mapping[str, Any]]) -> None:
        """Compare tensors, by checksums of their bits, and settings over the ranks, in one collective where all agree.

        Args:
            named: gives them by name.

        Raises:
            ValueError: on every rank alike, naming the first that differs, and the ranks.
        """
        texts = {name: text_of(value) for name, value in named().items()}
        self._meet(f"{_COMPARING} {texts}", said=texts)

    def meet(self) -> None:
        """Wait for every rank; errors as in `sum`."""
        self._meet("the end of a step")

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Within, an exception of this rank reaches the others at their next collective, as a RankError.

        Only the outermost of several counts: what is caught in between is no failure. This rank goes on when the
        others have been told, or are gone.
        """
        if self.group in _OPEN:
            yield
            return
        _OPEN.append(self.group)
        try:
            yield
        except BaseException as error:
            if not (isinstance(error, RankError) and error.group is self.group):  # which all have seen
                self._tell(error)
            raise
        finally:
            _OPEN.remove(self.group)

    def _tell(self, error: BaseException) -> None:
        with contextlib.suppress(RankError):
            self._meet("an error", failed=f"{type(error).__name__}: {error}"[:TEXT])

    def _meet(
        self,
        what: str,
        numbers: Tensor | None = None,
        said: Any = None,
        failed: str | None = None,
        then: Sequence[Callable[[], Any]] = (),
    ) -> Tensor:
        """Meet the other ranks; returns the sums of the numbers brought along, [ROOM] at most.

        What comes in between a meeting and what was agreed there (a KeyboardInterrupt, most often as soon as this rank
        has been waited for) is raised when that is done: the others are at it, and can be told at their next meeting.

        Args:
            what: this rank is about to do.
            numbers: to be summed on the way, float64 on the CPU.
            said: what the others are told about it where they are about to do something else.
            failed: why this rank cannot go on; None where it can.
            then: where all agree, the collectives of which that consists, as `_finish` takes them.
        """
        head, left = head_of(what, failed is not None, numbers), list(then)
        try:
            with self._talking():
                dist.all_reduce(head, group=self._meeting)
            note(bytes_of([head]))
            if not agree(head, self.size):
                self._part(what, said, failed)
            self._finish(left)
        except BaseException as error:
            if not isinstance(error, (RankError, ValueError)) and met(head, self.size):
                with contextlib.suppress(Exception):
                    self._finish(left if agree(head, self.size) else [self._gathering([None] * self.size, _LOST)])
            raise
        return numbers_of(head)[: 0 if numbers is None else numbers.numel()]

    def _finish(self, left: list[Callable[[], Any]]) -> None:
        """Do what is left, in turn: partials are collectives, and others return those that come in their place."""
        while left:
            first = left[0]
            if isinstance(first, partial):
                size = size_of(first.args)
                with self._talking():
                    left.pop(0)()
                note(size)
            else:
                left[:1] = first()

    def _part(self, what: str, said: Any, failed: str | None) -> None:
        """Tell each other why the ranks cannot go on, and raise it."""
        own = dist.get_rank()
        told: list[Any] = [None] * self.size
        self._finish([self._gathering(told, (own, failed, what, said))])
        failures = {rank: text for rank, text, _, _ in told if text is not None}
        if failures:
            texts = "; ".join(f"rank {rank} failed: {text}" for rank, text in failures.items())
            raise RankError(f"{texts} (this is rank {own}, which was told)", list(failures), self.group)
        doing = {rank: what for rank, _, what, _ in told}
        if all(what.startswith(_COMPARING) for what in doing.values()):
            raise ValueError(difference({rank: texts for rank, _, _, texts in told}))
        doing = {rank: _COMPARING if what.startswith(_COMPARING) else what for rank, what in doing.items()}
        raise RankError(
            f"the ranks do not do the same: {by_rank(doing)}. Each rank must call the same methods of objectives and "
            "optimizers in the same order, with equal options and equal parameters",
            group=self.group,
        )

    def _gathering(self, values: list[Any], value: Any) -> partial[None]:
        """What fills a list with every rank's value."""
        return partial(dist.all_gather_object, values, value, group=self._meeting)

    @contextlib.contextmanager
    def _talking(self) -> Iterator[None]:
        """Within, one collective; its own failure is no news that could still be told."""
        try:
            yield
        except RuntimeError as error:
            raise RankError(
                f"this rank ({dist.get_rank()}) cannot reach the others; one may have ended: {error}", group=self.group
            ) from error

    @property
    def _meeting(self) -> dist.ProcessGroup:
        if "cpu" in dist.get_backend_config(self.group):
            return self.group
        if self.group not in _MEETINGS:
            ranks = dist.get_process_group_ranks(self.group)
            beside = dist.new_group(ranks, backend="gloo", use_local_synchronization=True)
            assert isinstance(beside, dist.ProcessGroup)
            _MEETINGS[self.group] = beside
        return _MEETINGS[self.group]


_COMPARING = "comparing settings and parameters"
_LOST = (-1, "it was interrupted while the ranks told each other of a failure", "", None)
"""What a rank says that was interrupted before it could say anything else."""
_OPEN: list[dist.ProcessGroup] = []
"""Groups within whose `together` this process is."""
_MEETINGS: "weakref.WeakKeyDictionary[dist.ProcessGroup, dist.ProcessGroup]" = weakref.WeakKeyDictionary()
"""The group beside one whose backend has none for the CPU."""
