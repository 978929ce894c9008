"""Fashion-MNIST: 70,000 images of clothes, 28 × 28 pixels, from idx files. Xiao and others, arXiv 1708.07747.

torchvision reads unpacked files only, and doesn't report which file is damaged.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from unbranch.errors import InputError
from unbranch.train.data.pixels import Pixels

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
IMAGES_MAGIC, LABELS_MAGIC = 2051, 2049  # idx: unsigned bytes in three dimensions, and in one
CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def fashion_mnist(folder: Path | None = None) -> Pixels:
    """Read the data from ``folder``, or from where torchvision or Debian puts it.

    Raises:
        InputError: if it isn't there, with how to get it, or if a file is damaged.
    """
    found = _place(folder)
    train, train_labels, val, val_labels = (
        _read(found, f"{part}-{kind}") for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
    )
    try:
        return Pixels(train, train_labels.long(), val, val_labels.long(), CLASSES)
    except InputError as error:
        raise InputError(f"{found} holds no Fashion-MNIST: {error}") from error


def idx_file(folder: Path, stem: str = "train-images-idx3") -> Path | None:
    """Return the path of a file, as published or unpacked; None if it isn't there."""
    names = (f"{stem}-ubyte.gz", f"{stem}-ubyte")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _place(folder: Path | None) -> Path:
    roots = [folder] if folder else [Path("data"), DEBIAN_FOLDER]
    places = [place for root in roots for place in (root, root / "FashionMNIST" / "raw")]
    for place in places:
        if idx_file(place):
            return place
    raise InputError(
        f"no Fashion-MNIST in {', '.join(map(str, roots))}: on Debian `apt-get install dataset-fashion-mnist`, "
        "elsewhere `python -c \"from torchvision.datasets import FashionMNIST as F; F('data', download=True)\"`, "
        "or name the folder of its idx files, as fashion-mnist:FOLDER (the demo's --data-dir FOLDER)"
    )


def _read(folder: Path, stem: str) -> Tensor:
    path = idx_file(folder, stem)
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
    except PermissionError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from error
    except (OSError, EOFError, zlib.error, struct.error, KeyError, ValueError) as error:
        raise InputError(f"{path} is damaged or no idx file: download it again") from error
