"""Which strategies' train loss no longer says how good the model is elsewhere. Imports no torch.

A residual of 1e-12 at the points of the training is no solution where the residual between them is 1e-4: a network of
many parameters can be right at its points alone.
"""

from typing import Any

from .findings import Finding, epochs_text, series
from .load import Results, finite_values

GAP = 10.0
"""The validation loss over the train loss from which on a run counts, as the warning of `latephase.Points` has it."""


def held_out_headline(results: Results) -> list[Finding]:
    """Return, as one finding, the strategies that end with more than `GAP` times their train loss on held-out rows.

    A strategy counts at a checkpoint where that holds for more than half of its concluded runs, by the last finite
    values of both losses. No finding where there is none, or where the study has no validation split.
    """
    said: dict[str, list[int]] = {}
    for strategy in results.plan.strategies:
        for epoch in results.plan.checkpoints:
            gaps = [_gap(run.evaluations) for run in results.concluded(epoch, strategy)]
            if gaps and 2 * sum(gap > GAP for gap in gaps) > len(gaps):
                said.setdefault(strategy.label, []).append(epoch)
    if not said:
        return []
    who = series([f"“{label}” ({epochs_text(epochs)})" for label, epochs in said.items()])
    text = (
        f"More than ten times the train loss at the end, in most runs: {who}. What these gained last, they gained at "
        "their own training rows; more rows, or points that are drawn anew, would let the train loss say more."
    )
    return [Finding("Loss on held-out rows", text)]


def _gap(evaluations: tuple[dict[str, Any], ...]) -> float:
    """The last validation loss over the last train loss; 0 where one of them is missing."""
    train, valid = (finite_values(evaluations, key)[-1:] for key in ("train_loss", "valid_loss"))
    return valid[0] / train[0] if train and valid and train[0] > 0 else 0.0
