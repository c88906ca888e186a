"""What runs are compared by: the losses and the metrics of the problem, and how their values are written."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

UNITS = {"seconds": "seconds", "steps": "steps", "gradients": "gradient-equivalents"}
"""The units of a budget, as readers know them."""


@dataclass(frozen=True)
class Measure:
    """A number of an evaluation row that runs are compared by.

    Attributes:
        key: Its field in an evaluation row, such as "train_loss".
        higher_is_better: The direction of improvement.
    """

    key: str
    higher_is_better: bool

    @property
    def best(self) -> str:
        """The column of ``scores.csv`` with the best value within the budget."""
        return f"best_{self.key}"

    @property
    def name(self) -> str:
        """What readers call it."""
        return self.key.replace("_", " ").replace("rmse", "RMSE").replace(" l2 ", " L2 ")

    @property
    def heading(self) -> str:
        """The name at the head of a panel or column."""
        return self.name[0].upper() + self.name[1:]

    @property
    def title(self) -> str:
        """How the best mean is called."""
        return f"{'Highest' if self.higher_is_better else 'Lowest'} mean {self.name}"

    @property
    def is_share(self) -> bool:
        """Whether it is a fraction of the rows, written in per cent."""
        return self.key.endswith("accuracy")

    @property
    def unit(self) -> str:
        """The unit of a difference, with a space before it."""
        return " percentage points" if self.is_share else ""

    def choose(self, values: Sequence[float]) -> float:
        """Return the best of some values."""
        return max(values) if self.higher_is_better else min(values)

    def lead(self, ours: float, theirs: float) -> float:
        """How far ``ours`` is better than ``theirs``; negative where it is worse."""
        return ours - theirs if self.higher_is_better else theirs - ours

    def reaches(self, value: float, target: float) -> bool:
        """Whether a value is as good as the target or better."""
        return self.lead(value, target) >= 0

    def value(self, number: float) -> str:
        """Write a value: a share in per cent with two decimals, else four significant digits."""
        return f"{100 * number:.2f}%" if self.is_share else number_text(number)

    def difference(self, number: float) -> str:
        """Write the size of a difference of two values, without its unit."""
        return f"{100 * abs(number):.2f}" if self.is_share else _two_digits(abs(number))

    def signed(self, number: float) -> str:
        """Write a difference with its sign, without its unit."""
        sign = "+" if number > 0 else "−" if number < 0 else ""
        return f"{sign}{self.difference(number)}"


TRAIN_LOSS = Measure("train_loss", False)
TEST_LOSS = Measure("test_loss", False)
TEST_ACCURACY = Measure("test_accuracy", True)


def measures_of(metrics: Sequence[dict[str, Any]]) -> tuple[Measure, ...]:
    """Return all measures of a problem: train loss, test loss, and each of its metrics on the test split.

    Args:
        metrics: The entry "metrics" of ``problem.json``.
    """
    own = (Measure(f"test_{metric['name']}", bool(metric["higher_is_better"])) for metric in metrics)
    return TRAIN_LOSS, TEST_LOSS, *own


def main_measures(measures: Sequence[Measure]) -> tuple[Measure, ...]:
    """Return the measures that figures and verdicts are about.

    Train loss and test accuracy, as in the paper; where there is no accuracy, train loss, test loss and the problem's
    first own metric.
    """
    if TEST_ACCURACY in measures:
        return TRAIN_LOSS, TEST_ACCURACY
    return tuple(measures[:3])


def number_text(number: float) -> str:
    """Write a number with four significant digits."""
    return f"{number:#.4g}".rstrip(".")


def duration_text(seconds: float) -> str:
    """Write a duration in the units that a reader would choose."""
    if seconds < 120:
        digits = 2 if seconds < 10 else 1
        return f"{seconds:.{digits}f}\u00a0s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}\u00a0h {minutes}\u00a0min" if hours else f"{minutes}\u00a0min {rest}\u00a0s"


def amount_text(amount: float, unit: str) -> str:
    """Write an amount of budget in its unit, such as "15.3 s" or "1,200 steps"."""
    if unit == "seconds":
        return duration_text(amount)
    name = UNITS[unit].removesuffix("s") if amount == 1 else UNITS[unit]
    return f"{amount:,.6g}\u00a0{name}"


def p_text(p: float) -> str:
    """Write a p-value with two significant digits."""
    return "p\u00a0<\u00a00.001" if p < 0.001 else f"p\u00a0=\u00a0{p:.2g}"


def _two_digits(number: float) -> str:
    if number == 0 or number >= 100:
        return f"{number:.0f}"
    return f"{number:#.2g}".rstrip(".") if number >= 1e-4 else f"{number:.1e}"
