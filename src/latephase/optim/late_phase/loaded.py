"""A hand-over as a state dict has it, before its model is known."""

from collections.abc import Mapping
from typing import Any

from .contestant import Wants
from .held_out import Score
from .states import State


class Loaded:
    """What a `HandOver` tells of itself, read off the state dict of a `LatePhase`; it takes no steps.

    Args:
        saved: the state dict, of a race that has begun.

    Attributes:
        phase: one of "race", "winner" and "done".
        wants: data of the next step.
        events: what happened.
        sureness: of the winner before the runner-up.
        best: the best score, and who held it.
        held: the state that had it.
        saved: the state dict.
    """

    def __init__(self, saved: Mapping[str, Any]):
        race = saved["hand_over"]["race"]
        parts, held, holder = race["best"]
        self.saved = saved
        self.phase: str = saved["phase"]
        self.wants = None if saved["wants"] is None else Wants(*saved["wants"])
        self.events: list[dict[str, Any]] = [dict(event) for event in race["events"]]
        self.sureness: tuple[float, float] | None = saved["hand_over"]["sureness"]
        self.best: tuple[Score, str] = Score(parts), holder
        self.held: State = held
