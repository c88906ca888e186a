"""Readers of the published data files, on the real ones where they are."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import loadmat
from torch import Tensor

from latephase.problems import data

REAL = Path(os.environ.get("LATEPHASE_DATA", "absent"))

PUBLISHED_COUNTS = {
    "mnist": (
        [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    ),
    "fashion_mnist": ([6000] * 10, [1000] * 10),
    "cifar100": ([500] * 100, [100] * 100),
}


def real(name: str, rows: int | None = None):
    """Skip unless the published files are at hand."""
    if not REAL.is_dir() or data.missing(name, rows):
        pytest.skip(f"needs the published files of {name} in LATEPHASE_DATA")


def digest(images: Tensor) -> str:
    return hashlib.sha256(images.numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_published_images_of_28_by_28(name):
    real(name)
    found = getattr(data, name)()
    assert found.train_images.shape == (60_000, 1, 28, 28)
    assert found.test_images.shape == (10_000, 1, 28, 28)
    assert found.train_images.dtype == torch.uint8
    assert found.train_labels.dtype == found.test_labels.dtype == torch.int64
    assert [found.train_labels.bincount().tolist(), found.test_labels.bincount().tolist()] == [*PUBLISHED_COUNTS[name]]


def test_published_cifar_100():
    real("cifar100")
    found = data.cifar100()
    assert [found.train_labels.bincount().tolist(), found.test_labels.bincount().tolist()] == [
        *PUBLISHED_COUNTS["cifar100"]
    ]
    # of the arrays in the original pickles, which have the checksums that torchvision lists
    assert digest(found.train_images) == "de64658905c6b161606e3649ddafce7cf86c7634a0cf9116d518e64ef46a33c5"
    assert digest(found.test_images) == "83c56492b2c11211ad1bb2dbd4f2eef4170a0441e41a41f3039c3144b1f5a511"
    first = data.cifar100(rows=2_345)
    assert torch.equal(first.train_images, found.train_images[:2_345])
    assert torch.equal(first.train_labels, found.train_labels[:2_345])
    assert torch.equal(first.test_labels, found.test_labels)


def test_a_subset_of_cifar_10():
    real("cifar10", 10_000)
    if (REAL / "cifar-10-batches-bin/test_batch.bin").stat().st_size != 15_365_000:
        pytest.skip("these are not the 10,000 and 5,000 rows whose checksums are known")
    found = data.cifar10(rows=10_000)
    assert digest(found.train_images) == "7b7e7427c466e2d4afde536c00c132fc2b18ec576cb0da67f1a22bd721afa3a3"
    assert digest(found.test_images) == "7dd8cba91400977e619a724355b9e2bd90c29c87d0d48c989b431f0c1d0878a9"
    assert found.test_images.shape == (5_000, 3, 32, 32)
    assert torch.equal(data.cifar10(rows=37).train_images, found.train_images[:37])
    assert [file.path[-16:] for file in data.missing("cifar10")] == [f"data_batch_{part}.bin" for part in (2, 3, 4, 5)]


def test_published_tables():
    real("uci_energy")
    real("uci_protein")
    energy, protein = data.uci("energy"), data.uci("protein")
    assert energy.shape == (768, 9)
    assert protein.shape == (45_730, 10)
    assert energy.dtype == torch.float64
    assert energy[0].tolist() == [0.98, 514.5, 294, 110.25, 7, 2, 0, 0, 15.55]
    assert protein[:, 9].aminmax() == (0, 20.999)  # the range of the target that its authors state


def test_published_text():
    real("tiny_shakespeare")
    text = data.tiny_shakespeare()
    assert len(text) == 1_115_394
    assert len(set(text)) == 65
    assert text.startswith("First Citizen:\nBefore we proceed")


def test_published_faces_are_upright():
    real("olivetti_faces")
    faces = data.olivetti_faces()
    assert faces.shape == (400, 64, 64)
    assert faces.dtype == torch.uint8
    assert faces.aminmax() == (0, 242)
    columns = loadmat(REAL / "olivetti_faces/olivettifaces.mat")["faces"]
    assert np.array_equal(faces[123].numpy(), columns[:, 123].reshape(64, 64, order="F"))
    # A face is more like its mirror image, left to right, than upside down: 0.69 of the difference as they are, the
    # inverse of that if they lie on their side.
    faces = faces.double()
    assert (faces - faces.flip(2)).abs().mean() < 0.8 * (faces - faces.flip(1)).abs().mean()
