"""The certified nonlinear regressions of NIST's Statistical Reference Datasets: formulas, and a reader of the files.

https://www.itl.nist.gov/div898/strd/nls/nls_main.shtml has a file NAME.dat for each: two starts, the certified
parameters with the residual sum of squares to eleven digits, and the data.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch


def _of(name: str) -> Callable[[Any], Any]:
    """An elementary function of torch for tensors, of NumPy for the rest."""
    return lambda v: getattr(torch if isinstance(v, torch.Tensor) else np, name)(v)


exp, cos, sin, arctan = (_of(name) for name in ("exp", "cos", "sin", "arctan"))


def _saturation(b, x):
    return b[0] * (1 - exp(-b[1] * x))


def _decay_over_line(b, x):
    return exp(-b[0] * x) / (b[1] + b[2] * x)


def _two_peaks(b, x):
    first = b[2] * exp(-((x - b[3]) ** 2) / b[4] ** 2)
    return b[0] * exp(-b[1] * x) + first + b[5] * exp(-((x - b[6]) ** 2) / b[7] ** 2)


def _three_decays(b, x):
    return b[0] * exp(-b[1] * x) + b[2] * exp(-b[3] * x) + b[4] * exp(-b[5] * x)


def _cubics(b, x):
    return (b[0] + b[1] * x + b[2] * x**2 + b[3] * x**3) / (1 + b[4] * x + b[5] * x**2 + b[6] * x**3)


def _three_cycles(b, x):
    found = b[0]
    for period, c, s in ((12, 1, 2), (b[3], 4, 5), (b[6], 7, 8)):
        found = found + b[c] * cos(2 * math.pi * x / period) + b[s] * sin(2 * math.pi * x / period)
    return found


MODELS: dict[str, Callable[[Any, Any], Any]] = {
    "Bennett5": lambda b, x: b[0] * (b[1] + x) ** (-1 / b[2]),
    "BoxBOD": _saturation,
    "Chwirut1": _decay_over_line,
    "Chwirut2": _decay_over_line,
    "DanWood": lambda b, x: b[0] * x ** b[1],
    "ENSO": _three_cycles,
    "Eckerle4": lambda b, x: b[0] / b[1] * exp(-0.5 * ((x - b[2]) / b[1]) ** 2),
    "Gauss1": _two_peaks,
    "Gauss2": _two_peaks,
    "Gauss3": _two_peaks,
    "Hahn1": _cubics,
    "Kirby2": lambda b, x: (b[0] + b[1] * x + b[2] * x**2) / (1 + b[3] * x + b[4] * x**2),
    "Lanczos1": _three_decays,
    "Lanczos2": _three_decays,
    "Lanczos3": _three_decays,
    "MGH09": lambda b, x: b[0] * (x**2 + x * b[1]) / (x**2 + x * b[2] + b[3]),
    "MGH10": lambda b, x: b[0] * exp(b[1] / (x + b[2])),
    "MGH17": lambda b, x: b[0] + b[1] * exp(-x * b[3]) + b[2] * exp(-x * b[4]),
    "Misra1a": _saturation,
    "Misra1b": lambda b, x: b[0] * (1 - (1 + b[1] * x / 2) ** -2),
    "Misra1c": lambda b, x: b[0] * (1 - (1 + 2 * b[1] * x) ** -0.5),
    "Misra1d": lambda b, x: b[0] * b[1] * x / (1 + b[1] * x),
    "Nelson": lambda b, x: b[0] - b[1] * x[0] * exp(-b[2] * x[1]),
    "Rat42": lambda b, x: b[0] / (1 + exp(b[1] - b[2] * x)),
    "Rat43": lambda b, x: b[0] / (1 + exp(b[1] - b[2] * x)) ** (1 / b[3]),
    "Roszman1": lambda b, x: b[0] - b[1] * x - arctan(b[2] / (x - b[3])) / math.pi,
    "Thurber": _cubics,
}
"""Parameters and predictors -> predicted response, of arrays or tensors."""
BEYOND_FLOAT64 = ("Lanczos1",)
"""Residuals are 1e-13 of data of order one, which float64 rounds by 1e-16: even the exact minimum for the rounded data
agrees with the certified sum of squares in three digits only."""
EXTENDED = bool(np.finfo(np.longdouble).eps < 1e-18)
"""Whether NumPy's long double has digits beyond float64's on this machine."""


@dataclass(frozen=True)
class Regression:
    """A certified regression.

    Attributes:
        name: as NIST's file is called.
        starts: the two starts [P].
        certified: parameters [P].
        squares: certified residual sum of squares.
        response: y [N], in extended precision where the machine has it.
        predictors: x [N], or [2, N] where there are two.
    """

    name: str
    starts: tuple[np.ndarray, np.ndarray]
    certified: np.ndarray
    squares: float
    response: np.ndarray
    predictors: np.ndarray

    def residuals(self, b: np.ndarray) -> np.ndarray:
        """R [N] in float64."""
        return MODELS[self.name](b, self.predictors.astype(float)) - self.response.astype(float)

    def extended_residuals(self, b: np.ndarray) -> np.ndarray:
        """The same, the difference taken in extended precision before it is rounded to float64."""
        return (MODELS[self.name](b.astype(np.longdouble), self.predictors) - self.response).astype(float)

    def tensor_residuals(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """Parameters [P] -> residuals [N], of float64 tensors."""
        x, y = torch.tensor(self.predictors.astype(float)), torch.tensor(self.response.astype(float))
        return lambda b: MODELS[self.name](b, x) - y

    def jacobian(self, b: np.ndarray) -> np.ndarray:
        """Exact dr/db [N, P]."""
        rows: Any = torch.func.jacfwd(self.tensor_residuals())(torch.tensor(b))
        return rows.numpy()

    def digits(self, squares: float) -> float:
        """Decimal digits in which a sum of squares agrees with the certified one, at most its eleven."""
        error = abs(squares - self.squares) / self.squares
        return 0.0 if math.isnan(error) else max(0.0, min(11.0, -math.log10(max(error, 1e-11))))


def read(folder: Path, name: str) -> Regression:
    """The regression of a file."""
    lines = (folder / f"{name}.dat").read_text(encoding="ascii").splitlines()
    pattern = r"\s*b\d+\s*=\s*(\S+)\s+(\S+)\s+(\S+)\s+(\S+)"
    found = [re.match(pattern, line) for line in lines[40:60]]
    table = np.array([[float(word) for word in row.groups()] for row in found if row])
    squares = next(float(line.split(":")[1]) for line in lines if line.startswith("Residual Sum of Squares"))
    data = np.array([[np.longdouble(word) for word in line.split()] for line in lines[60:] if line.strip()])
    response = np.log(data[:, 0]) if name == "Nelson" else data[:, 0]
    predictors = data[:, 1] if data.shape[1] == 2 else data[:, 1:].T
    return Regression(name, (table[:, 0], table[:, 1]), table[:, 2], squares, response, predictors)
