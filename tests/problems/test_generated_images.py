"""Generated images: curves against the points they go through, patches against images that tell where they were cut."""

import math

import pytest
import torch

from latephase.problems import curves, faces


@pytest.fixture(scope="module")
def splits():
    return curves.curves_splits()


def images_of(split):
    return split[0].view(-1, 28, 28).double() / 255


def test_curves_have_the_described_form(splits):
    for split, count in zip((splits.train, splits.valid, splits.test), (18_000, 2_000, 10_000), strict=True):
        assert split[0] is split[1]
        assert split[0].shape == (count, 784)
        assert split[0].dtype == torch.uint8
        assert (split[0].amax(1) > 0).all()
    assert not torch.equal(splits.train[0][:2_000], splits.valid[0])
    assert not torch.equal(splits.test[0][:2_000], splits.valid[0])
    again = curves.curves_splits()
    assert torch.equal(again.train[0], splits.train[0])
    assert torch.equal(again.test[0], splits.test[0])


def test_ink_lies_along_the_curve(splits):
    count = len(splits.valid[0])
    points = 4 + 19 * torch.rand(count, 3, 2, generator=torch.Generator().manual_seed(1))
    for image, (a, b, c) in zip(images_of(splits.valid)[:100], points[:100].double(), strict=True):
        # The parabola through the three, densely, by Newton's form and not by Lagrange's.
        s = torch.linspace(0, 1, 400, dtype=torch.float64)[:, None]
        curve = a + 2 * s * (b - a) + 2 * s * (s - 0.5) * (c - 2 * b + a)
        for point, place in ((a, 0), (b, 0.5), (c, 1)):
            assert torch.allclose(curve[round(place * 399)], point, atol=0.3)  # the middle falls between two places
        rows, columns = image.nonzero().T
        pixels = torch.stack([columns, rows], 1).double()
        # Sharing reaches less than one pixel from the curve along each axis, and smoothing one more.
        distances = torch.cdist(pixels, curve, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
        assert float(distances.max()) < 2 * math.sqrt(2)
        length = float(curve.diff(dim=0).norm(dim=1).sum())
        # Each unit of length leaves two of ink, less what is cut off where a curve passes twice or turns; rounding to
        # 1/255 and differences of slopes over 60 places are within two per cent.
        assert float(image.sum()) < 2.02 * length
        inside = curve[20:-20].round().to(torch.int64)
        if length > 8:
            assert float(image[inside[:, 1], inside[:, 0]].min()) > 0.25


def test_a_straight_line():
    line = torch.tensor([[[4.0, 10.0], [13.0, 10.0], [22.0, 10.0]]])
    image = curves._ink(line).view(28, 28)
    expected = torch.zeros(28, dtype=torch.uint8)
    expected[9:12] = torch.tensor([128, 255, 128])
    for column in range(6, 21):
        # 60 places on 18 pixels leave 0.9 to 1.2 units in a pixel before smoothing along the line.
        assert (image[:, column].int() - expected.int()).abs().max() <= 13
    assert not image[:, :3].any()
    assert not image[:, 24:].any()


def ramp(size, across, down):
    steps = torch.arange(size, dtype=torch.float32)
    return 10 + across * steps[None, :] + down * steps[:, None]


def test_patches_are_turned_and_scaled_within_the_image():
    # Bilinear sampling of a plane is exact, so that two ramps give each pixel's place in the image.
    images = torch.stack([ramp(64, 3.0, 0.0), ramp(64, 0.0, 3.0)])
    patches = [
        faces.cut_patches(image[None], 500, torch.Generator().manual_seed(7)).double().view(500, 25, 25)
        for image in images
    ]
    x, y = ((patch - 10) / 3 for patch in patches)
    for place in (x, y):
        assert float(place.min()) >= -1e-4
        assert float(place.max()) <= 63 + 1e-4
    right = torch.stack([x.diff(dim=2).mean((1, 2)), y.diff(dim=2).mean((1, 2))], 1)
    down = torch.stack([x.diff(dim=1).mean((1, 2)), y.diff(dim=1).mean((1, 2))], 1)
    # Equal steps along straight lines, at right angles and not mirrored. Values up to 200 in float32: 2e-5.
    assert torch.allclose(x.diff(dim=2), right[:, 0, None, None], atol=1e-4)
    assert torch.allclose(y.diff(dim=1), down[:, 1, None, None], atol=1e-4)
    assert torch.allclose(down, torch.stack([-right[:, 1], right[:, 0]], 1), atol=1e-4)
    scales = 2 / right.norm(dim=1)
    angles = torch.atan2(right[:, 1], right[:, 0]).rad2deg()
    assert float(scales.min()) >= 1.4 - 1e-4
    assert float(scales.max()) <= 1.8 + 1e-4
    assert float(angles.abs().max()) <= 90
    # Uniform: 500 draws of standard deviation 0.115 and 52, within five standard errors.
    assert float(scales.mean()) == pytest.approx(1.6, abs=5 * 0.0052)
    assert float(angles.mean()) == pytest.approx(0.0, abs=5 * 2.33)
    assert float(angles.std()) == pytest.approx(52.0, abs=5 * 1.7)
    # Places differ, and reach the image's edges.
    assert float(x.amin()) < 1.5
    assert float(x.amax()) > 61.5
    assert float(x[:, 12, 12].std()) > 3


@pytest.fixture(scope="module")
def people():
    """Splits of images that are as bright as the person's number says, but for a ramp in all of them."""
    brightness = (torch.arange(400) // 10 * 5)[:, None, None]
    return faces.faces_splits((brightness + torch.arange(64).expand(400, 64, 64) // 2).to(torch.uint8))


def test_people_of_the_splits_differ(people):
    first = 0
    scale = None
    for split, count in zip((people.train, people.valid, people.test), (25, 5, 10), strict=True):
        assert split[0] is split[1]
        assert split[0].shape == (count * 4_140, 625)
        assert split[0].dtype == torch.float32
        means = split[0].mean(1).view(count, 4_140).mean(1).double()
        scale = float(means.diff().mean()) / 5 if scale is None else scale
        # Means of 4,140 patches that lie anywhere: the ramp's share of some 3 grey levels averages out to 0.1.
        expected = scale * 5 * (torch.arange(first, first + count) - 12)
        torch.testing.assert_close(means, expected.double(), rtol=0, atol=0.3 * scale)
        first += count


def test_patches_are_normalised(people):
    parts = people.train[0].split(10_000)
    means = sum(rows.double().sum(0) for rows in parts) / 103_500
    variance = sum(float(rows.double().square().sum()) for rows in parts) / (103_500 * 625)
    # Rounding of float32 sums over 103,500 rows.
    assert float(means.abs().max()) < 1e-4
    assert variance == pytest.approx(1.0, abs=1e-4)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"400 square images \[400, H, H\], got shape \[10, 64, 64\]"):
        faces.faces_splits(torch.zeros(10, 64, 64, dtype=torch.uint8))
