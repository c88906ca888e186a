"""What a check found, as values and as a plain text table."""

import textwrap
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["ok", "note", "warning", "defect"]
"""From good to bad."""

WIDTH = 80
"""Columns of the text, which fit the narrowest terminal in use and a notebook's cell."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what was looked at; no two findings of a report have the same.
        severity: "ok"; "note": good to know; "warning": works, but not as you may think; "defect": wrong results, or
            steps that cannot be taken.
        message: what was found and, where it is not ok, what to do about it, in words.
        value: the number or the names behind the message, for scripts; None where there is none.
    """

    name: str
    severity: Severity
    message: str
    value: Any = None


@dataclass(frozen=True, repr=False)
class CheckReport:
    """What `latephase.check` found. Its text is a table; numbers that could not be measured are None.

    Attributes:
        findings: in the order in which they were looked at.
        parameters: trainable numbers P.
        loss: f(theta).
        gradient_norm: of the gradient of f.
        method: how Gauss-Newton products are computed from the second step on: "traced", "linearize" or
            "double_backward".
        first_method: the same in the first step.
        hessian_method: the same for the Hessian, from the second step on.
        largest_curvature: estimate of the largest eigenvalue of the Gauss-Newton matrix, from below. A damping far
            above it turns steps into gradient descent.
        gradient_bytes: peak memory of one gradient beside parameters and data, an estimate.
        step_bytes: the same of a step of 10 iterations of conjugate gradients.
        seconds_per_gradient: median.
        seconds_per_product: median, of the Gauss-Newton matrix.
        seconds_per_step: median of a step of 10 iterations of conjugate gradients.
        suggested_microbatch_size: rows of the largest chunk that fits half of the free memory; all rows where the batch
            fits whole.
    """

    findings: tuple[Finding, ...]
    parameters: int = 0
    loss: float | None = None
    gradient_norm: float | None = None
    method: str | None = None
    first_method: str | None = None
    hessian_method: str | None = None
    largest_curvature: float | None = None
    gradient_bytes: int | None = None
    step_bytes: int | None = None
    seconds_per_gradient: float | None = None
    seconds_per_product: float | None = None
    seconds_per_step: float | None = None
    suggested_microbatch_size: int | None = None

    @property
    def ok(self) -> bool:
        """Whether there is no defect."""
        return not self.of_severity("defect")

    def of_severity(self, *severities: Severity) -> tuple[Finding, ...]:
        """The findings of the given severities."""
        return tuple(finding for finding in self.findings if finding.severity in severities)

    def finding(self, name: str) -> Finding | None:
        """The finding of a name; None where that was not looked at."""
        return next((finding for finding in self.findings if finding.name == name), None)

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON."""
        return asdict(self) | {"ok": self.ok}

    @property
    def verdict(self) -> str:
        """The end of the text: how many findings of which severity, and what that means."""
        said = []
        for severity in ("defect", "warning", "note"):
            names = [finding.name for finding in self.of_severity(severity)]
            if names:
                which = "" if severity == "note" else f" ({', '.join(names)})"
                said.append(f"{len(names)} {severity}{'' if len(names) == 1 else 's'}{which}")
        if not self.ok:
            return f"Not ready for second-order steps: {_listed(said)}."
        return f"Ready for second-order steps{': no defect, ' if said else ''}{_listed(said)}."

    def __str__(self) -> str:
        """A table of three columns, 80 characters wide, and the verdict."""
        if not self.findings:
            return self.verdict
        first = max(len(finding.name) for finding in self.findings)
        lead = first + 11
        lines = []
        for finding in self.findings:
            head = f"{finding.name:<{first}}  {label(finding.severity):<9}"
            wrapped = textwrap.wrap(finding.message, WIDTH - lead, break_on_hyphens=False) or [""]
            lines += [head + wrapped[0], *(" " * lead + line for line in wrapped[1:])]
        return "\n".join([*lines, "", *textwrap.wrap(self.verdict, WIDTH)])

    __repr__ = __str__


def label(severity: Severity) -> str:
    """The severity as it is written in a table: loud where something is to be done."""
    return severity if severity in ("ok", "note") else severity.upper()


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + f" and {parts[-1]}" if parts else ""


def some(names: Iterable[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def bytes_in_words(count: float) -> str:
    """A number of bytes with a unit."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB" if count < 1000 else f"{count:,.0f} GiB"


def ratio_in_words(ratio: float) -> str:
    """A ratio to two digits."""
    return f"{ratio:.2g}" if ratio < 10 else f"{ratio:,.0f}"


def seconds_in_words(seconds: float) -> str:
    """A duration with a unit."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def sentence(text: object) -> str:
    """With a capital first letter."""
    words = str(text)
    return words[:1].upper() + words[1:]


def lowered(text: str) -> str:
    """For the middle of a sentence: a small first letter, unless the first word is a name, and no full stop."""
    name = not text[:1].isupper() or not text.partition(" ")[0][1:].islower()
    return (text if name else text[:1].lower() + text[1:]).rstrip(".")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without a full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else "no message"
