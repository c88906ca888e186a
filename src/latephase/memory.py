"""How much memory there is, and how much a computation needs."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def available(device: torch.device) -> int:
    """Bytes that can still be allocated on a device, a container's limit included."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    found = [_of_machine(), _of_container()]
    known = [size for size in found if size is not None]
    return min(known) if known else 4 * 2**30


def _of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    sizes = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(sizes[0]) * 1024 if sizes else None


def _of_container() -> int | None:
    """What a control group (version 2) leaves; None where there is no limit."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = (folder / "memory.max").read_text().strip(), (folder / "memory.current").read_text()
    except OSError:
        return None
    return None if limit == "max" else max(int(limit) - int(used), 0)


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of tensors that are made within, as long as they live.

    Whoever keeps a tensor counts: variables, autograd's graphs, caches. Storages that were there before do not, nor
    what an operator allocates for itself while it runs, which no one outside of it can see. Works on every device, for
    operators that run on the thread of the `with` block: on CUDA autograd's backward pass does not.

        with PeakMemory() as memory:
            loss(model(inputs), targets).backward()
        print(memory.peak)

    Attributes:
        live: bytes that are alive now.
        peak: the most that were alive at the end of any operator.
    """

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._counted: dict[int, int] = {}  # by the address of the storage's C++ object; 0 for those from before

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self._follow((args, kwargs), made=False)
        result = func(*args, **kwargs)
        self._follow(result, made=True)
        self.peak = max(self.peak, self.live)
        return result

    def _follow(self, tree: Any, made: bool) -> None:
        for leaf in tree_leaves(tree):
            storage = _storage(leaf)
            if storage is None or storage._cdata in self._counted:
                continue
            size = storage.nbytes() if made else 0
            self._counted[storage._cdata] = size
            self.live += size
            # The storage's Python object lives as long as its C++ object, whoever holds that.
            weakref.finalize(storage, self._release, storage._cdata).atexit = False

    def _release(self, key: int) -> None:
        self.live -= self._counted.pop(key)


def _storage(leaf: Any) -> torch.UntypedStorage | None:
    """The storage of a tensor that holds memory; None of anything else."""
    if not isinstance(leaf, Tensor):
        return None
    try:
        storage = leaf.untyped_storage()
    except (NotImplementedError, RuntimeError):  # sparse, oneDNN's own layouts
        return None
    return None if storage.device.type == "meta" else storage


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """The most memory that a call's tensors need at once, beside those that were there before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with PeakMemory() as memory:
        call()
    return memory.peak
