"""Products by blocks of a traced chunk."""

from collections.abc import Callable, Mapping, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx

from ...objective import plain_operators
from ..tracing import CannotTrace, Trace, TracedPass, Values, layout
from .cuts import Cut
from .maps import CannotCut, LinearMap, Maps
from .plan import Planner, Route

Blocks = tuple[tuple[int, ...], ...]
"""Of each block its parameters, by position."""

PROBES = 3
"""Random tangents along which a cut is tried."""

NARROW_TOLERANCE = 0.03
"""Of a cut in bfloat16 or float16, whose right cuts are off by up to 0.005; in wider numbers three times the root of
the rounding, as between two methods of a product."""


class BlockTrace:
    """The plans and functions of a trace for one partition into blocks; kept as long as the trace (`block_trace`).

    Args:
        linear: the traced graph.
        blocks: the partition.
    """

    def __init__(self, linear, blocks: Blocks):
        self.planner = Planner(linear, blocks)
        self.maps: Maps = self.planner.maps
        self.device: torch.device = layout(linear.vectors[0])[3]
        self._made: dict[tuple[tuple[fx.Node, ...], tuple[fx.Node, ...]], LinearMap] = {}
        self._sound: dict[Cut, bool] = {}

    def map(self, starts: Sequence[fx.Node], ends: Sequence[fx.Node]) -> LinearMap:
        """The map between nodes, made once."""
        key = tuple(starts), tuple(ends)
        if key not in self._made:
            self._made[key] = self.maps.map(*key)
        return self._made[key]

    def routes(self, elsewhere: Callable[[], Values], expected: int, memory: float, samples: int | None) -> list[Route]:
        """A route for each block, see `Planner.choose`.

        Args:
            elsewhere: residuals of a pass at random parameters.
            expected: how many products are expected.
            memory: bytes that may be kept for them.
            samples: columns of the sampled estimate, or None.
        """
        return self.planner.choose(expected, memory, samples, lambda cut: self._is_sound(elsewhere, cut))

    def _is_sound(self, elsewhere: Callable[[], Values], cut: Cut) -> bool:
        """Whether the gradient that a cut names is that in its tangent z, not in another tensor of the same shape.

        Then w'(J r) = (J'w)'r for random r, with w = J r and with a random w. Of the second alone, both sides are small
        beside the norms by which they are judged, the more so the wider the tensors, so that in bfloat16 wrong cuts
        would pass; along the first alone, some are right by its direction. Not asked at the
        parameters of now, where a network may be special: with all of its units active, ReLU is the identity. Found out
        once; right cuts are far enough below the tolerance, and wrong ones above, for the answer to be the same
        whenever it is asked, so that a run that is resumed goes the same way.
        """
        if cut not in self._sound:
            try:
                self._sound[cut] = self._is_adjoint(elsewhere(), cut)
            except CannotCut:
                self._sound[cut] = False
        return self._sound[cut]

    def _is_adjoint(self, residuals: Values, cut: Cut) -> bool:
        return all(
            self._is_adjoint_along(seed, residuals, cut, along) for seed in range(PROBES) for along in (True, False)
        )

    def _is_adjoint_along(self, seed: int, residuals: Values, cut: Cut, along: bool) -> bool:
        r = _random(cut.tangent, seed)
        (pushed,) = self.map([cut.tangent], [cut.outputs.tangent])(residuals, r)
        w = _as(cut.outputs.times, pushed.flatten(1)) if along else _random(cut.outputs.times, PROBES + seed)
        (pulled,) = self.map([cut.outputs.times], [cut.cotangent])(residuals, w)
        eps = max(torch.finfo(x.dtype).eps for x in (w, pushed, pulled, r))
        w, pushed, pulled, r = (x.flatten(1).double() for x in (w, pushed, pulled, r))
        difference = ((w * pushed).sum(1) - (pulled * r).sum(1)).abs()
        size = w.norm(dim=1) * pushed.norm(dim=1) + pulled.norm(dim=1) * r.norm(dim=1)
        # Where all is zero nothing is shown.
        return bool((difference <= min(3 * eps**0.5, NARROW_TOLERANCE) * size).all() and size.any())


_traces: WeakKeyDictionary[Trace, tuple[Blocks, BlockTrace]] = WeakKeyDictionary()
"""Of each trace what was made for the partition that was asked for last."""


def block_trace(trace: Trace, blocks: Blocks) -> BlockTrace:
    """The maps and plans of the products by blocks."""
    known, made = _traces.get(trace, (None, None))
    if made is None or known != blocks:
        made = BlockTrace(trace.stages.linear, blocks)
        _traces[trace] = blocks, made
    return made


class BlockPass:
    """Products by blocks of one chunk at one point.

    Args:
        blocks: the partition.
        traced: the chunk's pass; its residuals at random parameters serve to try things out.
        expected: how many products are expected.
        memory: bytes that may be kept for them.
        columns: of the sampled estimate, tensors in the shape of the outputs, times a root of the loss's Hessian; None
            for the exact product.

    Attributes:
        methods: of each block, see `plan.Route`.

    Raises:
        CannotTrace: a value is needed that the trace does not hand over.
    """

    def __init__(
        self,
        blocks: Blocks,
        traced: TracedPass,
        expected: int,
        memory: float,
        columns: list[Tensor] | None = None,
    ):
        trace = block_trace(traced.trace, blocks)
        self._trace, self._residuals, self._columns = trace, traced.residuals, columns
        self._matrices: dict[Cut, Tensor] = {}
        try:
            with plain_operators(trace.device):
                self._routes = trace.routes(
                    traced.elsewhere, expected, memory, None if columns is None else len(columns)
                )
        except CannotCut as error:
            raise CannotTrace(str(error)) from error
        self.methods = [route.method for route in self._routes]

    def products(self, v: Mapping[int, Sequence[Tensor]]) -> dict[int, list[Tensor]]:
        """The products with some blocks, by number; what they need is set up when they are asked for first.

        Args:
            v: by number of the block the vector, by parameter of the block.
        """
        with plain_operators(self._trace.device):
            self._set_up([self._routes[block] for block in v])
            return {block: self._product(block, own) for block, own in v.items()}

    def _product(self, block: int, v: Sequence[Tensor]) -> list[Tensor]:
        planner, route = self._trace.planner, self._routes[block]
        if route.cut is None:
            return self._call(planner.vectors[block], planner.products[block], *v)
        (z,) = self._call(planner.vectors[block], [route.cut.tangent], *v)
        return self._call([route.cut.cotangent], planner.products[block], self._behind(route, z))

    def _call(self, starts: Sequence[fx.Node], ends: Sequence[fx.Node], *values: Tensor) -> list[Tensor]:
        return self._trace.map(starts, ends)(self._residuals, *values)

    def _behind(self, route: Route, z: Tensor) -> Tensor:
        """J' H_L J z, row by row."""
        assert route.cut is not None
        matrix, outputs = self._matrices[route.cut], route.cut.outputs
        # Rows times matrices, never matrices times columns, for which MKL's kernels take up to four times as long.
        t = torch.bmm(z.flatten(1).unsqueeze(1), matrix.transpose(1, 2))
        if route.method == "bottleneck":
            return _as(route.cut.cotangent, t)
        if route.method == "sampled":
            t = t / matrix.shape[1]
        else:
            (t,) = self._call([outputs.tangent], [outputs.times], _as(outputs.tangent, t))
        return _as(route.cut.cotangent, torch.bmm(t.reshape(len(matrix), 1, -1).to(matrix.dtype), matrix))

    def _set_up(self, routes: Sequence[Route]) -> None:
        """For each new cut J [rows, outputs, width], its sampled columns, or J' H_L J [rows, width, width]."""
        new = {route.cut: route.method for route in routes if route.cut and route.cut not in self._matrices}
        narrow = [cut for cut, method in new.items() if method == "bottleneck"]
        self._matrices |= {cut: self._multiplied_out(cut) for cut in narrow}
        if rest := [cut for cut in new if cut not in narrow]:
            self._matrices |= self._row_factors(rest, self._columns)

    def _row_factors(self, cuts: list[Cut], columns: list[Tensor] | None) -> dict[Cut, Tensor]:
        """J of each row, pulled back one output at a time for all cuts at once; or the given columns pulled back."""
        outputs = cuts[0].outputs
        count = outputs.width if columns is None else len(columns)
        pull = self._trace.map([outputs.times], [cut.cotangent for cut in cuts])
        found = [_empty(cut.tangent).new_empty(outputs.rows, count, cut.width) for cut in cuts]
        for column in range(count):
            u = _one_hot(outputs.times, column) if columns is None else _as(outputs.times, columns[column])
            for rows, pulled in zip(found, pull(self._residuals, u), strict=True):
                rows[:, column] = pulled.flatten(1)
        return dict(zip(cuts, found, strict=True))

    def _multiplied_out(self, cut: Cut) -> Tensor:
        """J' H_L J of each row, from the tangents of the outputs along each entry of z."""
        outputs = cut.outputs
        push = self._trace.map([cut.tangent], [outputs.tangent])
        weigh = self._trace.map([outputs.tangent], [outputs.times])
        tangents = _empty(outputs.tangent).new_empty(outputs.rows, cut.width, outputs.width)
        for entry in range(cut.width):
            tangents[:, entry] = push(self._residuals, _one_hot(cut.tangent, entry))[0].flatten(1)
        matrix = _empty(cut.tangent).new_empty(outputs.rows, cut.width, cut.width)
        for entry in range(cut.width):
            (u,) = weigh(self._residuals, _as(outputs.tangent, tangents[:, entry]))
            u = u.reshape(outputs.rows, 1, -1).to(tangents.dtype)
            matrix[:, entry] = torch.bmm(u, tangents.transpose(1, 2)).squeeze(1)
        return matrix


def _empty(node: fx.Node) -> Tensor:
    """Memory for a node's value; with the strides of the recorded one, which views in the graph rely on."""
    shape, dtype, strides, device = layout(node)
    return torch.empty_strided(shape, strides, dtype=dtype, device=device)


def _as(node: fx.Node, rows: Tensor) -> Tensor:
    """Rows [rows, width] as a node's value, in its dtype, shape and strides."""
    shape, dtype, strides, _ = layout(node)
    value = rows.to(dtype).reshape(shape)
    return value if value.stride() == strides else _empty(node).copy_(value)


def _one_hot(node: fx.Node, entry: int) -> Tensor:
    """A node's value with 1 in one entry of each row, and zeros."""
    shape, dtype, _, device = layout(node)
    rows = torch.zeros(shape, dtype=dtype, device=device).flatten(1)
    rows[:, entry] = 1
    return _as(node, rows)


def _random(node: fx.Node, seed: int) -> Tensor:
    shape, _, _, device = layout(node)
    return _as(node, torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device))
