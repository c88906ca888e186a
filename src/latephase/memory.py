"""How much memory there is."""

from pathlib import Path

import torch


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
