"""glibc's allocator as `latephase bench` sets it, for the benchmarks beside this file."""

import os
import sys

from latephase.study.performing import ALLOCATOR


def keep_memory() -> None:
    """Start the program anew where glibc may give memory back between calls: it reads this when a process starts."""
    if not ALLOCATOR.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)
