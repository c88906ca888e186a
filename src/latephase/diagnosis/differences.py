"""Derivatives against finite differences of what they are derivatives of."""

import math

import torch
from torch import Tensor

from .graph import has_kinks, suspects
from .report import some
from .subject import Subject

AGREES = 0.05
"""Relative error of a finite difference that is taken for agreement."""

WRONG = 0.1
"""Relative error that is a wrong derivative, where differences with steps ten times apart agree with each other."""

HESSIAN_AGREES, HESSIAN_WRONG = 0.01, 0.03
"""The same for products with the Hessian: no rounding of a loss hides them, and what is wrong may be a small part."""

MOST_TENSORS = 32
"""Tensors that are looked at one by one where the whole gradient is wrong."""


def check_slope(subject: Subject, gradient: Tensor) -> None:
    """The gradient [P] against differences of the loss, in a direction that moves all tensors alike."""
    space = subject.space
    norms = [float(piece.norm()) for piece in gradient.split(space.sizes)]
    moved = [i for i, norm in enumerate(norms) if norm > 1e-4 * max(norms)]
    if not moved:
        subject.find("slope", "note", "The gradient is zero: there is nothing to compare with finite differences.")
        return
    error = _slope_error(subject, gradient, _direction(subject, gradient, moved))
    if error is None:
        message = "Finite differences of the loss are too coarse here to check the gradient: rounding, or roughness."
        subject.find("slope", "note", message)
    elif abs(error) <= WRONG:
        message = f"The loss changes along the gradient as that says (finite difference off by {abs(error):.1g})."
        subject.find("slope", "ok", message, error)
    else:
        moved = sorted(moved, key=lambda i: -norms[i])[:MOST_TENSORS]
        errors = {i: _slope_error(subject, gradient, _direction(subject, gradient, [i])) for i in sorted(moved)}
        wrong = [space.names[i] for i, e in errors.items() if e is not None and abs(e) > WRONG]
        where = f"; the slopes of {some(wrong)} are wrong" if wrong else ""
        message = (
            f"The loss changes {1 + error:.3g} times as fast as its gradient says, by finite differences{where}. "
            f"{suspects(subject)} A detach, a no_grad or a surrogate gradient does this too; reduction ratio and line "
            "search then compare the loss with a model that is not its own."
        )
        subject.find("slope", "defect", message, tuple(wrong))


def _direction(subject: Subject, gradient: Tensor, moved: list[int]) -> Tensor:
    """Of length 1, moving each of the given tensors equally far along its gradient."""
    direction = torch.zeros_like(gradient)
    pieces = list(zip(direction.split(subject.space.sizes), gradient.split(subject.space.sizes), strict=True))
    for i in moved:
        pieces[i][0].copy_(pieces[i][1] / pieces[i][1].norm())
    return direction / len(moved) ** 0.5


def _slope_error(subject: Subject, gradient: Tensor, direction: Tensor) -> float | None:
    """Relative error of central differences: of the first that agrees, or of two steps that agree with each other."""
    theta = subject.space.values()
    loss, slope = abs(subject.numbers["loss"]), float(torch.dot(gradient, direction))
    longest, share, before = 0.1 * max(float(theta.norm()), 1.0), 1e-2, None
    while share >= 100 * subject.epsilon:  # of the loss; below, its rounding is more than a hundredth of the change
        step = share * loss / (2 * slope)
        share /= 10
        if not 0 < step <= longest:
            continue
        # As rounded to the parameters' dtype.
        up, down = (subject.space.flatten(subject.space.unflatten(theta + sign * step * direction)) for sign in (1, -1))
        expected = float(torch.dot(gradient.double(), (up - down).double()))
        error = (subject.value(up) - subject.value(down)) / expected - 1 if expected else math.nan
        if abs(error) <= AGREES or (before is not None and abs(error - before) <= AGREES * max(1.0, abs(error))):
            return error
        before = error if math.isfinite(error) else None
    return None


def check_hessian_differences(subject: Subject, v: Tensor, product: Tensor) -> tuple[str, bool]:
    """Hessian product of v [P], |v| = 1, against differences of the gradient along v.

    Returns:
        What was found in words, and whether it is wrong.
    """
    if float(product.norm()) == 0 or subject.epsilon > 1e-4:
        return "", False
    theta, before = subject.space.values(), None
    for share in (1e-2, 1e-3, 1e-4, 1e-5):
        step = share * max(float(theta.norm()), 1.0)
        difference = (subject.gradient(theta + step * v) - subject.gradient(theta - step * v)) / (2 * step)
        error = float((difference - product).norm() / product.norm())
        if error <= HESSIAN_AGREES:
            return f"They agree with differences of gradients (off by {error:.1g}).", False
        settled = before is not None and float((difference - before).norm() / difference.norm()) <= HESSIAN_AGREES
        if settled and error > HESSIAN_WRONG:
            if has_kinks(subject):
                return "Differences of gradients see kinks (such as ReLU's) that they leave out, as they must.", False
            wrong = any(finding.name == "slope" and finding.severity == "defect" for finding in subject.findings)
            why = "see slope." if wrong else f"a backward hides a part of its own derivative. {suspects(subject)}"
            return f"They differ from differences of gradients by {error:.2g}, relatively: {why}", True
        before = difference
    return "", False
