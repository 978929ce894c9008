"""What recipes have to know of data, without any data."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image


@dataclass(frozen=True)
class StandIn:
    """Data by their properties alone; ImageNet's unless given."""

    classes: tuple[str, ...] = tuple(map(str, range(1000)))
    channels: int = 3
    size: tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    mirrored: bool = True


IMAGENET = StandIn()
CIFAR = StandIn(tuple(map(str, range(10))), 3, (32, 32), (0.491, 0.482, 0.447), (0.247, 0.243, 0.262))
DIGITS = StandIn(tuple(map(str, range(10))), 1, (8, 8), (0.305,), (0.376,), mirrored=False)


def noise(width: int, height: int, channels: int = 3) -> Image.Image:
    """An image of random pixels, the same each time."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels if channels == 3 else pixels[..., 0])


def seed(number: int) -> None:
    """Seed all that transforms draw from."""
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)
