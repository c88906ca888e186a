"""What a run ran on: versions, processor, threads, commit."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any


def describe_environment(threads: int, jobs: int, device: str = "cpu") -> dict[str, Any]:
    """The machine and the software as plain JSON.

    Args:
        threads: threads of each run.
        jobs: runs at a time.
        device: where the steps run.
    """
    import torch  # whoever reads records has no need of it

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": importlib.metadata.version("numpy"),
        "latephase": importlib.metadata.version("latephase"),
        "git_commit": _commit(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": threads,
        "jobs": jobs,
        "allocator": " ".join(f"{name}={os.environ[name]}" for name in sorted(os.environ) if "MALLOC_" in name) or None,
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
    }


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the source tree, with a mark where it has changes; None outside a repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        change = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + (" with changes" if change.stdout.strip() else "")
