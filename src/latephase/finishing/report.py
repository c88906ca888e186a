"""What `finish` did, in numbers and words."""

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class FinishReport:
    """What became of a model that was to be finished.

    Attributes:
        start: held-out loss of the model as it was given.
        loss: held-out loss of the model as it is now.
        holder: the contestant that held that state; "start" where nobody lowered the loss.
        winner: of the race; None where nobody could go on.
        sureness: of the winner before the runner-up at the end of the race: (difference of held-out losses, half the
            width of its 95 % interval); None where there was no runner-up.
        excluded: who could not take part, and why.
        events: all scores and what became of each contestant, in order.
        spent: of the budget, in `unit`.
        unit: "seconds" or "steps".
        remarks: what a user should know of data and scores.
        folder: where checkpoint and page lie; None where nothing was written.
    """

    start: float
    loss: float
    holder: str
    winner: str | None
    sureness: tuple[float, float] | None
    excluded: dict[str, str]
    events: list[dict[str, Any]]
    spent: float
    unit: str
    remarks: list[str] = field(default_factory=list)
    folder: str | None = None

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.holder == "start":
            return f"Nobody lowered the held-out loss of {self.start:.4g}; the model is as it was."
        ratio = self.start / self.loss if self.loss > 0 else math.inf
        how = f"{ratio:.3g} times lower" if ratio >= 2 else f"{100 * (1 - self.loss / self.start):.2g} % lower"
        text = f"{self.holder} took the held-out loss from {self.start:.4g} to {self.loss:.4g}, {how}."
        if self.sureness is not None and math.isfinite(self.sureness[1]):
            gap, width = self.sureness
            sure = "surely" if abs(gap) > width else "not surely"
            text += f" In the race it was {sure} ahead: by {-gap:.2g}, 95 % interval +- {width:.2g}."
        return text

    def standings(self) -> list[tuple[str, int, float | None, str]]:
        """For each contestant (name, steps, last held-out loss, what became of it), the best first."""
        names = dict.fromkeys(event["name"] for event in self.events if event["name"] != "start")
        found = []
        for name in names:
            own = [event for event in self.events if event["name"] == name]
            scores = [event for event in own if event["event"] in ("score", "look")]
            reasons = [event["reason"] for event in own if event["event"] == "out"]
            won = any(event["event"] == "winner" for event in own)
            became = "won" if won and not reasons else reasons[-1] if reasons else "took part"
            last = scores[-1] if scores else {"steps": 0, "loss": None}
            found.append((name, last["steps"], last["loss"], became))
        return sorted(found, key=lambda row: math.inf if row[2] is None else row[2])

    def __str__(self) -> str:
        """The verdict, the standings, who could not take part, and remarks."""
        lines = [self.verdict, ""]
        for name, steps, loss, became in self.standings():
            told = "no score" if loss is None else f"{loss:.4g}"
            lines.append(f"  {name:20} {steps:7,} steps  held-out loss {told:10}  {became}")
        lines += [f"  {name:20} did not take part: {reason}" for name, reason in self.excluded.items()]
        lines += [f"Note: {remark}" for remark in self.remarks]
        if self.folder is not None:
            lines.append(f"The model's state is {self.folder}/best.pt, the page {self.folder}/index.html.")
        return "\n".join(lines)
