"""What a data set is: images and labels in two halves, and what training has to know of them."""

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

Progress: TypeAlias = Callable[[str, int, int], None]  # what is read, how many are done, of how many
Statistics: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation of each channel

COLOUR: Statistics = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, in [0, 1]
MANY_CLASSES = 1_000_000
GREY: Statistics = (0.449,), (0.226,)  # the mean of the three


class ImageSet(Dataset[tuple["Image", int]], ABC):
    """Images and class numbers ``(N,)``: ``[i]`` gives both, and raises CorruptImage for what can't be decoded."""

    labels: Tensor

    @abstractmethod
    def image(self, index: int) -> Image:
        """Image ``index``, of mode ``L`` or ``RGB``, upright."""

    @abstractmethod
    def where(self, index: int) -> str:
        """The file of image ``index``, or its place in one, for messages."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image, int]:
        return self.image(index), int(self.labels[index])


class Part(ImageSet):
    """Some images of a set."""

    def __init__(self, whole: ImageSet, chosen: Tensor) -> None:
        self.whole, self.chosen = whole, chosen
        self.labels = whole.labels[chosen]

    def image(self, index: int) -> Image:
        return self.whole.image(int(self.chosen[index]))

    def where(self, index: int) -> str:
        return self.whole.where(int(self.chosen[index]))


@dataclass(frozen=True, kw_only=True)
class Data:
    """Images for training and for validation; ``str(data)`` describes them on one line."""

    name: str
    """As the user wrote it."""
    train: ImageSet
    val: ImageSet
    classes: tuple[str, ...]
    channels: int
    """1: images of mode ``L``; 3: of mode ``RGB``."""
    size: tuple[int, int] | None
    """Height and width, if all images have the same."""
    mean: tuple[float, ...]
    """Of pixels in [0, 1], a channel; ImageNet's where it isn't known."""
    std: tuple[float, ...]
    mirrored: bool = True
    """Whether a mirrored image is still of its class."""
    fingerprint: str = ""
    """A short hash of what identifies the data; a resumed run compares it."""
    notes: tuple[str, ...] = ()
    """What a user should know: images held out of training, files passed over."""

    def __str__(self) -> str:
        size = f"{self.size[0]}×{self.size[1]}" if self.size else "of several sizes"
        counts = f"{len(self.train):,} + {len(self.val):,} images of {len(self.classes):,} classes"
        return f"{self.name}: {counts}, {size}, {'grey' if self.channels == 1 else 'colour'}"


class Names(Sequence[str]):
    """Many strings in two objects: a list of a million would be copied, page by page, into every worker."""

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


def readable(name: str) -> str:
    """A file's name as any terminal can show it."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def fingerprint(*parts: object) -> str:
    """Sixteen hexadecimal digits that tell these tensors, texts and numbers from others."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        content = part.contiguous().numpy().data if isinstance(part, Tensor) else repr(part).encode()
        digest.update(hashlib.blake2b(content).digest())
    return digest.hexdigest()


def numbered(labels: Iterable[int], name: str) -> tuple[str, ...]:
    """Classes called by their numbers, from 0 to the greatest. Raises InputError for numbers that are no classes."""
    numbers = set(labels)
    if min(numbers, default=0) < 0 or max(numbers, default=0) >= MANY_CLASSES:
        raise InputError(f"{name} has labels from {min(numbers)} to {max(numbers)}: classes are counted from 0")
    return tuple(str(number) for number in range(max(numbers, default=-1) + 1))


def same_name(name: str) -> str:
    """One spelling of names that look the same: a Mac writes é as two characters."""
    return unicodedata.normalize("NFC", name)


def require(library: str, extra: str = "train") -> ModuleType:
    """The library. Raises InputError with the extra that brings it."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        name = "Pillow" if library == "PIL" else library.partition(".")[0]
        raise InputError(f"this data needs {name}: pip install 'unbranch[{extra}]'") from error
