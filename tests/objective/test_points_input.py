"""What can be wrong with drawers, options and states, each error naming the term or the option."""

import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from residual_cases import EDGE, INTERIOR, objective_of, uniform
from torch import Tensor, nn

from latephase import RAD, Box, Objective, Points
from rank_processes import message_of

SQUARE = Box((0.0, 0.0), (1.0, 1.0))


def spoiled(n: int, generator: torch.Generator) -> Tensor:
    points = SQUARE(n, generator)
    points[n // 2, 1] = math.nan
    return points


BAD_DRAWS: dict[str, tuple[Any, type[Exception], str]] = {
    "too few": (lambda n, g: SQUARE(n - 1, g), ValueError, "drawer of term 'interior' gives 8 points where 9 were"),
    "too many": (lambda n, g: SQUARE(n + 3, g), ValueError, "gives 12 points where 9 were asked for"),
    "one vector": (lambda n, g: torch.rand(n, dtype=torch.float64), ValueError, "term 'interior' are float64 .*'N'"),
    "three coordinates": (lambda n, g: uniform(n, 3), ValueError, "points of term 'interior' are float64 .*'N', 3"),
    "pair": (lambda n, g: (uniform(n, 2), uniform(n, 1)), ValueError, "points of term 'interior' are float64 .*N.*N"),
    "unequal rows": (lambda n, g: (uniform(n, 2), uniform(2, 1)), ValueError, "term 'interior' have 9 and 2 rows"),
    "narrow": (lambda n, g: torch.rand(n, 2), ValueError, "'interior' gives points in float32.*dtype=torch.float64"),
    "integers": (lambda n, g: torch.randint(2, (n, 2)), TypeError, "points of term 'interior' are torch.int64"),
    "complex": (lambda n, g: uniform(n, 2) * 1j, TypeError, "points of term 'interior' are torch.complex128"),
    "nan": (spoiled, ValueError, "points of term 'interior' are not finite in 1 rows, the first row 4"),
    "infinite": (lambda n, g: SQUARE(n, g) / 0, ValueError, "points of term 'interior' are not finite"),
    "array": (lambda n, g: SQUARE(n, g).numpy(), TypeError, "points of term 'interior' must be a tensor"),
    "nothing": (lambda n, g: None, TypeError, "term 'interior'"),
    "scalar": (lambda n, g: torch.tensor(1.0), ValueError, "points of term 'interior' is a scalar"),
}  # fmt: skip


@pytest.mark.parametrize("held_out", [0, 9])
@pytest.mark.parametrize("case", BAD_DRAWS)
def test_bad_draws_name_the_term(case, held_out):
    draw, kind, words = BAD_DRAWS[case]
    with pytest.raises(kind, match=words) as caught:
        Points(objective_of(), {"interior": draw}, held_out=held_out, seed=0).redraw()
    assert "from the drawer of term 'interior', called for 9 points" in caught.value.__notes__


def test_an_error_of_a_drawers_own_says_whose_it_is():
    def draw(n: int, generator: torch.Generator) -> Tensor:
        raise KeyError("mesh")

    with pytest.raises(KeyError) as caught:
        Points(objective_of(), {"interior": draw})
    assert "from the drawer of term 'interior', called for 1000 points" in caught.value.__notes__


def test_a_failed_redraw_leaves_points_and_generators_as_they_were():
    fails = [True]

    def draw(n: int, generator: torch.Generator) -> Tensor:
        points = uniform(n, 1), torch.rand(n, 1, generator=generator, dtype=torch.float64)
        return (torch.cat([points[0]] * 2, 1), points[1]) if not fails[0] else points[:1]

    points, other = (
        Points(objective_of(), {"interior": SQUARE, "boundary": draw}, held_out=0, seed=0, every=2) for _ in range(2)
    )
    for _ in range(2):
        points.next()
    before, state = points.objective, torch.get_rng_state()
    with pytest.raises(ValueError, match="term 'boundary'"):
        points.next()
    assert points.objective is before
    assert (points.steps, points.redraws) == (2, 0)
    assert torch.get_rng_state().equal(state)
    fails[0] = False
    found, expected = points.next(), other.redraw()
    for name in ("interior", "boundary"):
        for ours, theirs in zip(found.points_of(name), expected.points_of(name), strict=True):
            assert ours.equal(theirs)


BAD_OPTIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"draw": SQUARE}, TypeError, "drawers are a dict"),
    ({"draw": {}}, ValueError, "there is no drawer"),
    ({"draw": {"inside": SQUARE}}, ValueError, "no term 'inside': the terms are 'interior', 'boundary'"),
    ({"draw": {3: SQUARE}}, TypeError, "the name 3"),
    ({"draw": {"interior": INTERIOR}}, TypeError, "drawer of term 'interior' must be a callable, got Tensor"),
    ({"draw": {"interior": lambda n: n}}, TypeError, r"'interior' is called as draw\(n, generator\), but takes \(n\)"),
    ({"every": 0}, ValueError, "every of Points must be at least 1"),
    ({"every": 1.5}, TypeError, "every of Points must be an integer"),
    ({"every": True}, TypeError, "every of Points"),
    ({"watch": 0}, ValueError, "watch of Points"),
    ({"watch": None}, TypeError, "watch of Points"),
    ({"held_out": -1}, ValueError, "held_out of Points"),
    ({"seed": -1}, ValueError, "seed of Points"),
    ({"seed": torch.Generator()}, TypeError, "seed of Points"),
    ({"warn_above": 1.0}, ValueError, "warn_above of Points must be above 1"),
    ({"warn_above": math.nan}, ValueError, "warn_above of Points"),
    ({"warn_above": "10"}, TypeError, "warn_above of Points"),
    ({"adaptive": RAD}, TypeError, r"adaptive must be RAD\(...\)"),
    ({"adaptive": "rad"}, TypeError, "adaptive must be RAD"),
    ({"adaptive": {"boundary": RAD()}}, ValueError, "adaptive names the term 'boundary', .* given for 'interior'"),
]


@pytest.mark.parametrize(("options", "kind", "words"), BAD_OPTIONS)
def test_bad_options(options, kind, words):
    with pytest.raises(kind, match=words):
        Points(objective_of(), **{"draw": {"interior": SQUARE}, **options})


def test_points_are_those_of_terms():
    with pytest.raises(TypeError, match="Points are those of an Objective, got Linear"):
        Points(nn.Linear(1, 1), {"a": SQUARE})  # pyright: ignore[reportArgumentType]
    plain = Objective(nn.Linear(2, 1), nn.MSELoss(), (torch.rand(3, 2), torch.rand(3, 1)))
    with pytest.raises(ValueError, match="from_residuals"):
        Points(plain, {"a": SQUARE})
    with pytest.raises(ValueError, match="no points are held out"):
        Points(objective_of(), {"interior": SQUARE}, held_out=0).measure()


BAD_STATES: list[tuple[Any, type[Exception], str]] = [
    (None, TypeError, "this is no state of Points"),
    ({"state": {}}, TypeError, "this is no state of Points"),
    ({"version": 2}, ValueError, "version 2"),
    ({"steps": "3"}, TypeError, "has no steps"),
    ({"points": {}}, ValueError, "points of the terms"),
    ({"held_out": {"boundary": EDGE}}, ValueError, "held_out of the terms"),
    ({"ranks": [1, 2]}, ValueError, "of rank 1 of 2, this is rank 0 of 1"),
    ({"points": {"interior": uniform(4, 3)}}, ValueError, "term 'interior' are float64"),
    ({"held_out": {"interior": uniform(4, 3)}}, ValueError, "term 'interior' are float64"),
    ({"generator": torch.zeros(3, dtype=torch.uint8)}, ValueError, "generator that torch does not take"),
    ({"generator": [3]}, TypeError, "has no generator"),
    ({"report": {"loss": 3.0}}, TypeError, "."),
]


@pytest.mark.parametrize(("change", "kind", "words"), BAD_STATES)
def test_bad_states_are_refused_and_nothing_of_them_is_loaded(change, kind, words):
    points = Points(objective_of(), {"interior": SQUARE}, seed=0)
    own = points.redraw()
    state = Points(objective_of(), {"interior": SQUARE}, seed=1).state_dict()
    with pytest.raises(kind, match=words):
        points.load_state_dict(change if change is None or "state" in change else state | change)
    assert points.objective is own
    assert (points.steps, points.redraws, points.report) == (0, 1, None)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.sampled_from([INTERIOR, *EDGE]),
    lambda inner: st.lists(inner, max_size=2) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(given=ANYTHING, name=st.sampled_from(["every", "watch", "held_out", "warn_above", "seed", "adaptive", "draw"]))
def test_nothing_given_ends_in_an_obscure_error(given, name):
    """Whatever a drawer gives, or an option is, works or is refused by term or name."""
    objective = objective_of()
    found = message_of(lambda: Points(objective, {"interior": lambda n, g: given}, held_out=9, seed=0).redraw())
    assert not found or re.match(r"(Type|Value)Error: .*term 'interior'", found)
    if name == "held_out" and isinstance(given, int):
        given = given % 1000
    options: dict[str, Any] = {"draw": {"interior": SQUARE}, "held_out": 9, name: given}
    found = message_of(lambda: Points(objective, **options).next())
    assert not found or re.match(rf"(Type|Value)Error: .*({name}|term|drawer)", found)
