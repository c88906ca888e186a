"""Sums over the ranks of a torch.distributed process group, and their rows together: every collective there is."""

import contextlib
import pickle
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .rank_differences import by_rank, difference, text_of
from .rank_protocol import RankError
from .rank_tensors import bytes_of, form_of_rows, form_of_sum, may_ride, rows_of_ranks
from .rank_traffic import note

ROOM = 8
"""So many numbers travel with the meeting that every collective begins with, and need none of their own."""
LANES = 20  # bits of a digest that are summed as floating-point numbers: their squares stay exact for 8,192 ranks
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
        self._meet(what)
        with self._talking():
            for tensor in tensors:
                dist.all_reduce(tensor, group=self.group)
                note(bytes_of([tensor]))
        return tensors

    def concatenate(self, tensors: Sequence[Tensor], what: str = "rows") -> tuple[Tensor, ...]:
        """Send every rank's rows to all, detached; errors as in `sum`, also where dtype or the row's shape differ."""
        tensors = tuple(tensor.detach().contiguous() for tensor in tensors)
        self._meet(f"{what}: {', '.join(map(form_of_rows, tensors)) or 'none'}")
        with self._talking():
            return rows_of_ranks(tensors, self.group, self._meeting)

    def share(self, tensor: Tensor) -> Tensor:
        """Broadcast the first rank's tensor; errors as in `sum`."""
        tensor = tensor.contiguous()
        rides = may_ride([tensor], ROOM)
        what = f"sharing with all what the first rank has, {form_of_sum([tensor], rides)}"
        if rides:
            own = tensor.reshape(-1).double()
            return self._meet(what, own if self.rank == 0 else torch.zeros_like(own)).view_as(tensor).to(tensor.dtype)
        self._meet(what)
        with self._talking():
            dist.broadcast(tensor, group=self.group, group_src=0)
            note(bytes_of([tensor]))
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, pickled; errors as in `sum`."""
        self._meet("gathering one object of each rank")
        return self._gathered(value)

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

    def _meet(self, what: str, numbers: Tensor | None = None, said: Any = None, failed: str | None = None) -> Tensor:
        """Meet the other ranks; returns the sums of the numbers brought along, [ROOM] at most.

        Args:
            what: this rank is about to do.
            numbers: to be summed on the way, float64 on the CPU.
            said: what the others are told about it where they are about to do something else.
            failed: why this rank cannot go on; None where it can.
        """
        digest = zlib.crc32(what.encode()) << 32 | zlib.adler32(what.encode())
        lanes = [digest >> shift & ((1 << LANES) - 1) for shift in (0, LANES, 2 * LANES)]
        head = torch.zeros(1 + 2 * len(lanes) + ROOM, dtype=torch.float64)
        head[: 1 + 2 * len(lanes)] = torch.tensor(
            [int(failed is not None), *lanes, *(x * x for x in lanes)], dtype=torch.float64
        )
        count = 0 if numbers is None else numbers.numel()
        if numbers is not None:
            head[head.numel() - ROOM :][:count] = numbers
        with self._talking():
            dist.all_reduce(head, group=self._meeting)
            note(bytes_of([head]))
        failures, *sums = (int(x) for x in head[: 1 + 2 * len(lanes)].tolist())
        squares = sums[len(lanes) :]
        if failures or any(self.size * square != x * x for x, square in zip(sums, squares, strict=False)):
            self._part(what, said, failed)
        return head[head.numel() - ROOM :][:count]

    def _part(self, what: str, said: Any, failed: str | None) -> None:
        """Tell each other why the ranks cannot go on, and raise it."""
        own = dist.get_rank()
        told: list[tuple[int, str | None, str, Any]] = self._gathered((own, failed, what, said))
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

    def _gathered(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.size
        with self._talking():
            dist.all_gather_object(values, value, group=self._meeting)
            note(len(pickle.dumps(value)))
        return values

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
_OPEN: list[dist.ProcessGroup] = []
"""Groups within whose `together` this process is."""
_MEETINGS: "weakref.WeakKeyDictionary[dist.ProcessGroup, dist.ProcessGroup]" = weakref.WeakKeyDictionary()
"""The group beside one whose backend has none for the CPU."""
