"""Sets of compressed images, wherever they lie, and what can be said of them from their heads."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unbranch.errors import CorruptImage, InputError
from unbranch.train.data.dataset import COLOUR, GREY, Data, ImageSet
from unbranch.train.data.images import decode, probe
from unbranch.train.data.split import NOTE, split

if TYPE_CHECKING:
    from PIL.Image import Image

PROBED = 256  # images by which size and colour are guessed
SMALL = 100_000  # of not more images, the size is read from every one


class Encoded(ImageSet):
    """Images as files or the content of files, decoded to ``channels`` channels when they are asked for."""

    channels: int = 3

    @abstractmethod
    def content(self, index: int) -> Path | bytes:
        """The file of image ``index``, or what would be in it. Raises CorruptImage if there is nothing."""

    def image(self, index: int) -> Image:
        return decode(self.content(index), self.where(index), self.channels)

    def probe(self, index: int) -> tuple[tuple[int, int], bool] | None:
        """Height and width, and whether it is grey; None where the image can't be read."""
        try:
            return probe(self.content(index), self.where(index))
        except CorruptImage:
            return None


def assemble(
    name: str,
    train: Encoded,
    val: Encoded | None,
    *,
    names: Iterable[str],
    classes: tuple[str, ...],
    fingerprint: str,
    notes: Sequence[str] = (),
) -> Data:
    """Data of both sets, or of ``train`` split by its ``names``. Raises InputError if there is but one class."""
    if len(classes) < 2:
        raise InputError(f"{name} has one class alone, {', '.join(map(repr, classes))}: there is nothing to tell apart")
    halves = [train, val] if val else [train]
    size, channels = look(halves)
    for half in halves:
        half.channels = channels
    mean, std = GREY if channels == 1 else COLOUR
    parts = (train, val) if val else split(train, names)
    return Data(
        name=name,
        train=parts[0],
        val=parts[1],
        classes=classes,
        channels=channels,
        size=size,
        mean=mean,
        std=std,
        fingerprint=fingerprint,
        notes=(*notes, *(() if val else (f"{name} has no images for validation: {NOTE}",))),
    )


def look(halves: Sequence[Encoded]) -> tuple[tuple[int, int] | None, int]:
    """The size of all images, if they share one, and their channels: 1 if all that are looked at are grey.

    Where some differ in size, or there are more than 100,000, the rest isn't looked at.
    """
    count = sum(map(len, halves))
    stride = max(1, count // PROBED)
    some = [half.probe(index) for half in halves for index in range(0, len(half), stride)]
    sizes = {seen[0] for seen in some if seen}
    grey = bool(sizes) and all(seen[1] for seen in some if seen)
    if len(sizes) != 1 or count > SMALL:
        return None, 1 if grey else 3
    for seen in (half.probe(index) for half in halves for index in range(len(half))):
        if seen:
            sizes.add(seen[0])
            grey = grey and seen[1]
    return sizes.pop() if len(sizes) == 1 else None, 1 if grey else 3
