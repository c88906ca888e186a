"""What all preconditioners share: names, settings, the inverse of a diagonal."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latephase.curvature.preconditioners import PRECONDITIONERS, EmpiricalFisher, Preconditioner, preconditioner
from latephase.curvature.preconditioners.base import diagonal_inverse


def test_names_stand_for_default_objects():
    for name, kind in PRECONDITIONERS.items():
        assert preconditioner(name) == kind()
    assert preconditioner(None) is None
    own = EmpiricalFisher(every=3)
    assert preconditioner(own) is own


def test_what_is_no_preconditioner_is_refused():
    with pytest.raises(ValueError, match=r"'empirical_fisher'.*got 'fischer'"):
        preconditioner("fischer")
    with pytest.raises(TypeError, match="call the class"):
        preconditioner(EmpiricalFisher)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="got int"):
        preconditioner(3)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kind", PRECONDITIONERS.values())
def test_settings_are_frozen_and_by_keyword(kind):
    made = kind()
    assert made.every >= 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.every = 2
    with pytest.raises(TypeError):
        kind(0.5)
    for wrong in (0, -1, 1.0, True, None, "2"):
        with pytest.raises(ValueError, match="every must be a whole number >= 1, got"):
            kind(every=wrong)


@pytest.mark.parametrize("wrong", [0, -0.5, 1.5, float("nan"), "1", True])
def test_exponents(wrong):
    with pytest.raises(ValueError, match="exponent must be a number"):
        EmpiricalFisher(exponent=wrong)


@pytest.mark.parametrize("wrong", [0, 1.5])
def test_pieces(wrong):
    with pytest.raises(ValueError, match="chunk must be None or a whole number"):
        EmpiricalFisher(chunk=wrong)


def test_two_methods_make_a_preconditioner():
    class Scaled(Preconditioner):
        def estimate(self, curved, blocks):
            return {"one": torch.ones(())}

        def inverse(self, estimate, damping, blocks):
            return lambda r: r / (estimate["one"] + damping)

    made = Scaled()
    assert made.every == 1
    assert preconditioner(made) is made
    with pytest.raises(TypeError, match="abstract"):
        Preconditioner()  # pyright: ignore[reportAbstractUsage]


@given(
    entries=st.lists(st.one_of(st.just(0.0), st.floats(2.0**-100, 2.0**100, width=32)), min_size=3, max_size=8),
    damping=st.one_of(st.just(0.0), st.floats(1e-20, 1e10)),
    exponent=st.sampled_from([0.5, 0.75, 1.0]),
    first=st.integers(1, 2),
)
@settings(deadline=None, derandomize=True, max_examples=200)
def test_the_inverse_of_a_diagonal_is_positive_and_finite(entries, damping, exponent, first):
    diagonal = torch.tensor(entries)
    apply = diagonal_inverse(diagonal, damping, exponent, [first, len(entries) - first])
    scale = apply(torch.ones(len(entries)))
    assert bool((scale > 0).all())
    assert scale.isfinite().all()
    # What lies far above the floor is not touched by it.
    blocks = [first, len(entries) - first]
    for piece, found in zip(diagonal.split(blocks), scale.split(blocks), strict=True):
        damped = piece.double() + damping
        high = damped > 1e-6 * damped.max()
        torch.testing.assert_close(found.double()[high], damped[high] ** -exponent, rtol=1e-5, atol=0)


def test_damping_may_differ_by_parameter():
    diagonal, damping = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([1.0, 0.0, 4.0])
    apply = diagonal_inverse(diagonal, damping, 0.5, [3])
    torch.testing.assert_close(apply(torch.ones(3)), torch.tensor([2.0, 2.0, 4.0]) ** -0.5)
    torch.testing.assert_close(
        diagonal_inverse(diagonal, 0.0, 0.5, [2, 1])(torch.ones(3)), torch.tensor([1.0, 2**-0.5, 1.0])
    )
