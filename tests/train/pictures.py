"""Small images and folders of them, for tests."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

RED, BLUE = (220, 30, 20), (10, 40, 200)


def halves(height: int = 12, width: int = 16) -> Image.Image:
    """Red on the left, blue on the right: turned or mirrored, it looks different."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:, : width // 2], pixels[:, width // 2 :] = RED, BLUE
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def grey(number: int, height: int = 4, width: int = 5) -> Image.Image:
    return Image.fromarray(np.full((height, width), number % 256, np.uint8))


def write_folder(root: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 5) -> Path:
    """``count`` small colour images of each class."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("RGB", (8, 6), (label * 50, number, 9)).save(root / name / f"{number}.png")
    return root
