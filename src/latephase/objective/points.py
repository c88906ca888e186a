"""Points of residual objectives, drawn anew every so often, and others held out to tell what the loss does not."""

import copy
import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_map

from .drawn_points import Adaptive, Draw, chosen, drawn
from .objective import Objective
from .randomness import seed_of_stream, shared_seed
from .rank_protocol import Reduce, as_one_rank
from .reading_points import VERSION, check_objective, check_state, read_adaptive, read_drawers, threshold, whole_number
from .reading_terms import check_alike
from .residuals import term_of


@dataclass(frozen=True)
class PointsReport:
    """Residuals on the points that are trained on, and on points that never are.

    Attributes:
        steps: steps taken before it was measured.
        redraws: how often points were drawn anew before.
        residual: sum over all terms of weight times mean squared residual, on the points trained on: the loss without
            an L2 term.
        held_out: the same sum, terms with held-out points taken there.
        terms: mean squared residual of each term, on the points trained on, without weight.
        held_out_terms: the same on held-out points, of the terms that have such.
    """

    steps: int
    redraws: int
    residual: float
    held_out: float
    terms: Mapping[str, float]
    held_out_terms: Mapping[str, float]

    @property
    def ratio(self) -> float:
        """held_out / residual: about 1 where the model knows no more of its points than of others."""
        if self.residual == 0:
            return 1.0 if self.held_out == 0 else math.inf
        return self.held_out / self.residual

    def as_dict(self) -> dict[str, Any]:
        """The attributes and the ratio as numbers and dicts of numbers."""
        return asdict(self) | {"ratio": self.ratio}


class Points:
    """Points of a residual objective: drawn anew every so many steps, and watched by points held out.

    A model with as many parameters as residuals can bring the loss to zero on points that stay, and be anything between
    them. Each step asks for the objective to take::

        points = Points(objective, {"interior": Box((0.0, 0.0), (1.0, 1.0))}, every=100, adaptive=RAD())
        for _ in range(1000):
            optimizer.step(points.next())
        print(points.measure())

    The objective's own points serve until the first redraw. Held-out points are drawn once, from a stream of their own.

    Each rank of a process group draws its own share of each term, as many points as it began with, by a generator of
    its own: together they are distributed as those of one process, if every rank's drawer draws from the whole domain.
    With `adaptive` each rank chooses among its own candidates.

    Args:
        objective: made by `Objective.from_residuals`.
        draw: (n, generator) -> n points by name of a term, a tensor [n, d] or a tuple or dict of tensors, as the
            term's points are. Dtype and device become those of the term's points, which must not have more digits.
            `Box` draws uniformly. Terms without a drawer keep their points, and have none held out.
        every: draw anew after so many steps; None for points that stay. Default 100. 1 where a step takes few points
            and carries others along, as with `GaussNewton(momentum=...)`.
        adaptive: `RAD(...)` for all terms with drawers, or by name for some. Default: points as they are drawn.
        held_out: how many points of each term with a drawer are held out, over all ranks; 0 for none. Default 1000,
            which tells a mean square within some 10 %, unless a few points make up most of it.
        watch: measure on them after so many steps. Default 100: a measurement costs about two evaluations of the loss.
        warn_above: warn where the held-out residual is more than so many times that on the points trained on. Default
            10, three times the residual itself: less may be chance, where a few points make up most of a mean.
        seed: of all draws. Default: from torch's CPU generator, the first rank's.

    Attributes:
        objective: the one that `next` gave last.
        steps: how often `next` was called.
        redraws: how often points were drawn anew.
        report: the last measurement, a `PointsReport`; None before the first.

    Raises:
        TypeError: an objective, drawer or option of the wrong kind.
        ValueError: an objective that was not made by `from_residuals`, an unknown term, an option out of its range, or
            drawn points that are no points of the term, named.
        RankError: here and in `next`, `redraw` and `measure`, another rank raised an error.
    """

    def __init__(
        self,
        objective: Objective,
        draw: Mapping[str, Draw],
        *,
        every: int | None = 100,
        adaptive: Adaptive | Mapping[str, Adaptive] | None = None,
        held_out: int = 1000,
        watch: int = 100,
        warn_above: float = 10.0,
        seed: int | None = None,
    ):
        check_objective(objective)
        self.objective, self.steps, self.redraws = objective, 0, 0
        self.report: PointsReport | None = None
        self._above = False
        with self.reduce.together():
            self._draw = read_drawers(draw, list(objective.program.weights))
            self._adaptive = read_adaptive(adaptive, list(self._draw))
            self.every = None if every is None else whole_number("every", every, 1)
            self.watch = whole_number("watch", watch, 1)
            self.warn_above = threshold("warn_above", warn_above)
            self._begin(whole_number("held_out", held_out, 0), None if seed is None else whole_number("seed", seed, 0))

    def _begin(self, held_out: int, seed: int | None) -> None:
        """Start the generators, and draw the held-out points."""
        if seed is None:
            seed = shared_seed(self.reduce.share, next(self.objective.model.parameters()).device)
        options = {"every": self.every, "watch": self.watch, "held_out": held_out, "seed": seed}
        self.reduce.compare(lambda: {f"{name} of Points": value for name, value in options.items()})
        self._generator, apart = (
            torch.Generator().manual_seed(seed_of_stream(seed, stream, self.reduce.rank))
            for stream in ("points", "held-out points")
        )
        share = -(-held_out // self.reduce.size)
        drawers = self._draw if share else {}
        self._held = {name: drawn(self.objective, name, draw, share, apart) for name, draw in drawers.items()}

    @property
    def reduce(self) -> Reduce:
        """The ranks of the objective."""
        return self.objective.reduce

    @as_one_rank
    def next(self) -> Objective:
        """The objective of the next step, measured and with points drawn anew where that is due."""
        if self._held and self.steps and self.steps % self.watch == 0:
            self._measure()
        if self.every is not None and self.steps and self.steps % self.every == 0:
            self._redraw()
        self.steps += 1
        return self.objective

    @as_one_rank
    def redraw(self) -> Objective:
        """Draw the points of all terms with drawers now; returns the objective on them.

        Where that fails, points and generators stay as they were.
        """
        return self._redraw()

    def _redraw(self) -> Objective:
        before = self._generator.get_state()
        try:
            points = {}
            for name, draw in self._draw.items():
                own = () if self.objective.idle else self.objective.chunks
                n = sum(chunk.rows for chunk in own if term_of(chunk) == name)
                if n:  # a rank may have none
                    adaptive = self._adaptive.get(name)
                    points[name] = chosen(self.objective, name, draw, n, self._generator, adaptive)
            self.objective = self.objective.on(points)
        except BaseException:
            self._generator.set_state(before)
            raise
        self.redraws += 1
        return self.objective

    @as_one_rank
    def measure(self) -> PointsReport:
        """Measure the residuals on the points trained on and on those held out, with the model as it is now.

        Raises:
            ValueError: no points are held out.

        Warns:
            UserWarning: where the ratio has risen above `warn_above`; again only once it was below.
        """
        if not self._held:
            raise ValueError("no points are held out: give Points a drawer and held_out=1000")
        return self._measure()

    def _measure(self) -> PointsReport:
        weights = self.objective.program.weights
        terms = {name: float(value) for name, value in copy.copy(self.objective).terms().items()}  # whose seed stays
        held_out = self._held_out()
        residual, apart = (
            sum(weights[name] * value for name, value in each.items() if weights[name])
            for each in (terms, terms | held_out)
        )
        self.report = report = PointsReport(self.steps, self.redraws, residual, apart, terms, held_out)
        above = math.isfinite(residual) and not report.ratio <= self.warn_above
        if above and not self._above:
            warnings.warn(self._warning(report), UserWarning, stacklevel=4)
        self._above = above
        return report

    def _held_out(self) -> dict[str, float]:
        """The mean squared residual of each term on the held-out points of all ranks."""
        device = next(self.objective.model.parameters()).device
        wide = torch.float32 if device.type == "mps" else torch.float64
        sums = []
        for name, points in self._held.items():
            residuals = self.objective.residuals_at(name, points)
            sums += [residuals.to(wide).square().sum(), torch.tensor(len(residuals), dtype=wide, device=device)]
        (found,) = self.reduce.sum([torch.stack([each.to(device) for each in sums])], "the held-out residuals")
        return {name: total / rows for name, (total, rows) in zip(self._held, found.view(-1, 2).tolist(), strict=True)}

    def _warning(self, report: PointsReport) -> str:
        weights = self.objective.program.weights
        most = max(report.held_out_terms, key=lambda name: weights[name] * report.held_out_terms[name])
        parameters = sum(p.numel() for p in self.objective.model.parameters() if p.requires_grad)
        return (
            f"after {report.steps} steps the residual on held-out points, {report.held_out:.1e}, is {report.ratio:.1e} "
            f"times that on the points trained on, {report.residual:.1e}, most of it of term {most!r}: the model fits "
            "its points and not what is between them, so that the loss does not tell how good it is. Draw points anew "
            f"more often (every=), or take more of them, beside {parameters:,} parameters"
        )

    def measures(self) -> dict[str, float]:
        """What was measured for the present step, for a writer: `JSONLinesWriter(path, extra=points.measures)`.

        Returns:
            "residual", "held_out", "held_out_ratio", "residual/TERM" and "held_out/TERM"; empty where the last
            measurement is of an earlier step, so that a log holds each of them once.
        """
        report = self.report
        if report is None or report.steps < self.steps - 1:
            return {}
        found = {"residual": report.residual, "held_out": report.held_out, "held_out_ratio": report.ratio}
        found |= {f"residual/{name}": value for name, value in report.terms.items()}
        return found | {f"held_out/{name}": value for name, value in report.held_out_terms.items()}

    def state_dict(self) -> dict[str, Any]:
        """Points, generator, counts and report, each rank its own; a run that loads them goes on as if undisturbed."""
        return {
            "version": VERSION,
            "ranks": [self.reduce.rank, self.reduce.size],
            "steps": self.steps,
            "redraws": self.redraws,
            "above": self._above,
            "report": None if self.report is None else asdict(self.report),
            "generator": self._generator.get_state(),
            "points": {name: self.objective.points_of(name) for name in self._draw},
            "held_out": dict(self._held),
        }

    @as_one_rank
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken; drawers and options are this object's.

        Args:
            state: of the same terms and, under a process group, of the same rank among as many.

        Raises:
            TypeError: this is no state.
            ValueError: it is of other terms, another rank or a later version; nothing of it is loaded.
        """
        check_state(state, list(self._draw), [self.reduce.rank, self.reduce.size])
        held = {name: self._placed(name, points) for name, points in state["held_out"].items()}
        generator = torch.Generator()
        try:
            generator.set_state(state["generator"].cpu())
        except RuntimeError as error:
            raise ValueError(f"the state of Points has a generator that torch does not take: {error}") from error
        report = None if state["report"] is None else PointsReport(**state["report"])
        points = {name: self._placed(name, points) for name, points in state["points"].items()}
        self.objective = self.objective.on(points)
        self._held, self._generator, self.report = held, generator, report
        self.steps, self.redraws, self._above = state["steps"], state["redraws"], state["above"]

    def _placed(self, name: str, points: Any) -> Any:
        """Points of the term's kind, on its devices."""
        kind = self.objective.program.kinds[name]
        check_alike(name, points, kind)
        return tree_map(lambda leaf, other: leaf.to(other.device), points, kind)
