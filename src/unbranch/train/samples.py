"""Samples and their order: what is random is a function of the seed, the epoch and the image alone.

So a run that is resumed goes on as it would have, and two processes see together what one sees.
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
IN_A_ROW = 100  # images that can't be read before skipping is given up
SHOWN = 10  # images in a message


class Samples(Dataset[dict[str, Any]]):
    """Transformed samples of a dataset by ``(epoch, index)``: ``image`` (C, H, W), ``label``, ``index``, ``corrupt``.

    Before the transform, the generators of Python, NumPy and PyTorch are seeded by (seed, epoch, index), unless
    ``random`` is False; after it they are as they were. An image that can't be decoded raises CorruptImage with
    ``on_corrupt="stop"``; with ``"skip"`` the next that can takes its place, and ``corrupt`` is 1.
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
            raise InputError(f"on_corrupt={on_corrupt!r} is none of {', '.join(POLICIES)}")
        self.dataset, self.transform, self.seed = dataset, transform, seed
        self.on_corrupt, self.random = on_corrupt, random

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> list[dict[str, Any]]:
        """A batch's samples: DataLoader asks for them at once, and the generators are put back once."""
        if not self.random:
            return [self._sample(*key) for key in keys]
        with _generators_kept():
            return [self._sample(*key) for key in keys]

    def _sample(self, epoch: int, index: int) -> dict[str, Any]:
        image, label, place = self._readable(index)
        if self.random:
            _seed(self.seed, epoch, index)
        try:
            transformed = self.transform(image)
        except Exception as error:
            size = f"{image.height}×{image.width}"
            told = f"{type(error).__name__}: {error}"
            raise InputError(f"{self.dataset.where(place)}, {size}, can't be transformed: {told}") from error
        return {"image": transformed, "label": label, "index": index, "corrupt": int(place != index)}

    def _readable(self, index: int) -> tuple[Image, int, int]:
        """Image ``index`` or the next that can be decoded, its label, and where it was found."""
        tries = min(IN_A_ROW, len(self.dataset))
        for step in range(tries):
            place = (index + step) % len(self.dataset)
            try:
                return *self.dataset[place], place
            except CorruptImage as error:
                if self.on_corrupt == "stop":
                    advice = "replace or remove it, or go on without such images with data.on_corrupt=skip"
                    raise CorruptImage(error.where, f"{error.why}; {advice}") from error
        last = self.dataset.where(place)
        raise InputError(f"{tries} images in a row can't be decoded, up to {last}: is the data still there?")


class EpochOrder(Sampler[Key]):
    """``(epoch, index)`` in the order of an epoch, which ``(seed, epoch)`` decide.

    Shuffled, for training: whole global batches only. Else, for validation: every image, in its order.
    Raises InputError for fewer images than one batch to train on.
    """

    def __init__(self, length: int, batch: int, seed: int, shuffle: bool = True) -> None:
        if shuffle and length < batch:
            raise InputError(f"{length:,} images are fewer than one batch of {batch:,}: make data.batch_size smaller")
        self.length, self.batch, self.seed, self.shuffle = length, batch, seed, shuffle
        self.epoch = self.step = 0

    def at(self, epoch: int, step: int = 0) -> None:
        """The next iteration, and each after it, starts at this step of this epoch."""
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
    """The images that couldn't be decoded, by the indices that batches report; ``str`` names them, with the reasons."""

    def __init__(self, dataset: ImageSet) -> None:
        self.dataset = dataset
        self.indices: set[int] = set()

    def add(self, indices: Iterable[int]) -> None:
        """``index`` of the samples whose ``corrupt`` is 1; in many epochs an image is still one."""
        self.indices.update(map(int, indices))

    def see(self, batch: dict[str, Tensor]) -> None:
        """Add what one batch reports."""
        self.add(batch["index"][batch["corrupt"] == 1].tolist())

    def __len__(self) -> int:
        return len(self.indices)

    def __str__(self) -> str:
        if not self.indices:
            return "all images could be decoded"
        shown = "; ".join(map(self._why, sorted(self.indices)[:SHOWN]))
        more = f"; and {len(self) - SHOWN:,} more" if len(self) > SHOWN else ""
        plural = "image" if len(self) == 1 else "images"
        return f"{len(self):,} {plural} couldn't be decoded and had others in their place: {shown}{more}"

    def _why(self, index: int) -> str:
        try:
            self.dataset[index]
        except CorruptImage as error:
            return str(error)
        return f"{self.dataset.where(index)}: it can be decoded now"


def loader(samples: Samples, order: EpochOrder, batch_size: int, workers: int) -> DataLoader[dict[str, Any]]:
    """Batches of ``order``, made in ``workers`` processes that live on from epoch to epoch."""
    return DataLoader(
        samples,
        batch_size=batch_size,
        sampler=order,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_interrupts,
        generator=torch.Generator(),  # or the process's own would move on with every epoch
    )


def _leave_interrupts(_: int) -> None:
    """Ctrl-C is the main process's to handle; it ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _numbers(*parts: int) -> tuple[int, int, int]:
    """Three independent seeds from whole numbers: of 63, 32 and 63 bits."""
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
def _generators_kept() -> Iterator[None]:
    """The three generators are afterwards as they were."""
    import numpy as np

    python, numpy, torch_state = python_random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        python_random.setstate(python)
        np.random.set_state(numpy)
        torch.default_generator.set_state(torch_state)
