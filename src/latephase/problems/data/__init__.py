"""Published data sets, read from files in their original formats and never from pickles.

Files are looked for in the folder that the environment variable LATEPHASE_DATA names, laid out as the published
archives unpack (`MNIST/*.gz` or torchvision's `MNIST/raw/*.gz`, `FashionMNIST/`, `cifar-10-batches-bin/`,
`cifar-100-binary/`, `SVHN/*.mat`, `uci/energy/`, `uci/protein/`, `tiny_shakespeare/`, `olivetti_faces/`), then in the
cache (LATEPHASE_CACHE, or else the user's own), and are downloaded into the cache otherwise.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .catalogue import DATA_SETS, DataFile, DataSet, Download
from .errors import DataError
from .find import MissingFile, cache_folder, missing

if TYPE_CHECKING:
    from .idx import read_idx
    from .images import LabelledImages, cifar10, cifar100, fashion_mnist, mnist
    from .matlab import olivetti_faces, svhn
    from .tables import tiny_shakespeare, uci

__all__ = [
    "DATA_SETS",
    "DataError",
    "DataFile",
    "DataSet",
    "Download",
    "LabelledImages",
    "MissingFile",
    "cache_folder",
    "cifar10",
    "cifar100",
    "fashion_mnist",
    "missing",
    "mnist",
    "olivetti_faces",
    "read_idx",
    "svhn",
    "tiny_shakespeare",
    "uci",
]

_READERS = {
    "LabelledImages": "images",
    "cifar10": "images",
    "cifar100": "images",
    "fashion_mnist": "images",
    "mnist": "images",
    "olivetti_faces": "matlab",
    "read_idx": "idx",
    "svhn": "matlab",
    "tiny_shakespeare": "tables",
    "uci": "tables",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first used, so that saying which data is missing does not."""
    if name not in _READERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_READERS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
