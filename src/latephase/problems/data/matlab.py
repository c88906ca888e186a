"""Data sets in MATLAB's files: SVHN and the Olivetti faces."""

import numpy as np
import torch
from torch import Tensor

from .catalogue import data_set
from .errors import reading
from .find import locate
from .images import LabelledImages, check_labels
from .mat5 import read_arrays


def svhn() -> LabelledImages:
    """SVHN, cropped digits: 73,257 training and 26,032 test images [3, 32, 32], labels 0..9; without the extra images.

    The published files count the digit 0 as 10; here it is 0.

    Raises:
        DataError: files are missing and cannot be downloaded, or are not as published.
    """
    tensors = []
    for file, path in locate(data_set("svhn")):
        with reading(file, path):
            arrays = read_arrays(path, {"X": (32, 32, 3, file.rows), "y": (file.rows, 1)})
            labels = torch.from_numpy(arrays["y"].astype(np.int64).squeeze(1))
            check_labels(path, labels, range(1, 11))
        images = np.ascontiguousarray(arrays["X"].transpose(3, 2, 0, 1))
        tensors += [torch.from_numpy(images), labels % 10]
    return LabelledImages(*tensors)


def olivetti_faces() -> Tensor:
    """The Olivetti faces: 40 people, 10 images each, person by person; uint8 [400, 64, 64], upright.

    Raises:
        DataError: the file is missing and cannot be downloaded, or is not as published.
    """
    ((file, path),) = locate(data_set("olivetti_faces"))
    with reading(file, path):
        faces = read_arrays(path, {"faces": (64 * 64, file.rows)})["faces"]
    upright = faces.T.reshape(file.rows, 64, 64).transpose(0, 2, 1)  # a column holds one image, column by column
    return torch.from_numpy(np.ascontiguousarray(upright))
