"""``raug15``, the random augmentation of RepVGGplus and RepMLPNet.

Cubuk, Zoph, Shlens, Le: "RandAugment: Practical automated data augmentation with a reduced search space", 2019,
https://arxiv.org/abs/1909.13719, as the authors of RepVGG use it: two of sixteen operations, each at an integer
magnitude m from 0 to 14. Magnitudes are scaled to 10, so an operation may leave its nominal range; at m up to 2
"Posterize" keeps 0 bits, and the image is black.

The operations are timm's, except for "Posterize", which Pillow 13 and later reject with 0 bits, and "Cutout": a square
with a side of 4·m pixels, at least 2, centred at any pixel.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from PIL import Image, ImageDraw, ImageOps

from unbranch.extras import library

MAGNITUDES = 15
SCALE = 10
FILL, CUT_FILL = 128, (125, 122, 113)  # of the area outside the image, and of Cutout, for each channel


def _signed(most: float) -> Callable[[int], float]:
    return lambda m: random.choice((-1, 1)) * most * m / SCALE


def _enhance(m: int) -> float:
    return 1.8 * m / SCALE + 0.1


OPERATIONS: dict[str, Callable[[int], float] | None] = {
    "AutoContrast": None,
    "Equalize": None,
    "Invert": None,
    "Rotate": _signed(30),  # degrees
    "Posterize": lambda m: 4 * m // SCALE,  # bits kept
    "Solarize": lambda m: 256 * m // SCALE,  # inverted from here
    "SolarizeAdd": lambda m: 110 * m // SCALE,  # to the dark half
    "Color": _enhance,
    "Contrast": _enhance,
    "Brightness": _enhance,
    "Sharpness": _enhance,
    "ShearX": _signed(0.3),
    "ShearY": _signed(0.3),
    "TranslateXRel": _signed(0.45),  # of the width
    "TranslateYRel": _signed(0.45),
    "Cutout": lambda m: max(2, 40 * m // SCALE),  # pixels
}
"""The parameter of each operation, by magnitude."""


class RandAugment15:
    """Apply two random operations to an image of mode ``L`` or ``RGB``; size and mode don't change."""

    def __init__(self) -> None:
        timm = library("timm.data.auto_augment", "train").NAME_TO_OP
        self._known = {**timm, "Posterize": posterize, "Cutout": cut_out}

    def __call__(self, image: Image.Image) -> Image.Image:
        for _ in range(2):
            image = self.apply(image, random.choice(list(OPERATIONS)), random.randrange(MAGNITUDES))
        return image

    def apply(self, image: Image.Image, name: str, magnitude: int) -> Image.Image:
        """Apply one operation at a magnitude."""
        of_magnitude = OPERATIONS[name]
        arguments = [] if of_magnitude is None else [of_magnitude(magnitude)]
        resample = random.choice((Image.Resampling.BILINEAR, Image.Resampling.BICUBIC))
        fill: Any = (FILL,) * len(image.getbands())
        result: Image.Image = self._known[name](image, *arguments, resample=resample, fillcolor=fill)
        return result

    def __repr__(self) -> str:
        return "RandAugment15()"


def posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep the first bits of each value; 0 bits give a black image."""
    return ImageOps.posterize(image, min(bits, 8)) if bits > 0 else Image.new(image.mode, image.size)


def cut_out(image: Image.Image, side: int, **_: Any) -> Image.Image:
    """Fill a square centred at a random pixel; its side is ``side`` pixels, minus one if that is odd."""
    x, y, half = random.randrange(image.width), random.randrange(image.height), side // 2
    image = image.copy()
    colour: Any = CUT_FILL if image.mode == "RGB" else FILL
    ImageDraw.Draw(image).rectangle((x - half, y - half, x + half - 1, y + half - 1), fill=colour)
    return image
