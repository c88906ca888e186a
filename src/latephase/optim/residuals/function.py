"""The user's function of residuals: called with what the user gave, NumPy or torch, and its derivatives."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import jacrev, jvp, vmap

from ...objective import quiet_forward_mode

Callback = Callable[[Any], Any]
WIDTH = 256
"""Directions of a Jacobian that are computed at once: enough to fill the vector units, few enough for memory."""
WIDE = torch.float64
"""Of all that is computed; x goes back to the dtype of x0 at the end."""


class ResidualFunction:
    """A function x [P] -> r [N] in float64 tensors.

    Args:
        function: the user's.
        x0: start, one-dimensional; a tensor or whatever NumPy makes an array of.
        jac: the user's x -> dr/dx [N, P], or none.

    Attributes:
        start: x0 as a float64 tensor [P].
        rounding: unit of rounding of the residuals.
        evaluations: of the function, without those for differences.
        jacobians: how many there have been.

    Raises:
        TypeError: what is given is no function, or not numbers.
        ValueError: a shape or a value that cannot be.
    """

    def __init__(self, function: Callback, x0: Any, jac: Callback | None):
        if not callable(function):
            raise TypeError(f"function must be callable, x -> residuals [N]; got {type(function).__name__}")
        if jac is not None and not callable(jac):
            raise TypeError(
                f"jac must be a function x -> dr/dx [N, P], or None; got {jac!r}. With NumPy None means central "
                "differences, with torch automatic derivatives"
            )
        self._function, self._jac = function, jac
        self._torch = isinstance(x0, Tensor)
        given = x0.detach() if isinstance(x0, Tensor) else _array(x0, "x0")
        self._dtype: Any = given.dtype  # of either library
        self.start = _checked_start(given if isinstance(given, Tensor) else torch.from_numpy(given.astype(float)))
        self.evaluations = self.jacobians = 0
        self.rounding = torch.finfo(WIDE).eps
        self._size: int | None = None
        self._forward = True

    def given(self, x: Tensor, as_x0: bool = False) -> Any:
        """A tensor as the user gave x0: NumPy's or torch's, and in its dtype where that is wanted."""
        if self._torch:
            return x.to(self._dtype) if as_x0 and self._dtype.is_floating_point else x
        array = x.numpy()
        return array.astype(self._dtype) if as_x0 and np.issubdtype(self._dtype, np.floating) else array

    def first(self) -> Tensor:
        """R [N] at the start."""
        self.evaluations += 1
        with torch.no_grad():
            try:
                found = self._function(self._argument(self.start))
            except Exception as error:
                if self._dtype not in (torch.float64, np.float64):
                    error.add_note(
                        f"function was given x0 in float64, to which {self._dtype} is widened; so must be data"
                    )
                raise
            r = self._tensor(found, "function")
        if r.ndim != 1 or len(r) == 0:
            raise ValueError(
                f"function must return residuals of shape [N] with N >= 1, got {list(r.shape)}; "
                "a matrix of residuals goes in as .ravel(), a single one as an array with one entry"
            )
        self._size = len(r)
        if not bool(r.isfinite().all()):
            raise ValueError(
                f"{int((~r.isfinite()).sum())} of {len(r)} residuals at x0 are not finite, the first at index "
                f"{int((~r.isfinite()).nonzero()[0])}: begin where the function is defined"
            )
        return r

    def values(self, x: Tensor) -> Tensor | None:
        """R [N] at a trial; None where it is not finite."""
        self.evaluations += 1
        return self._values(x)

    def _values(self, x: Tensor) -> Tensor | None:
        if not bool(x.isfinite().all()):
            return None
        with torch.no_grad(), np.errstate(all="ignore"):
            try:
                found = self._function(self._argument(x))
            except ArithmeticError:  # as math.exp raises where NumPy's is infinite
                return None
            r = self._tensor(found, "function")
        if r.shape != (self._size,):
            raise ValueError(
                f"function returned {list(r.shape)} residuals after [{self._size}] at x0; their number must not change "
                f"with x. It happened at x = {self.given(x)}"
            )
        return r if bool(r.isfinite().all()) else None

    def rows(self, x: Tensor, r: Tensor, typical: Tensor) -> Tensor | None:
        """Dr/dx [N, P]; None where it is not finite.

        Args:
            x: where [P].
            r: residuals there [N].
            typical: size of each unknown [P], by which differences are taken.
        """
        self.jacobians += 1
        if self._jac is not None:
            with torch.no_grad(), np.errstate(all="ignore"):
                rows = self._tensor(self._jac(self._argument(x)), "jac")
            if rows.shape != (len(r), len(x)):
                raise ValueError(f"jac must return shape {[len(r), len(x)]}, dr_i/dx_j; got {list(rows.shape)}")
        elif self._torch:
            rows = self._automatic(x, len(r))
        else:
            rows = self._differences(x, r, typical)
        return rows if bool(rows.isfinite().all()) else None

    def _automatic(self, x: Tensor, count: int) -> Tensor:
        """Columns by forward derivatives where there are fewer of them, else rows by backward ones."""

        def function(x: Tensor) -> Tensor:
            return self._tensor(self._function(x), "function")

        if self._forward and len(x) <= count:
            along = vmap(lambda tangent: jvp(function, (x,), (tangent,))[1], chunk_size=WIDTH)
            try:
                with quiet_forward_mode():
                    return along(torch.eye(len(x)).to(x)).mT.contiguous()
            except NotImplementedError:  # an operation without forward derivatives
                self._forward = False
        rows: Any = jacrev(function, chunk_size=WIDTH)(x)
        return rows.detach()

    def _differences(self, x: Tensor, r: Tensor, typical: Tensor) -> Tensor:
        """Central differences; one-sided where the other side is not finite.

        The step eps^(1/3) of the unknown's size balances truncation, h^2, with rounding, eps / h.
        """
        steps = self.rounding ** (1 / 3) * torch.where(typical > 0, typical, 1.0)
        rows = r.new_empty(len(r), len(x))
        for j, step in enumerate(steps.tolist()):
            ahead, behind = x.clone(), x.clone()
            ahead[j] += step
            behind[j] -= step
            there, back = self._values(ahead), self._values(behind)
            if there is None:
                there, ahead = r, x
            if back is None:
                back, behind = r, x
            rows[:, j] = (there - back) / (ahead[j] - behind[j])  # not finite where neither side is
        return rows

    def _argument(self, x: Tensor) -> Any:
        """What the user's function gets: a copy, which it may change."""
        return x.clone() if self._torch else x.numpy().copy()

    def _tensor(self, found: Any, what: str) -> Tensor:
        """What the user's function returned, in float64."""
        if self._torch:
            if not isinstance(found, Tensor):
                raise TypeError(f"{what} got a tensor and must return one, got {type(found).__name__}")
            if found.is_complex():
                raise TypeError(f"{what} returned complex numbers; return real and imaginary parts as residuals")
            if found.dtype.is_floating_point and what == "function":
                self.rounding = max(self.rounding, torch.finfo(found.dtype).eps)
            return found.to(self.start)
        array = _array(found, what)
        if np.issubdtype(array.dtype, np.floating) and what == "function":
            self.rounding = max(self.rounding, float(np.finfo(array.dtype).eps))
        return torch.from_numpy(array.astype(float))


def _array(found: Any, what: str) -> np.ndarray:
    """What NumPy makes of it, if that is real numbers."""
    if isinstance(found, Tensor):
        raise TypeError(f"{what} returned a tensor for a NumPy array; give x0 as a tensor to compute with torch")
    try:
        array = np.asarray(found)
    except ValueError as error:
        raise TypeError(f"{what} must be an array of real numbers: {error}") from error
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{what} must be an array of real numbers, got dtype {array.dtype}")
    return array


def _checked_start(x: Tensor) -> Tensor:
    if x.is_complex():
        raise TypeError("x0 must be real, got complex numbers; take real and imaginary parts as unknowns")
    if x.ndim != 1 or len(x) == 0:
        raise ValueError(f"x0 must be of shape [P] with P >= 1, got {list(x.shape)}; pass x0.ravel()")
    if not bool(x.isfinite().all()):
        raise ValueError(f"x0 must be finite, got {x.tolist()}" if len(x) < 20 else "x0 must be finite")
    return x.to(WIDE).clone()
