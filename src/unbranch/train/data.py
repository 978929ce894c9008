"""Real images, small enough for two cores: scikit-learn's digits and Fashion-MNIST."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unbranch.errors import InputError

SPLIT_SEED = 0
TEST_FRACTION = 0.2
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
IMAGES_MAGIC, LABELS_MAGIC = 2051, 2049  # idx: unsigned bytes in three dimensions, and in one


@dataclass(frozen=True)
class Images:
    """A data set in memory: ``(N, C, H, W)`` float32 with mean 0 and deviation 1, and class numbers ``(N,)``."""

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    mirrored: bool = False
    """Whether a mirrored image is still of its class."""

    @property
    def classes(self) -> int:
        return int(self.train_labels.max()) + 1

    @property
    def channels(self) -> int:
        return self.train_images.shape[1]


def digits(_: Path | None = None) -> Images:
    """1797 handwritten digits of 8 × 8 pixels that come with scikit-learn; a fixed fifth of them is the test set."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError("the digits come with scikit-learn: pip install 'unbranch[demo]'") from error
    found = load_digits()
    images = torch.from_numpy(found.images).float().unsqueeze(1)  # (N, 1, 8, 8)
    labels = torch.from_numpy(found.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    held_out = int(TEST_FRACTION * len(order))
    test, train = order[:held_out], order[held_out:]
    return _normalised("digits", images[train], labels[train], images[test], labels[test])


def fashion_mnist(folder: Path | None = None) -> Images:
    """70,000 pictures of clothes, 28 × 28 pixels, from idx files. Xiao, Rasul, Vollgraf, arXiv 1708.07747.

    Raises InputError that says how to get them.
    """
    found = _fashion_folder(folder)
    parts = (
        _read_idx(found, f"{part}-{kind}") for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
    )
    train_images, train_labels, test_images, test_labels = parts
    return _normalised(
        "fashion-mnist",
        train_images.float().unsqueeze(1),  # (N, 1, 28, 28)
        train_labels.long(),
        test_images.float().unsqueeze(1),
        test_labels.long(),
        mirrored=True,
    )


DATASETS: dict[str, Callable[[Path | None], Images]] = {"digits": digits, "fashion-mnist": fashion_mnist}


def load(name: str, folder: Path | None = None) -> Images:
    """The data set called ``name``. Raises InputError for a name that isn't known and files that aren't there."""
    if name not in DATASETS:
        raise InputError(f"data {name!r} is none of {', '.join(DATASETS)}")
    return DATASETS[name](folder)


def _normalised(
    name: str, train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, mirrored: bool = False
) -> Images:
    mean, deviation = train.mean(), train.std()
    return Images(name, (train - mean) / deviation, train_labels, (test - mean) / deviation, test_labels, mirrored)


def _fashion_folder(folder: Path | None) -> Path:
    roots = [folder] if folder else [Path("data"), DEBIAN_FOLDER]
    places = [place for root in roots for place in (root, root / "FashionMNIST" / "raw")]
    for place in places:
        if _idx_file(place, "train-images-idx3"):
            return place
    raise InputError(
        f"no Fashion-MNIST in {', '.join(map(str, roots))}: on Debian `apt-get install dataset-fashion-mnist`, "
        "elsewhere `python -c \"from torchvision.datasets import FashionMNIST as F; F('data', download=True)\"`, "
        "or name the folder of its idx files with --data-dir"
    )


def _idx_file(folder: Path, stem: str) -> Path | None:
    names = (f"{stem}-ubyte.gz", f"{stem}-ubyte")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _read_idx(folder: Path, stem: str) -> Tensor:
    path = _idx_file(folder, stem)
    if path is None:
        raise InputError(f"{folder} has no {stem}-ubyte.gz")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        (magic,) = struct.unpack_from(">I", raw)
        dimensions = {IMAGES_MAGIC: 3, LABELS_MAGIC: 1}[magic]
        shape = struct.unpack_from(f">{dimensions}I", raw, 4)
        start = 4 + 4 * dimensions
        if math.prod(shape) != len(raw) - start:
            raise ValueError("its length")
        return torch.frombuffer(bytearray(raw[start:]), dtype=torch.uint8).reshape(shape)
    except (OSError, EOFError, zlib.error, struct.error, KeyError, ValueError) as error:
        raise InputError(f"{path} is damaged or no idx file") from error
