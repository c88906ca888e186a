"""One thread at a time: torch's generators, its kernel settings and a model's swapped tensors belong to the process."""

import os
import threading
from contextlib import AbstractContextManager

_lock = threading.RLock()


def exclusive() -> AbstractContextManager[object]:
    """Within, no other thread runs a pass, draws a seed or changes a setting through this package; re-entrant.

    What other threads do with torch by themselves is not held up: random numbers that they draw from torch's own
    generators meanwhile come from the same stream.
    """
    return _lock


def _renew() -> None:
    """A process that was forked while another thread was inside would wait for ever."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
