"""Files in the published formats where no real ones are to be had, and torch's default dtype."""

import numpy as np
import pytest
import torch
from scipy.io import savemat


@pytest.fixture(scope="session")
def svhn_folder(tmp_path_factory):
    """A data folder with files in the format of SVHN: digits as stripes, the number giving their direction."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "SVHN").mkdir()
    random = np.random.RandomState(0)
    y, x = np.mgrid[0:32, 0:32] / 32
    for part, count in (("train", 2500), ("test", 500)):
        digits = random.randint(10, size=count)
        angles = np.pi * digits / 10
        waves = np.sin(12 * (np.cos(angles) * x[..., None] + np.sin(angles) * y[..., None]))
        colours = random.uniform(40, 80, size=(1, 1, 3, count))
        images = 128 + colours * waves[:, :, None] + random.uniform(-40, 40, size=(32, 32, 3, count))
        labels = np.where(digits == 0, 10, digits).astype(np.uint8)[:, None]  # the files call the digit 0 ten
        savemat(folder / "SVHN" / f"{part}_32x32.mat", {"X": images.astype(np.uint8), "y": labels}, do_compression=True)
    return folder


@pytest.fixture
def float64():
    """Float64 as torch's default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
