"""What the problems on a box have in common: points, terms, networks, conditions that hold by construction."""

import dataclasses
import functools
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..metrics import solution_error
from ..problem import Batch, Problem, Splits, TrainingSetting
from .network import Constrained, tanh_layers
from .points import at_both_ends, grid, inside, on_faces
from .terms import derivative, forward, term, variable

TRAIN, VALID, TEST = 0, 1, 2
"""Seeds of the points."""
SHARE = 8
"""Points of the interior for each of an initial or a boundary condition."""
TEST_POINTS = 10_000
"""In domains of more than two dimensions, where a grid has too many; in others it is the grid's `GRID`."""
GRID = (101, 101)

Unit = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class BoxEquation:
    """A differential equation for u on a box, with what is prescribed on the box's boundary.

    Points [N, d] are places and then, where the equation has one, the time, from 0 to 1. Conditions are values at the
    beginning and on the faces, or that u is periodic in x.

    Attributes:
        hard: whether the conditions hold by construction of the network, so that they are no terms of the loss.
        places: how many coordinates are places.
        side: where each of them begins and ends.
        has_time: whether there is a coordinate more.
        periodic: 0; or, of an equation in x and t, how many of u, u_x, u_xx, ... are to be equal at both ends of x.
    """

    hard: bool = False
    places: ClassVar[int] = 1
    side: ClassVar[Unit] = (-1.0, 1.0)
    has_time: ClassVar[bool] = True
    periodic: ClassVar[int] = 0

    @property
    def box(self) -> Tensor:
        """Lowest and highest coordinates [2, d], float64."""
        sides = [self.side] * self.places + [(0.0, 1.0)] * self.has_time
        return torch.tensor(sides, dtype=torch.float64).T

    def source(self, points: Tensor) -> Tensor:
        """What `interior` is to be [N, 1] at points [N, d]. Zero, if not said otherwise."""
        return torch.zeros_like(points[:, :1])

    def prescribed(self, points: Tensor) -> Tensor:
        """The value [N, 1] that is prescribed at points [N, d] of the beginning or the faces."""
        return self.solution(points)

    def solution(self, points: Tensor) -> Tensor:
        """The exact u [N, 1] at points [N, d]."""
        raise NotImplementedError

    def interior(self, model: nn.Module, points: Tensor) -> Tensor:
        """The equation's left side [N, 1] at points [N, d], which is to be `source`."""
        raise NotImplementedError

    def initial(self, model: nn.Module, points: Tensor) -> Tensor:
        """The values [N, 1] at points [N, d] of the beginning."""
        return model(points)

    def boundary(self, model: nn.Module, points: Tensor) -> Tensor:
        """The values [N, 1] at points [N, d] of the faces; of pairs [N, 2, d] of both ends the differences [N, k]."""
        if not self.periodic:
            return model(points)
        lower, upper = (self._derivatives(model, end) for end in points.unbind(1))
        return upper - lower

    def _derivatives(self, model: nn.Module, points: Tensor) -> Tensor:
        """u, u_x, u_xx, ... [N, periodic] at points [N, 2]."""
        points = variable(points)
        found = [model(points)]
        for _ in range(self.periodic - 1):
            found.append(derivative(found[-1], points, 0))
        return torch.cat(found, dim=1)

    def features(self, points: Tensor) -> Tensor:
        """What the first layer of a constrained network is given [N, k]: of a periodic x its cosine and sine."""
        if not self.periodic:
            return points
        x, t = points[:, :1], points[:, 1:]
        return torch.cat([torch.cos(torch.pi * x), torch.sin(torch.pi * x), t], dim=1)

    def constrained(self, points: Tensor, values: Tensor) -> Tensor:
        """The function [N, 1] that a constrained network is, of the values [N, 1] of its layers at points [N, d]."""
        raise NotImplementedError

    def terms(self, points: int) -> dict[str, int]:
        """How many points each term of the loss has, for so many of the interior."""
        conditions = {"initial": points // SHARE} if self.has_time else {}
        return {"interior": points} | ({} if self.hard else conditions | {"boundary": points // SHARE})

    def draw(self, key: str, count: int, generator: torch.Generator) -> Batch:
        """A term with fresh points."""
        box = self.box
        if key == "boundary" and self.periodic:
            pairs = at_both_ends(box, count, generator)
            return term(key, pairs, torch.zeros(count, self.periodic, dtype=torch.float64))
        if key == "boundary":
            points = on_faces(box, count, generator, range(self.places))
            return term(key, points, self.prescribed(points))
        points = inside(box, count, generator)
        if key == "interior":
            return term(key, points, self.source(points))
        points[:, -1] = 0.0
        return term(key, points, self.prescribed(points))

    def test(self) -> tuple[Tensor, Tensor]:
        """Points [N, d] and the solution there [N, 1], by which the error is measured."""
        box = self.box
        points = grid(box, GRID) if box.shape[1] == 2 else inside(box, TEST_POINTS, _seeded(TEST))
        return points, self.solution(points)


def redraw(equation: BoxEquation, points: int, generator: torch.Generator) -> list[Batch]:
    """Training data with fresh points, so many of them of the interior."""
    return [equation.draw(key, count, generator) for key, count in equation.terms(points).items()]


def load(equation: BoxEquation, points: int) -> Splits:
    """The points, which are the same always; validation has the same terms as training on other points."""
    train, valid = (redraw(equation, points, _seeded(seed)) for seed in (TRAIN, VALID))
    return Splits(train, valid, [term("solution", *equation.test())])


def build(equation: BoxEquation, width: int, depth: int) -> nn.Module:
    """The network: points [N, d] -> values [N, 1], so many hidden tanh layers; Xavier's normal weights, biases zero."""
    inputs = equation.features(equation.box) if equation.hard else equation.box
    layers = tanh_layers((inputs.shape[1], *[width] * depth, 1))
    return Constrained(layers, equation) if equation.hard else layers


@dataclasses.dataclass(frozen=True)
class About:
    """What is said of a problem.

    Attributes:
        name: after "pinn_".
        title: the equation's name.
        formula: the equation.
        source: whom the problem is from.
        published: errors that others reach, and who publishes them.
    """

    name: str
    title: str
    formula: str
    source: str
    published: str = ""


def box_problem(equation: BoxEquation, about: About, *, width: int, depth: int, points: int) -> Problem:
    """The problem of an equation.

    Args:
        equation: the equation.
        about: what is said of it.
        width: units of each hidden layer.
        depth: hidden layers.
        points: of the interior.

    Raises:
        ValueError: a width or depth below 1, fewer points than leave one for each condition, or `hard` is neither True
            nor False.
    """
    for option, value, least in (("width", width, 1), ("depth", depth, 1), ("points", points, SHARE)):
        if type(value) is not int or value < least:
            raise ValueError(f"{option} must be an integer of at least {least}, got {value!r}")
    if type(equation.hard) is not bool:
        raise ValueError(f"hard must be True or False, got {equation.hard!r}")
    return Problem(
        name=f"pinn_{about.name}",
        version=1,
        title=f"PINN: {about.title}",
        description=_description(equation, about, width, depth, points),
        model=functools.partial(build, equation, width, depth),
        loss=nn.MSELoss(reduction="sum"),
        forward=functools.partial(forward, equation=equation),
        load=functools.partial(load, equation, points),
        redraw=functools.partial(redraw, equation, points),
        training=TrainingSetting(lr=1e-3, batch_size=None, epochs=20_000, optimizer="adam"),
        metrics=(solution_error,),
        source=about.source,
    )


def _description(equation: BoxEquation, about: About, width: int, depth: int, points: int) -> str:
    inputs = (equation.features(equation.box) if equation.hard else equation.box).shape[1]
    parameters = (inputs + 1) * width + (depth - 1) * (width + 1) * width + width + 1
    terms = [f"{count:,} {key} points" for key, count in equation.terms(points).items()]
    met = " Conditions that are not among them hold by construction." if equation.hard else ""
    published = f" {about.published}" if about.published else ""
    return (
        f"A network with {depth} hidden layers of {width} tanh units, {parameters:,} parameters, is to solve "
        f"{about.formula}; mean squared residuals on {', '.join(terms)}.{met} Validation: the same on other points."
        f"{published}"
    )


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
