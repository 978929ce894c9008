"""Data sets that fit in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unbranch.errors import InputError
from unbranch.train.data.dataset import Data, ImageSet, Statistics, fingerprint

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Pixels:
    """A small data set: images ``(N, H, W)`` or ``(N, H, W, 3)`` uint8, labels ``(N,)`` int64, names of classes."""

    train: Tensor
    train_labels: Tensor
    val: Tensor
    val_labels: Tensor
    classes: tuple[str, ...]
    mirrored: bool = True

    def __post_init__(self) -> None:
        for images, labels in ((self.train, self.train_labels), (self.val, self.val_labels)):
            if not len(images) or len(images) != len(labels):
                raise InputError(f"{len(images):,} images with {len(labels):,} labels")
            if labels.min() < 0 or labels.max() >= len(self.classes):
                raise InputError(f"a label isn't one of 0 … {len(self.classes) - 1}")

    def data(self, name: str) -> Data:
        """Return the data set as PIL images, with the statistics of the training images."""
        mean, std = statistics(self.train)
        return Data(
            name=name,
            train=InMemory(self.train, self.train_labels, f"{name}, training image"),
            val=InMemory(self.val, self.val_labels, f"{name}, validation image"),
            classes=self.classes,
            channels=len(mean),
            size=(self.train.shape[1], self.train.shape[2]),
            mean=mean,
            std=std,
            mirrored=self.mirrored,
            fingerprint=fingerprint(self.train, self.train_labels, self.val, self.val_labels, self.classes),
        )


class InMemory(ImageSet):
    """Images ``(N, H, W)`` or ``(N, H, W, 3)`` uint8 in one tensor, which all workers share."""

    def __init__(self, images: Tensor, labels: Tensor, name: str) -> None:
        self.images, self.labels, self.name = images, labels, name

    def image(self, index: int) -> Image:
        import PIL.Image

        pixels = self.images[index].numpy()
        mode = "L" if pixels.ndim == 2 else "RGB"
        size = (pixels.shape[1], pixels.shape[0])
        return PIL.Image.frombuffer(mode, size, pixels, "raw", mode, 0, 1)  # three times faster than fromarray

    def where(self, index: int) -> str:
        return f"{self.name} {index}"


def statistics(images: Tensor) -> Statistics:
    """Return mean and standard deviation of each channel, with pixels in [0, 1], from a histogram."""
    channels = images.unsqueeze(3) if images.ndim == 3 else images  # (N, H, W, C)
    values = torch.arange(256, dtype=torch.float64) / 255
    moments = []
    for channel in channels.unbind(3):
        weights = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean = (weights * values).sum()
        deviation = (weights * (values - mean) ** 2).sum().sqrt().item()
        moments.append((mean.item(), deviation or 1.0))  # images of one colour
    means, deviations = zip(*moments, strict=True)
    return means, deviations
