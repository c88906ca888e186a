"""What `finish` did, in numbers and words."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from .certificate import Certificate


class Standing(NamedTuple):
    """What became of a contestant.

    Attributes:
        name: of it.
        steps: that it took until it was scored last.
        taken: of the budget, in these steps; in seconds without what its first step took longer than its second.
        lowest: held-out loss of what it would have held; None where it was never scored.
        last: the same when it was scored last.
        became: the rest, in words.
    """

    name: str
    steps: int
    taken: float
    lowest: float | None
    last: float | None
    became: str


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
        given: what was given, in words, by what it is.
        certificate: where the model stands now, on training data; None where it could not be computed.
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
    given: dict[str, str] = field(default_factory=dict)
    certificate: Certificate | None = None

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON, and the verdict in words."""
        return asdict(self) | {"verdict": self.verdict, "how_sure": self.how_sure}

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.holder == "start":
            return f"Nobody lowered the held-out loss of {self.start:.4g}; the model is as it was."
        ratio = self.start / self.loss if self.loss > 0 else 1.0
        how = f"{ratio:.3g} times lower" if ratio >= 2 else f"lower by {self.start - self.loss:.2g}"
        return f"{self.holder} took the held-out loss from {self.start:.4g} to {self.loss:.4g}, {how}."

    @property
    def how_sure(self) -> str:
        """What the race says of its winner, and how sure that is, in words; empty where nobody won."""
        if self.winner is None:
            return "Nobody could go on to the end."
        if self.sureness is None:
            return f"{self.winner} was alone: there was nobody to compare it with."
        gap, width = self.sureness
        ahead = f"{-gap:.2g} ahead of the runner-up in held-out loss"
        if gap > 0:
            return f"At the end of the race {self.winner} was {gap:.2g} behind, but those ahead could not go on."
        if not math.isfinite(width):
            return f"At the end of the race {self.winner} was {ahead}; held-out data of one part tells no interval."
        word = "more" if -gap > width else "less"
        sure = "" if -gap > width else ", so that chance may have decided between the two"
        return (
            f"At the end of the race {self.winner} was {ahead}, {word} than the {width:.2g} that chance in the "
            f"held-out rows explains (95 %){sure}."
        )

    def standings(self) -> list[Standing]:
        """For each contestant what became of it, the best first."""
        names = dict.fromkeys(event["name"] for event in self.events if event["name"] != "start")
        found = []
        for name in names:
            own = [event for event in self.events if event["name"] == name]
            scores = [event for event in own if event["event"] in ("score", "look")]
            last = scores[-1] if scores else {"steps": 0, "loss": None, "taken": 0.0}
            lowest = min((e["loss"] for e in scores if e["loss"] is not None), default=None)
            found.append(Standing(name, last["steps"], last["taken"], lowest, last["loss"], _became(own)))
        return sorted(found, key=lambda row: math.inf if row.lowest is None else row.lowest)

    def __str__(self) -> str:
        """The verdict, the standings, who could not take part, and remarks."""
        lines = [self.verdict, self.how_sure, ""]
        for name, steps, taken, lowest, last, became in self.standings():
            loss = "no score" if lowest is None else f"{lowest:.4g}"
            end = f" (at its end {last:.4g})" if last is not None and last != lowest else ""
            cost = f"{steps:7,} steps" + (f" {taken:8.1f} s" if self.unit == "seconds" else "")
            lines.append(f"  {name:20} {cost}  held-out loss {loss}{end}  {became}")
        lines += [f"  {name:20} did not take part: {reason}" for name, reason in self.excluded.items()]
        if self.certificate is not None:
            lines.append(str(self.certificate))
        lines += [f"Note: {remark}" for remark in self.remarks]
        if self.folder is not None:
            lines.append(f"The model's state is {self.folder}/best.pt, the page {self.folder}/index.html.")
        return "\n".join(lines)


def _became(own: list[dict[str, Any]]) -> str:
    """What became of a contestant, from its events."""
    reasons = [event["reason"] for event in own if event["event"] == "out"]
    won = any(event["event"] == "winner" for event in own)
    if not reasons:
        return "won, and went on to the end" if won else "took part"
    if own[-1]["event"] == "out":
        return f"won, and went on until: {reasons[-1]}" if won else f"out: {reasons[-1]}"
    return "went on later, when the winner could not"
