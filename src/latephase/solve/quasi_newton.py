"""Quasi-Newton updates of the inverse Hessian: Broyden's class, self-scaled, as changes of low rank."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

UPDATES = ("broyden", "bfgs", "unscaled_bfgs")


@dataclass(frozen=True)
class Scalars:
    """What an update depends on beside the vectors, with rho = 1 / y's.

    Attributes:
        h: rho y'Hy.
        b: rho s'H^-1 s; None where that is not known.
    """

    h: float
    b: float | None

    @property
    def a(self) -> float:
        """The number b h - 1: 0 where s and Hy have one direction, elsewhere above it (Cauchy and Schwarz)."""
        return max(self.h * (1.0 if self.b is None else self.b) - 1, 0.0)


@dataclass(frozen=True)
class Correction:
    """An update H <- H / tau + sum_k sign_k u_k u_k' of the inverse Hessian.

    Attributes:
        tau: the scale, > 0.
        theta: member of Broyden's class: 0 is BFGS, 1 DFP, both written for the inverse.
        vectors: u [P, 3].
        signs: [3], each 1 or -1.
    """

    tau: float
    theta: float
    vectors: Tensor
    signs: Tensor

    def apply_(self, inverse: Tensor) -> Tensor:
        """Update the matrix [P, P] in place, in one pass over it; it stays symmetric to the last bit."""
        return inverse.addmm_(self.vectors * self.signs, self.vectors.mT, beta=1 / self.tau)


def correction(
    s: Tensor, y: Tensor, hy: Tensor, curved: float | None, update: str = "broyden", first: bool = False
) -> Correction | None:
    """The update that gives the inverse Hessian H the secant condition H y = s.

    With rho = 1 / y's, h = rho y'Hy, b = rho s'H^-1 s and v = rho s - Hy / (y'Hy),

        H <- (H - Hy y'H / (y'Hy) + phi (y'Hy) v v') / tau + rho s s'

    where phi = (1 - theta) / (1 + a theta) and a = b h - 1.

    It is positive definite where H is, since y's > 0, tau > 0 and theta > -1 / a.

    Args:
        s: change of the parameters [P].
        y: change of the gradient along it [P], on the same data.
        hy: H y [P].
        curved: s'H^-1 s. With s = alpha p and p = -H g this is -alpha s'g. None where s is no multiple of -H g; the
            update then is that of BFGS without a scale, which does not need it.
        update: "broyden" (default), the self-scaled member of Broyden's class of Al-Baali and Khalfan (2005), as Urbán,
            Stefanou and Pons (2024, arXiv:2405.04230) write it for H; "bfgs", BFGS with tau = min(1, 1/b) (Al-Baali
            1998); "unscaled_bfgs", with tau = 1.
        first: H is the identity, which has no scale of its own: tau = h / (1 + a theta), that of "bfgs" y'y / y's
            (Shanno and Phua 1978). Default False. "unscaled_bfgs" takes no notice.

    Returns:
        The update; None where y's is not above the rounding of that product, or something is not finite: H is then
        best left as it is.

    Raises:
        ValueError: an unknown update.
    """
    if update not in UPDATES:
        raise ValueError(f"update must be one of {', '.join(UPDATES)}; got {update!r}")
    products = torch.stack([y.dot(s), y.dot(hy), s.dot(s), y.dot(y)]).tolist()
    ys, yhy, ss, yy = products
    smallest = torch.finfo(s.dtype).eps * math.sqrt(max(ss * yy, 0.0))
    if not all(map(math.isfinite, products)) or ys <= smallest or yhy <= 0:
        return None
    scalars = Scalars(h=yhy / ys, b=None if curved is None else curved / ys)
    theta, tau = 0.0, 1.0
    if update != "unscaled_bfgs" and scalars.b is not None and scalars.b > 0:
        theta, tau = _scaled(scalars, len(s), update, first)
    phi = (1 - theta) / (1 + scalars.a * theta)
    v = s / ys - hy / yhy
    columns = (hy / math.sqrt(yhy * tau), v * math.sqrt(abs(phi) * yhy / tau), s / math.sqrt(ys))
    vectors = torch.stack(columns, dim=1)
    if not bool(vectors.isfinite().all()) or not 0 < tau < math.inf:
        return None
    signs = vectors.new_tensor([-1.0, math.copysign(1.0, phi), 1.0])
    return Correction(tau, theta, vectors, signs)


def _scaled(scalars: Scalars, size: int, update: str, first: bool) -> tuple[float, float]:
    """Theta and tau of a self-scaled update (Urbán, Stefanou and Pons 2024, arXiv:2405.04230)."""
    h, b, a = scalars.h, scalars.b or 1.0, scalars.a
    if update == "bfgs":
        return 0.0, h if first else min(1.0, 1 / b)
    r = min(1.0, h * (1 - math.sqrt(a / (1 + a))))
    least = (r - 1) / a if a > 0 else -math.inf  # with a = 0 all members are one
    theta = max(least, min(1 / r, (1 - b) / b)) if r > 0 else max(least, (1 - b) / b)
    sigma = 1 + theta * a
    if first:
        return theta, h / sigma
    root = sigma ** (1 / (1 - size)) if size > 1 else 1.0
    most = min(1.0, 1 / b)
    return theta, min(most * root, sigma) if theta <= 0 else most * min(root, 1 / theta)
