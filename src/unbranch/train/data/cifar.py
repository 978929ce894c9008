"""CIFAR-10 and CIFAR-100: 60,000 images of 32 × 32 pixels, from pickles or binary files. Krizhevsky, 2009.

torchvision reads the pickles only, with an unpickler that runs code of the file. The one here imports nothing.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from unbranch.errors import InputError
from unbranch.train.data.pixels import Pixels

SIDE = 32
PIXELS = 3 * SIDE * SIDE  # of an image: red plane, green plane, blue plane


@dataclass(frozen=True)
class Layout:
    """The files of a published archive."""

    folder: str
    archive: str
    train: tuple[str, ...]
    val: str
    names: str
    """File with the names of the classes."""
    labels: str
    """Key of the labels in a pickle."""
    label_bytes: int = 0
    """Label bytes of an image in a binary file, of which the last is the class; 0 for pickles."""

    def at(self, root: Path) -> Path | None:
        """Return its folder, which is ``root`` or in ``root``; None if it isn't there."""
        places = (root, root / self.folder)
        return next((place for place in places if (place / self.train[0]).is_file()), None)


_BATCHES = tuple(f"data_batch_{n}" for n in range(1, 6))
LAYOUTS = {
    "cifar10": (
        Layout("cifar-10-batches-py", "cifar-10-python.tar.gz", _BATCHES, "test_batch", "batches.meta", labels="label"),
        Layout(
            "cifar-10-batches-bin",
            "cifar-10-binary.tar.gz",
            tuple(f"{name}.bin" for name in _BATCHES),
            "test_batch.bin",
            "batches.meta.txt",
            labels="label",
            label_bytes=1,
        ),
    ),
    "cifar100": (
        Layout("cifar-100-python", "cifar-100-python.tar.gz", ("train",), "test", "meta", labels="fine_label"),
        Layout(
            "cifar-100-binary",
            "cifar-100-binary.tar.gz",
            ("train.bin",),
            "test.bin",
            "fine_label_names.txt",
            labels="fine_label",
            label_bytes=2,
        ),
    ),
}


def cifar(name: str, folder: Path | None = None) -> Pixels:
    """Read ``cifar10`` or ``cifar100`` from ``folder``, ``data`` unless given.

    Raises:
        InputError: if it isn't there, with how to get it, or if a file is damaged.
    """
    root = Path("data") if folder is None else folder
    for layout in LAYOUTS[name]:
        place = layout.at(root)
        if place:
            return _read(layout, place)
    for layout in LAYOUTS[name]:
        if (root / layout.archive).is_file():
            raise InputError(f"{root / layout.archive} is packed: tar -xf {root / layout.archive} -C {root}")
    folders = " or ".join(layout.folder for layout in LAYOUTS[name])
    raise InputError(
        f"no {folders} in {root}: unpack {LAYOUTS[name][0].archive} of https://www.cs.toronto.edu/~kriz/cifar.html "
        f"there, or name the folder that has it, as {name}:FOLDER"
    )


def _read(layout: Layout, place: Path) -> Pixels:
    read = _binary if layout.label_bytes else _pickled
    train = [read(place / file, layout) for file in layout.train]
    val, val_labels = read(place / layout.val, layout)
    images, labels = (torch.cat(parts) for parts in zip(*train, strict=True))
    try:
        return Pixels(images, labels, val, val_labels, _classes(layout, place))
    except InputError as error:
        raise InputError(f"{place} holds no {layout.folder}: {error}") from error


def _classes(layout: Layout, place: Path) -> tuple[str, ...]:
    path = place / layout.names
    if layout.label_bytes:
        try:
            return tuple(_content(path).decode().split())
        except UnicodeDecodeError as error:
            raise _damaged(path) from error
    names = _unpickled(path).get(f"{layout.labels}_names".encode())
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        raise _damaged(path)
    return tuple(name.decode("utf-8", "backslashreplace") for name in names)


def _binary(path: Path, layout: Layout) -> tuple[Tensor, Tensor]:
    raw = _content(path)
    record = layout.label_bytes + PIXELS
    if not raw or len(raw) % record:
        raise _damaged(path)
    records = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(-1, record)
    return _images(records[:, layout.label_bytes :]), records[:, layout.label_bytes - 1].long()


def _pickled(path: Path, layout: Layout) -> tuple[Tensor, Tensor]:
    found = _unpickled(path)
    array, labels = found.get(b"data"), found.get(f"{layout.labels}s".encode())
    if not isinstance(array, _Array) or not isinstance(labels, list) or not all(type(n) is int for n in labels):
        raise _damaged(path)
    try:
        return _images(array.tensor()), torch.tensor(labels)
    except (ValueError, RuntimeError, TypeError) as error:
        raise _damaged(path) from error


def _images(planes: Tensor) -> Tensor:
    return planes.reshape(-1, 3, SIDE, SIDE).permute(0, 2, 3, 1).contiguous()  # (N, 32, 32, 3)


def _unpickled(path: Path) -> dict[Any, Any]:
    with _opened(path) as file:
        try:
            found = _Unpickler(file, encoding="bytes").load()
        except Exception as error:  # a pickle can break in any way
            raise _damaged(path) from error
    if not isinstance(found, dict):
        raise _damaged(path)
    return found


class _Unpickler(pickle.Unpickler):
    """Reads dicts, lists, numbers, texts and arrays of bytes, as the published files hold; imports nothing."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in REPLACEMENTS:
            return REPLACEMENTS[module, name]
        raise pickle.UnpicklingError(f"{module}.{name}")


class _Array:
    """Replaces numpy.ndarray; holds its shape and bytes."""

    def __init__(self, *_: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def tensor(self) -> Tensor:
        """Return the array, ``(N, 3072)`` uint8. Raise ValueError or RuntimeError for any other."""
        _, shape, kind, fortran, content = self.state
        if not isinstance(kind, _Kind) or kind.code != b"u1" or len(shape) != 2 or shape[1] != PIXELS:
            raise ValueError("no array of bytes")
        values = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return values.reshape(shape[1], shape[0]).T if fortran else values.reshape(shape)


class _Kind:
    """Replaces numpy.dtype."""

    def __init__(self, code: object, *_: object) -> None:
        self.code = code

    def __setstate__(self, _: object) -> None:
        return None


REPLACEMENTS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Kind,
}


def _content(path: Path) -> bytes:
    with _opened(path) as file:
        return file.read()


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}; unpack the archive again") from error


def _damaged(path: Path) -> InputError:
    return InputError(f"{path} is damaged or no CIFAR file: unpack the archive again")
