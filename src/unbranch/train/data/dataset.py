"""Data sets: images and labels for training and validation, and their properties."""

from __future__ import annotations

import hashlib
import importlib
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset

from unbranch.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

OnListing: TypeAlias = Callable[[str, int, int], None]  # what is listed, number done, total
Statistics: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each channel

COLOUR: Statistics = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, in [0, 1]
MANY_CLASSES = 1_000_000
GREY: Statistics = (0.449,), (0.226,)  # the mean of the three


class ImageSet(Dataset[tuple["Image", int]], ABC):
    """Images with class numbers ``labels`` ``(N,)``: ``[i]`` is an image and its class.

    Raises:
        CorruptImage: by ``[i]`` and ``image``, for an image that can't be decoded.
    """

    labels: Tensor

    @abstractmethod
    def image(self, index: int) -> Image:
        """Return image ``index``, upright, of mode ``L`` or ``RGB``."""

    @abstractmethod
    def where(self, index: int) -> str:
        """Return the file of image ``index``, or its location in a file, for messages."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image, int]:
        return self.image(index), int(self.labels[index])


class ImageSubset(ImageSet):
    """Some images of a set.

    Args:
        whole: the set.
        chosen: indices of the images, ``(N,)``.
    """

    def __init__(self, whole: ImageSet, chosen: Tensor) -> None:
        self.whole, self.chosen = whole, chosen
        self.labels = whole.labels[chosen]

    def image(self, index: int) -> Image:
        return self.whole.image(int(self.chosen[index]))

    def where(self, index: int) -> str:
        return self.whole.where(int(self.chosen[index]))


@dataclass(frozen=True, kw_only=True)
class Data:
    """Images for training and validation; ``str(data)`` describes them on one line."""

    name: str
    """The source, as it was given."""
    train: ImageSet
    val: ImageSet
    classes: tuple[str, ...]
    channels: int
    """1: images of mode ``L``; 3: of mode ``RGB``."""
    size: tuple[int, int] | None
    """Height and width, if all images have the same."""
    mean: tuple[float, ...]
    """Mean of each channel, with pixels in [0, 1]; ImageNet's if unknown. ``std`` likewise."""
    std: tuple[float, ...]
    mirrored: bool = True
    """Whether a mirrored image is of the same class."""
    fingerprint: str = ""
    """A short hash that identifies the data; a resumed run compares it."""
    notes: tuple[str, ...] = ()
    """Notes for the user: images held out of training, files that were skipped."""

    def __str__(self) -> str:
        size = f"{self.size[0]}×{self.size[1]}" if self.size else "of several sizes"
        counts = f"{len(self.train):,} + {len(self.val):,} images of {len(self.classes):,} classes"
        return f"{self.name}: {counts}, {size}, {'grey' if self.channels == 1 else 'colour'}"


class Names(Sequence[str]):
    """Many strings in two objects; a list of a million strings would be copied, page by page, into every worker."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self._text = b"".join(encoded)
        self._ends = torch.tensor([0, *map(len, encoded)]).cumsum(0)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # no slices
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        start, end = self._ends[index % len(self) :][:2].tolist()
        return self._text[start:end].decode("utf-8", "surrogateescape")


def printable(name: str) -> str:
    """Return a file's name in a form that any terminal can show."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def fingerprint(*parts: object) -> str:
    """Return a hash of tensors, texts and numbers, as 16 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        content = part.contiguous().numpy().data if isinstance(part, Tensor) else repr(part).encode()
        digest.update(hashlib.blake2b(content).digest())
    return digest.hexdigest()


def numbered(labels: Iterable[int], name: str) -> tuple[str, ...]:
    """Return the names \"0\", \"1\", … of numbered classes. Raise InputError for numbers that can't be classes."""
    numbers = set(labels)
    if min(numbers, default=0) < 0 or max(numbers, default=0) >= MANY_CLASSES:
        raise InputError(f"{name} has labels from {min(numbers)} to {max(numbers)}: classes must be numbered from 0")
    return tuple(str(number) for number in range(max(numbers, default=-1) + 1))


def same_name(name: str) -> str:
    """Return one spelling for names that look the same; macOS writes é as two characters."""
    return unicodedata.normalize("NFC", name)


def require(library: str, extra: str = "train") -> ModuleType:
    """Import a library. Raise InputError with the extra that installs it if it is missing."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        name = "Pillow" if library == "PIL" else library.partition(".")[0]
        raise InputError(f"this data needs {name}: pip install 'unbranch[{extra}]'") from error
