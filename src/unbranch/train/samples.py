"""Samples and their order, whose randomness is a function of the seed, the epoch and the image alone.

A resumed run therefore sees the same images as an uninterrupted one, and several processes the same as one.
"""

from __future__ import annotations

import hashlib
import random as python_random
import signal
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from unbranch.errors import CorruptImage, InputError
from unbranch.train.data.dataset import ImageSet

if TYPE_CHECKING:
    from PIL.Image import Image

Key: TypeAlias = tuple[int, int]  # epoch and index
POLICIES = ("stop", "skip")
MOST_SKIPPED = 100  # consecutive images that can't be decoded
MOST_LISTED = 10  # images in a message


class Samples(Dataset[dict[str, Any]]):
    """Transformed samples of a dataset by ``(epoch, index)``: ``image`` (C, H, W), ``label``, ``index``, ``corrupt``.

    Args:
        dataset: images and labels.
        transform: from an image to a tensor ``(C, H, W)``.
        seed: of the run. Before each transform the generators of Python, NumPy and PyTorch are seeded with a hash of
            (seed, epoch, index); afterwards their state is restored.
        on_corrupt: with ``"stop"`` an image that can't be decoded raises CorruptImage; with ``"skip"`` the next one
            that can be decoded replaces it, and ``corrupt`` is 1.
        random: seed the generators; False for transforms that draw nothing.
    """

    def __init__(
        self,
        dataset: ImageSet,
        transform: Callable[[Image], Tensor],
        seed: int,
        on_corrupt: str = "stop",
        random: bool = True,
    ) -> None:
        if on_corrupt not in POLICIES:
            raise InputError(f"`on_corrupt` must be one of {', '.join(POLICIES)}, got {on_corrupt!r}")
        self.dataset, self.transform, self.seed = dataset, transform, seed
        self.on_corrupt, self.random = on_corrupt, random

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> list[dict[str, Any]]:
        """Return the samples of a batch; DataLoader calls this, and generators are restored once for all of them."""
        if not self.random:
            return [self._sample(*key) for key in keys]
        with generators_restored():
            return [self._sample(*key) for key in keys]

    def _sample(self, epoch: int, index: int) -> dict[str, Any]:
        image, label, place = self._readable(index)
        if self.random:
            _seed(self.seed, epoch, index)
        try:
            transformed = self.transform(image)
        except Exception as error:
            size = f"{image.height}×{image.width}"
            reason = f"{type(error).__name__}: {error}"
            raise InputError(f"{self.dataset.where(place)}, {size}, can't be transformed: {reason}") from error
        return {"image": transformed, "label": label, "index": index, "corrupt": int(place != index)}

    def _readable(self, index: int) -> tuple[Image, int, int]:
        """Return image ``index`` or the next one that can be decoded, with its label and index."""
        tries = min(MOST_SKIPPED, len(self.dataset))
        for step in range(tries):
            place = (index + step) % len(self.dataset)
            try:
                return *self.dataset[place], place
            except CorruptImage as error:
                if self.on_corrupt == "stop":
                    advice = "replace or remove it, or skip such images with data.on_corrupt=skip"
                    raise CorruptImage(error.where, f"{error.why}; {advice}") from error
        last = self.dataset.where(place)
        raise InputError(f"{tries} images in a row can't be decoded, up to {last}: is the data still there?")


class EpochOrder(Sampler[Key]):
    """Keys ``(epoch, index)`` in the order of an epoch, which is a function of seed and epoch.

    Args:
        length: number of images.
        batch: images per step, over all processes.
        seed: of the run.
        shuffle: for training: a permutation, without an incomplete last batch. False for validation: every image, in
            the order of the dataset.

    Raises:
        InputError: for fewer images than one batch to train on.
    """

    def __init__(self, length: int, batch: int, seed: int, shuffle: bool = True) -> None:
        if shuffle and length < batch:
            raise InputError(f"{length:,} images are fewer than one batch of {batch:,}: make data.batch_size smaller")
        self.length, self.batch, self.seed, self.shuffle = length, batch, seed, shuffle
        self.epoch = self.step = 0

    def at(self, epoch: int, step: int = 0) -> None:
        """Start the next iteration, and all later ones, at a step of an epoch."""
        self.epoch, self.step = epoch, step

    def __len__(self) -> int:
        end = self.length // self.batch * self.batch if self.shuffle else self.length
        return max(0, end - self.step * self.batch)

    def __iter__(self) -> Iterator[Key]:
        epoch, start = self.epoch, self.step * self.batch
        order = self._order()[start : start + len(self)]
        return ((epoch, index) for index in order.tolist())

    def _order(self) -> Tensor:
        if not self.shuffle:
            return torch.arange(self.length)
        generator = torch.Generator().manual_seed(_numbers(self.seed, self.epoch)[0])
        return torch.randperm(self.length, generator=generator)


class Corrupt:
    """The images that couldn't be decoded, by the indices in batches; ``str()`` lists them with the reasons."""

    def __init__(self, dataset: ImageSet) -> None:
        self.dataset = dataset
        self.indices: set[int] = set()

    def add(self, indices: Iterable[int]) -> None:
        """Add indices of corrupt images; each counts once."""
        self.indices.update(map(int, indices))

    def see(self, batch: dict[str, Tensor]) -> None:
        """Add the corrupt images of a batch."""
        self.add(batch["index"][batch["corrupt"] == 1].tolist())

    def __len__(self) -> int:
        return len(self.indices)

    def __str__(self) -> str:
        if not self.indices:
            return "all images could be decoded"
        shown = "; ".join(map(self._why, sorted(self.indices)[:MOST_LISTED]))
        more = f"; and {len(self) - MOST_LISTED:,} more" if len(self) > MOST_LISTED else ""
        plural = "image" if len(self) == 1 else "images"
        return f"{len(self):,} {plural} couldn't be decoded and were replaced by others: {shown}{more}"

    def _why(self, index: int) -> str:
        try:
            self.dataset[index]
        except CorruptImage as error:
            return str(error)
        return f"{self.dataset.where(index)}: it can be decoded now"


def loader(samples: Samples, order: EpochOrder, batch_size: int, workers: int) -> DataLoader[dict[str, Any]]:
    """Return a loader of batches in ``order``, made by ``workers`` processes that persist between epochs."""
    return DataLoader(
        samples,
        batch_size=batch_size,
        sampler=order,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_ignore_interrupts,
        generator=torch.Generator(),  # else each epoch would advance the global one
    )


def _ignore_interrupts(_: int) -> None:
    """Ignore Ctrl-C, which the main process handles; it ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _numbers(*parts: int) -> tuple[int, int, int]:
    """Return three independent seeds of 63, 32 and 63 bits for a tuple of integers."""
    digest = hashlib.blake2b(struct.pack(f"<{len(parts)}q", *parts), digest_size=20).digest()
    python, numpy, torch_seed = struct.unpack("<QIQ", digest)
    return python >> 1, numpy, torch_seed >> 1


def _seed(seed: int, epoch: int, index: int) -> None:
    import numpy as np

    python, numpy, torch_seed = _numbers(seed, epoch, index)
    python_random.seed(python)
    np.random.seed(numpy)
    torch.default_generator.manual_seed(torch_seed)  # torch.manual_seed would seed every device: 100 times slower


@contextmanager
def generators_restored() -> Iterator[None]:
    """Context that restores the global generators of Python, NumPy and PyTorch."""
    import numpy as np

    python, numpy, torch_state = python_random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        python_random.setstate(python)
        np.random.set_state(numpy)
        torch.default_generator.set_state(torch_state)
