"""Products by blocks of a traced chunk."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, fx

from ..recorder import CannotTrace
from ..rewrite import layout
from .cuts import Cut, Outputs
from .maps import CannotCut, LinearMap, Maps, Values
from .plan import Planner, Route

Blocks = tuple[tuple[int, ...], ...]
"""Of each block its parameters, by position."""


class BlockTrace:
    """The plans and functions of a trace for one partition into blocks; kept with the trace.

    Args:
        linear: the traced graph.
        blocks: the partition.
    """

    def __init__(self, linear, blocks: Blocks):
        self.planner = Planner(linear, blocks)
        self.maps: Maps = self.planner.maps
        self._made: dict[tuple[tuple[fx.Node, ...], tuple[fx.Node, ...]], LinearMap] = {}
        self._sound: dict[Cut | Outputs, bool] = {}

    def map(self, starts: Sequence[fx.Node], ends: Sequence[fx.Node]) -> LinearMap:
        """The map between nodes, made once."""
        key = tuple(starts), tuple(ends)
        if key not in self._made:
            self._made[key] = self.maps.map(*key)
        return self._made[key]

    def routes(self, residuals: Values, expected: int, memory: float, samples: int | None) -> list[Route]:
        """A route for each block, see `Planner.choose`."""
        return self.planner.choose(expected, memory, samples, lambda route: self._is_sound(residuals, route))

    def _is_sound(self, residuals: Values, route: Route) -> bool:
        """Whether a route gives the product; found out once, with random numbers."""
        cut = route.cut
        if cut is None:
            return True
        needed: list[tuple[Cut | Outputs, Callable[[], bool]]] = [(cut, lambda: self._is_adjoint(residuals, cut))]
        if route.method == "bottleneck":
            needed.append((cut.outputs, lambda: self._weighs_rows(residuals, cut.outputs)))
        for key, holds in needed:
            if key not in self._sound:
                try:
                    self._sound[key] = holds()
                except CannotCut:
                    self._sound[key] = False
        return all(self._sound[key] for key, _ in needed)

    def _is_adjoint(self, residuals: Values, cut: Cut) -> bool:
        """Whether behind a cut each row of outputs depends on its own row of z alone, and both nodes belong together.

        Then row by row w'(J r) = (J'w)'r for random r and w. Rows that mix, as in batch norm's training mode, differ.
        """
        r, w = _random(cut.tangent, 1), _random(cut.outputs.times, 2)
        (pushed,) = self.map([cut.tangent], [cut.outputs.tangent])(residuals, r)
        (pulled,) = self.map([cut.outputs.times], [cut.cotangent])(residuals, w)
        return _adjoint_by_row(w, pushed, pulled, r)

    def _weighs_rows(self, residuals: Values, outputs: Outputs) -> bool:
        """Whether H_L, too, is a matrix of its own for each row; a loss may couple them."""
        weigh = self.map([outputs.tangent], [outputs.times])
        r, w = _random(outputs.tangent, 1), _random(outputs.tangent, 2)
        return _adjoint_by_row(w, *weigh(residuals, r), *weigh(residuals, w), r)


def _adjoint_by_row(w: Tensor, pushed: Tensor, pulled: Tensor, r: Tensor) -> bool:
    """Whether w' pushed = pulled' r for each row, to the tolerance between two methods of a product."""
    eps = max(torch.finfo(x.dtype).eps for x in (w, pushed, pulled, r))
    w, pushed, pulled, r = (x.flatten(1).double() for x in (w, pushed, pulled, r))
    difference = ((w * pushed).sum(1) - (pulled * r).sum(1)).abs()
    size = w.norm(dim=1) * pushed.norm(dim=1) + pulled.norm(dim=1) * r.norm(dim=1)
    return bool((difference <= 3 * eps**0.5 * size).all())


class BlockPass:
    """Products by blocks of one chunk at one point.

    Args:
        trace: for the partition.
        residuals: of the trace's pass.
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
        self, trace: BlockTrace, residuals: Values, expected: int, memory: float, columns: list[Tensor] | None = None
    ):
        self._trace, self._residuals, self._columns = trace, residuals, columns
        self._matrices: dict[Cut, Tensor] = {}
        try:
            with _plain(trace):
                self._routes = trace.routes(residuals, expected, memory, None if columns is None else len(columns))
        except CannotCut as error:
            raise CannotTrace(str(error)) from error
        self.methods = [route.method for route in self._routes]

    def products(self, v: Mapping[int, Sequence[Tensor]]) -> dict[int, list[Tensor]]:
        """The products with some blocks, by number; what they need is set up when they are asked for first.

        Args:
            v: by number of the block the vector, by parameter of the block.
        """
        with _plain(self._trace):
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


@contextlib.contextmanager
def _plain(trace: BlockTrace) -> Iterator[None]:
    device = trace.maps.linear.vectors[0].meta["layout"][3]
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield
