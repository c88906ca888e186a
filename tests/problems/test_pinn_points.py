"""The points of the physics-informed problems: where they are, fresh ones, their dtype; and sizes of networks."""

import pickle

import pytest
import torch
from box_cases import PLACES, TIMED, WIDE, made, terms_of
from hypothesis import given, settings
from hypothesis import strategies as st

from latephase import problems
from latephase.problems import ProblemError
from latephase.problems.pinn.points import at_both_ends, grid, inside, on_faces

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("name", PLACES)
def test_points_lie_where_the_condition_holds(name):
    problem, _ = made(name, points=400)
    splits, lowest, places = problem.load(), -1.0 if name in WIDE else 0.0, PLACES[name]
    for data in (splits.train, splits.valid):
        found = {key: points for key, points, *_ in terms_of(data)}
        assert list(found) == ["interior", *(["initial"] if name in TIMED else []), "boundary"]
        assert [len(points) for points in found.values()] == [400] + [50] * (len(found) - 1)
        inside, flat = found["interior"], [points.flatten(0, -2) for points in found.values()]
        assert all((p[:, :places] >= lowest).all() and (p >= -1).all() and (p <= 1).all() for p in flat)
        # Each coordinate is spread evenly: deciles have a tenth of the points each.
        sides = [lowest] * places + [0.0] * (name in TIMED)
        shares = torch.stack([torch.histc(x, 10, low, 1.0) for x, low in zip(inside.T, sides, strict=True)])
        torch.testing.assert_close(shares, torch.full_like(shares, 40.0), rtol=0, atol=3.0)
        if name in TIMED:
            assert (found["initial"][:, -1] == 0).all()
        if name in ("allen_cahn", "kdv"):
            assert (found["boundary"][:, :, 0] == torch.tensor([-1.0, 1.0])).all()
            assert torch.equal(*(found["boundary"][:, side, 1] for side in (0, 1)))
        else:
            on = torch.stack([found["boundary"][:, :places] == side for side in (lowest, 1.0)])
            assert (on.sum((0, 2)) == 1).all()
            assert (on.sum(1) >= 50 // (2 * places)).all()  # as many on each face
    train, valid = (next(terms_of(data))[1] for data in (splits.train, splits.valid))
    assert (torch.cdist(train, valid) > 0).all()


@pytest.mark.parametrize("name", [*PLACES, "convection", "reaction", "wave"])
def test_fresh_points_come_from_the_generator(name):
    problem = made(name)[0] if name in PLACES else problems.get(f"pinn_{name}", width=4)
    random = torch.Generator()
    state, train = torch.get_rng_state(), problem.load().train
    draws = [
        list(terms_of(each.redraw(random.manual_seed(seed))))
        for each, seed in ((problem, 5), (pickle.loads(pickle.dumps(problem)), 5), (problem, 6))
    ]
    assert torch.equal(torch.get_rng_state(), state)
    for kept, first, again, other in zip(terms_of(train), *draws, strict=True):
        assert kept[0] == first[0]
        for a, b, c in zip(first[1:], again[1:], kept[1:], strict=True):
            assert torch.equal(a, b)
            assert (a.shape, a.dtype) == (c.shape, c.dtype)
        if first[0] == "interior":
            assert not torch.equal(first[1], other[1])
            assert not torch.equal(first[1], kept[1])
    following = problem.redraw(random)  # the generator has moved on
    assert not torch.equal(next(terms_of(following))[1], draws[2][0][1])


@pytest.mark.parametrize("name", [*PLACES, "convection", "reaction", "wave"])
def test_data_has_the_default_dtype(name):
    problem = made(name)[0] if name in PLACES else problems.get(f"pinn_{name}", width=4)
    wide = problem.load()
    fresh = problem.redraw(torch.Generator().manual_seed(1))
    torch.set_default_dtype(torch.float32)
    narrow = problem.load()
    rounded = problem.redraw(torch.Generator().manual_seed(1))
    for high, low in ((wide.train, narrow.train), (wide.test, narrow.test), (fresh, rounded)):
        for a, b in zip(terms_of(high), terms_of(low), strict=True):
            for exactly, nearly in zip(a[1:3], b[1:3], strict=True):
                assert (exactly.dtype, nearly.dtype) == (torch.float64, torch.float32)
                assert torch.equal(exactly.float(), nearly)
    assert {parameter.dtype for parameter in problem.model().parameters()} == {torch.float32}


def test_published_sizes():
    sizes = {
        ("burgers", 20, 4): 1_341, ("allen_cahn", 30, 3): 1_981, ("poisson5d", 64, 1): 449, ("poisson2d", 32, 2): 1_185,
    }  # fmt: skip
    for (name, width, depth), size in sizes.items():
        problem = problems.get(f"pinn_{name}", width=width, depth=depth)
        assert sum(parameter.numel() for parameter in problem.model().parameters()) == size
        assert f"{size:,} parameters" in problem.description
    hard = problems.get("pinn_allen_cahn", hard=True)
    assert sum(parameter.numel() for parameter in hard.model().parameters()) == 2_011


@pytest.mark.parametrize("option", [{"width": 0}, {"depth": 0}, {"points": 7}, {"points": 100.0}, {"width": True}])
def test_sizes_that_are_refused(option):
    ((name, value),) = option.items()
    with pytest.raises(ProblemError, match=rf"{name} must be an integer of at least \d, got {value}"):
        problems.get("pinn_burgers", **option)
    with pytest.raises(ProblemError, match="hard must be True or False, got 'yes'"):
        problems.get("pinn_burgers", hard="yes")
    with pytest.raises(ProblemError, match="has no option 'hard'"):
        problems.get("pinn_poisson5d", hard=True)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    sides=st.lists(st.tuples(st.floats(-9, 9), st.floats(0.1, 9)), min_size=1, max_size=6),
    count=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_points_of_any_box(sides, count, seed):
    box = torch.tensor([[low, low + length] for low, length in sides], dtype=torch.float64).T
    random = torch.Generator()
    within = inside(box, count, random.manual_seed(seed))
    faces = on_faces(box, count, random.manual_seed(seed), range(len(sides)))
    pairs = at_both_ends(box, count, random.manual_seed(seed))
    for points in (within, faces, *pairs.unbind(1)):
        assert points.shape == (count, len(sides))
        assert ((points >= box[0]) & (points <= box[1])).all()
    assert ((faces == box[0]) | (faces == box[1])).any(1).all()
    assert torch.equal(pairs[:, :, 0], box[:, 0].expand(count, 2))
    assert torch.equal(pairs[:, 0, 1:], within[:, 1:])
    assert torch.equal(pairs[:, 1, 1:], within[:, 1:])


def test_a_grid_has_the_edges_and_its_first_coordinate_runs_fastest():
    found = grid(torch.tensor([[-1.0, 0.0], [1.0, 2.0]]), (3, 2))
    assert found.tolist() == [[-1, 0], [0, 0], [1, 0], [-1, 2], [0, 2], [1, 2]]


@pytest.mark.parametrize("dimensions", [2, 3, 5])
def test_points_cover_the_whole_of_every_face(dimensions):
    """Along each coordinate of a face a quarter of its points lies in every quarter of the edge, give or take two."""
    box = torch.stack([-torch.ones(dimensions), 3 * torch.ones(dimensions)]).double()
    axes = list(range(dimensions))
    points = on_faces(box, 2 * dimensions * 64, torch.Generator().manual_seed(0), axes)
    for axis in axes:
        for side in (0, 1):
            face = points[points[:, axis] == box[side, axis]]
            assert len(face) == 64
            for along in axes:
                if along != axis:
                    quarters = torch.histc(face[:, along], bins=4, min=-1.0, max=3.0)
                    assert float((quarters - 16).abs().max()) <= 2


def test_an_uneven_number_of_points_is_shared_out():
    box = torch.stack([torch.zeros(2), torch.ones(2)]).double()
    points = on_faces(box, 11, torch.Generator().manual_seed(1), [0, 1])
    on = [int((points[:, axis] == box[side, axis]).sum()) for axis in (0, 1) for side in (0, 1)]
    assert on == [3, 3, 3, 2]
