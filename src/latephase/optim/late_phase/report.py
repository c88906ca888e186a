"""What a step of `LatePhase` did."""

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LatePhaseReport:
    """What became of a step, whoever took it.

    Attributes:
        phase: after the step: "base", "race", "winner" or "done".
        contestant: whose step it was.
        loss: before the step, on its data; None where the step raised an error.
        spent: of the budget.
        best: the lowest held-out loss that was held so far; None before the hand-over.
        holder: who held it.
        step: the report of the optimizer that took the step, where it has one.
    """

    phase: str
    contestant: str
    loss: float | None
    spent: float
    best: float | None
    holder: str | None
    step: Any = None

    def as_dict(self) -> dict[str, Any]:
        """The fields, with those of the step's own report as step_NAME, ready for JSON."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "step"}
        inner = {} if self.step is None or not hasattr(self.step, "as_dict") else self.step.as_dict()
        return own | {f"step_{name}": value for name, value in inner.items()}
