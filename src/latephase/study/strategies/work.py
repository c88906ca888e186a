"""What a strategy has computed, counted in rows of data, so that budgets and costs need no clock."""

from dataclasses import asdict, dataclass

WEIGHTS = {"values": 1, "gradients": 3, "forms": 2, "products": 4}
"""Cost of each kind of pass over a row, in forward passes.

A gradient is a forward and a backward pass, the latter twice the former; a product with the curvature matrix a tangent
and a backward pass, each twice a forward pass; a quadratic form the tangent pass alone. These are the counts of matrix
products in dense layers; measured costs vary with the network (`latephase bench`).
"""


@dataclass
class Work:
    """Counts so far.

    Attributes:
        samples: rows of data drawn.
        values: rows of forward passes without gradient.
        gradients: rows of gradients.
        forms: rows of quadratic forms.
        products: rows of curvature products.
    """

    samples: int = 0
    values: int = 0
    gradients: int = 0
    forms: int = 0
    products: int = 0

    def equivalents(self, batch_rows: int) -> float:
        """All passes by their weights, in gradients of a batch of so many rows."""
        return sum(WEIGHTS[kind] * getattr(self, kind) for kind in WEIGHTS) / (WEIGHTS["gradients"] * batch_rows)

    def as_dict(self) -> dict[str, int]:
        """The counts by name."""
        return asdict(self)
