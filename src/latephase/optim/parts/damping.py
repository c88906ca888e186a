"""The damping of the next step, and what to say when its adaptation has stopped to help."""

from collections.abc import Mapping
from typing import Any

from ...solve import levenberg_marquardt
from .state import Carried

RISES = 20
"""So many rises of the damping in a row, by 3/2 each a factor of 3,000, are no search for a better one any more."""


def adapt_damping(carried: Carried, used: float, ratio: float, options: Mapping[str, Any]) -> str | None:
    """Set the damping of the next step by Levenberg and Marquardt's rule.

    Args:
        carried: keeps it.
        used: damping of this step.
        ratio: its reduction ratio.
        options: of the optimizer.

    Returns:
        A warning where the damping arrives at a bound or has risen `RISES` steps in a row; None elsewhere.
    """
    low, high = options["damping_range"]
    damping = levenberg_marquardt(
        used, ratio, thresholds=options["damping_thresholds"], factors=options["damping_factors"], bounds=(low, high)
    )
    carried.damping = damping
    rises = carried.count_rise(damping > used)
    if damping != used and damping == high:
        return (
            f"the damping has arrived at the upper bound {high:.3g} of damping_range: the model keeps failing on the "
            "evaluation data and steps are tiny; enlarge the batch, or stop"
        )
    if damping != used and damping == low:
        return (
            f"the damping has arrived at the lower bound {low:.3g} of damping_range: the model predicts so well that "
            "nothing needs to hold it back"
        )
    if rises == RISES:
        return (
            f"the damping has risen {RISES} steps in a row, to {damping:.3g}: the loss on the evaluation data does not "
            "follow the model whatever the damping is, and steps become tiny. Where that objective is of other "
            'data, ratio_data="objective", debias=True or adapt_damping=False helps; larger batches do everywhere'
        )
    return None
