"""Sets of encoded images, in files or in memory, and their size and channels from the file headers."""

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

PROBED = 256  # images that are read to guess size and channels
SMALL = 100_000  # the size is read from every image of smaller sets


class Encoded(ImageSet):
    """Images as files or the content of files, decoded to ``channels`` channels on access."""

    channels: int = 3

    @abstractmethod
    def content(self, index: int) -> Path | bytes:
        """Return the file of image ``index``, or its content. Raise CorruptImage if there is none."""

    def image(self, index: int) -> Image:
        return decode(self.content(index), self.where(index), self.channels)

    def probe(self, index: int) -> tuple[tuple[int, int], bool] | None:
        """Return height and width, and whether the image is grey; None if it can't be read."""
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
    """Return the data of both sets, or of ``train`` split by the ``names`` of its images.

    Raises:
        InputError: if there is only one class.
    """
    if len(classes) < 2:
        raise InputError(f"{name} has only one class, {', '.join(map(repr, classes))}: there is nothing to classify")
    halves = [train, val] if val else [train]
    size, channels = probe_images(halves)
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


def probe_images(halves: Sequence[Encoded]) -> tuple[tuple[int, int] | None, int]:
    """Return the size of the images, None if they differ or there are more than 100,000, and their channels.

    Channels are 1 if all images that were read are grey. Some images are read first, the rest only if the size may be
    the same for all.
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
