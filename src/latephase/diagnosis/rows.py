"""Whether there are rows of the Gauss-Newton matrix, and what a step by a direct solve takes."""

from ..curvature import linearize
from ..objective import Objective, available, is_exhaustion
from ..optim import Direct, DirectPlan
from .report import first_line, lowered
from .subject import Subject

TRIED = 2**24
"""Numbers of J~ that are computed to see whether rows stand apart: some passes over the model."""


def check_rows(subject: Subject) -> None:
    """Whether `GaussNewton` can take steps: rows, their number, memory and multiplications."""
    free, space = available(subject.space.device), subject.space
    try:
        count = linearize(subject.objective, method="double_backward").row_count()
        tried = _part(subject, count)
        if tried is not None:
            for _ in linearize(tried, method="double_backward").row_pieces():
                pass
    except (RuntimeError, ValueError, NotImplementedError, MemoryError) as error:
        words = first_line(error)
        if is_exhaustion(error):
            message = f"A step by a direct solve does not fit into memory ({lowered(words)})."
        else:
            message = f"GaussNewton has no rows to work with: {lowered(words)}. HessianFree does without."
        subject.find("rows", "note", message, words)
        return
    plan = Direct().plan(count, space.size, space.dtype, free // 4)
    _say(subject, plan, free)


def _part(subject: Subject, count: int) -> Objective | None:
    """So much of the data that its rows are few; None where one example has too many, or there is no data."""
    objective, size = subject.objective, max(subject.space.size, 1)
    if count * size <= TRIED:
        return objective
    examples = TRIED * subject.rows // (count * size)
    return None if subject.free_form or examples < 2 else objective.subsample(examples)


def _say(subject: Subject, plan: DirectPlan, free: int) -> None:
    value = (plan.rows, plan.size, plan.bytes)
    try:
        plan.check_fit(free)
    except MemoryError as error:
        subject.find("rows", "note", f"GaussNewton does not fit: {error}.", value)
        return
    share = " (this rank's share of the rows)" if subject.ranks > 1 else ""
    subject.find("rows", "ok", f"A step of GaussNewton{share}: {plan}.", value)
