"""How a hand-over proceeds: shares of the budget, and the budget that is being spent."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..parts import Part

CLOCKS = {"seconds": time.perf_counter, "processor_seconds": time.process_time}
UNITS = (*CLOCKS, "steps")


@dataclass(frozen=True)
class Halving(Part):
    """The settings of the race and of what follows it.

    Attributes:
        share: of what is left of the budget at the hand-over, how much the race may cost: what the steps of those take
            who do not win. Scores come on top. Default 0.1: where second order does not pay, this is what
            the question costs.
        looks: how often, after the race, what the winner would hold is scored; the best is what is kept. Default 50,
            with which a run that begins to overfit loses 2 % of its budget at most.
        latest: share of the budget after which the base hands over even where no detector has fired. Default 0.8: a
            fifth is left, a usual length of cooldowns (Hägele et al. 2024).
        at: step of the base after which it hands over, whatever a detector says. Default none.
        vain: share of the looks in a row that may find nothing better before a winner, unless its rate still falls,
            makes room for the next best. Default 0.2: it overfits, or cannot go lower.
        patience: how many steps in a row a winner may call itself stationary before the next best goes on. Default 5.
    """

    kind: ClassVar[str] = "halving"
    share: float = 0.1
    looks: int = 50
    latest: float = 0.8
    at: int | None = None
    patience: int = 5
    vain: float = 0.2

    def __post_init__(self):
        for field in ("share", "latest", "vain"):
            self._check_number(field)
            self._check(0 < getattr(self, field) <= 1, field, "above 0 and at most 1")
        self._check_whole("at", optional=True)
        for field in ("looks", "patience"):
            self._check_whole(field)
            self._check(getattr(self, field) >= 1, field, "at least 1")


class Budget:
    """What may be spent: seconds that pass between `start` and `stop`, or steps.

    Attributes:
        amount: in all.
        unit: "seconds", "processor_seconds" of this process, for machines that others use, or "steps".
        spent: of it.
    """

    def __init__(self, amount: float, unit: str = "seconds"):
        if unit not in UNITS:
            raise ValueError(f"unit must be one of {', '.join(UNITS)}; got {unit!r}")
        if isinstance(amount, bool) or not isinstance(amount, (int, float)) or not 0 < amount < float("inf"):
            raise ValueError(f"budget must be a finite number of {unit} above 0, got {amount!r}")
        self.amount, self.unit, self.spent = float(amount), unit, 0.0
        self._started: float | None = None

    @property
    def left(self) -> float:
        """What has not been spent."""
        return max(0.0, self.amount - self.spent)

    @property
    def seconds_left(self) -> float | None:
        """The same in seconds, where that is known."""
        return self.left if self.unit in CLOCKS else None

    @property
    def clock(self) -> Callable[[], float]:
        """Of its seconds; of what passes where it is in steps."""
        return CLOCKS.get(self.unit, time.perf_counter)

    def start(self) -> None:
        """Begin to count what follows."""
        self._started = self.clock()

    def stop(self, steps: int = 0) -> float:
        """Count what passed since the last `start` or `stop`, or the steps taken; returns it."""
        now = self.clock()
        passed = now - (now if self._started is None else self._started)
        self._started = now
        found = passed if self.unit in CLOCKS else float(steps)
        self.spent += found
        return found

    def state_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {"amount": self.amount, "unit": self.unit, "spent": self.spent}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on with what is spent; the amount and the unit stay this budget's.

        Raises:
            ValueError: in another unit.
        """
        if saved["unit"] != self.unit:
            raise ValueError(f"the budget that was saved is in {saved['unit']}, this one in {self.unit}")
        self.spent = float(saved["spent"])
