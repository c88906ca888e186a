"""How much memory there is, and how much a computation needs."""

import os
import re
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

try:
    import resource
except ImportError:  # Windows
    resource = None


ASSUMED = 4 * 2**30
"""Bytes that are taken to be free where a system does not tell."""

_EXHAUSTED = re.compile(
    r"DefaultCPUAllocator|can't allocate memory|Cannot allocate memory|not enough memory|out of memory|ALLOC_FAILED",
    re.IGNORECASE,
)
"""What torch's allocators and the libraries behind it say; on a CPU that is a plain RuntimeError."""


def is_exhaustion(error: BaseException | None) -> bool:
    """Whether an error says that memory is used up, by itself or by the error that it was raised from.

    `torch.OutOfMemoryError` is that of accelerators; on a CPU torch raises a RuntimeError, and Python and NumPy a
    MemoryError. Such an error says nothing about what a model supports, and must not be kept as if it did.
    """
    while error is not None:
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            return True
        if isinstance(error, RuntimeError) and _EXHAUSTED.search(str(error)):
            return True
        error = error.__cause__
    return False


def available(device: torch.device) -> int:
    """Bytes that can still be allocated on a device, the limits of a container and of the process included.

    Where the system does not tell what is free, half of what it has; where it does not tell that either, 4 GiB, with a
    warning.
    """
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    free = _of_machine()
    if free is None:
        free = _of_hardware()
    if free is None:
        warnings.warn(
            "this system does not tell how much memory is free; 4 GiB are assumed. Give Objective(memory_limit=...)",
            RuntimeWarning,
            stacklevel=2,
        )
        free = ASSUMED
    return max(min([free, *_of_containers(), *_of_process()]), 0)


def _of_machine() -> int | None:
    """Linux: what can be allocated without swapping."""
    sizes = [line.split()[1] for line in _lines(Path("/proc/meminfo")) if line.startswith("MemAvailable:")]
    return int(sizes[0]) * 1024 if sizes else None


def _of_hardware() -> int | None:
    """Half of what is built in."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):  # no such function on Windows, no such name elsewhere
        return None


def _of_process() -> list[int]:
    """What the limit on the address space leaves (`ulimit -v`)."""
    pages = _lines(Path("/proc/self/statm"))
    if resource is None or not pages:
        return []
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return [] if limit == resource.RLIM_INFINITY else [limit - int(pages[0].split()[0]) * resource.getpagesize()]


def _of_containers(process: Path = Path("/proc/self")) -> list[int]:
    """What each control group leaves that the process is in, directly or by a group around it.

    Version 2 and version 1 alike. Pages of files that can be dropped at once count as free.

    Args:
        process: the process's folder, with `cgroup` and `mountinfo`.
    """
    left = []
    for mount, inside, files in _memory_groups(process):
        folder = mount / inside
        for group in (folder, *folder.parents):
            if mount in (group, *group.parents):
                left.append(_left(group, *files))
    return [size for size in left if size is not None]


def _memory_groups(process: Path) -> list[tuple[Path, str, tuple[str, str, str]]]:
    """Where memory's control groups are mounted, the process's group below, and the names of limit, use and cache."""
    groups = {names: path for _, names, path in (line.split(":", 2) for line in _lines(process / "cgroup"))}
    found = []
    for line in _lines(process / "mountinfo"):
        before, _, after = line.partition(" - ")
        root, mount = before.split()[3:5]
        kind, *_, options = after.split()
        if kind == "cgroup2":
            group, files = groups.get(""), ("memory.max", "memory.current", "inactive_file")
        elif kind == "cgroup" and "memory" in options.split(","):
            group = next((path for names, path in groups.items() if "memory" in names.split(",")), None)
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        if group is not None:
            inside = group.removeprefix(root) if root != "/" else group
            # A group outside of what is mounted here ("/../x"): only what is mounted can be read.
            found.append((Path(mount), "" if ".." in inside.split("/") else inside.strip("/"), files))
    return found


def _left(group: Path, limit: str, used: str, cache: str) -> int | None:
    """What one control group leaves; None where it has no limit."""
    most, now = _lines(group / limit), _lines(group / used)
    if not most or not now or not most[0].isdigit() or int(most[0]) >= 2**60:  # "max", or version 1's largest number
        return None
    dropped = [line.split()[1] for line in _lines(group / "memory.stat") if line.startswith(f"{cache} ")]
    return int(most[0]) - int(now[0]) + (int(dropped[0]) if dropped else 0)


def _lines(path: Path) -> list[str]:
    """Lines of a file of the kernel's; none where there is no such file."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


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
