"""What a recipe says of images: how they are read, augmented and judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from unbranch.errors import InputError, nearest
from unbranch.train.settings.bounds import Count, Fraction, Interpolation, NotNegative, Positive, Share, Size, Whole
from unbranch.train.typed import Bounds

POLICIES = ("raug15", "rand", "augmix", "original", "originalr", "v0", "v0r", "3a")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """How images are read.

    Args:
        batch_size: images a step, of all processes and accumulated parts together.
        workers: processes that read and augment images, for each process that trains.
        on_corrupt: stop at an image that can't be read, or skip and count it.
        image_size: in training; that of the data, else of the network, unless given.
    """

    batch_size: Annotated[int, Bounds(least=2)] = 128
    workers: Whole = 4
    on_corrupt: Literal["stop", "skip"] = "stop"
    image_size: Size = None


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What happens to images in training, in this order.

    Args:
        crop: a random part, resized (``resize``); of the image with a border (``pad``); or nothing but the size.
        scale, ratio: of a resized part, as shares of the area and width to height.
        padding, padding_mode: of the border.
        interpolation: of whatever resizes.
        flip: mirror half of the images, where the data allow it.
        auto: ``raug15``, or a policy in timm's words, such as ``rand-m9-mstd0.5-inc1``.
        color_jitter: of brightness, contrast, saturation (and hue), beside ``auto``, too.
        lighting: deviation of AlexNet's colour noise along the principal components of ImageNet.
        mean, std: of the normalisation, one number a channel or one for all; those of the data unless given.
        erasing, erasing_mode, erasing_count: probability of erasing rectangles, with what, and how many.
        mixup, cutmix: α of their beta distributions; 0 is off.
        mix_prob, mix_switch, mix_mode: how often, how often cutmix where both are on, and for what one draw is made.
    """

    crop: Literal["resize", "pad", "none"] = "pad"
    scale: tuple[Share, Share] = (0.08, 1.0)
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    padding: Whole = 4
    padding_mode: Literal["constant", "edge", "reflect", "symmetric"] = "constant"
    interpolation: Interpolation = "bilinear"
    flip: bool = True
    auto: str | None = None
    color_jitter: tuple[NotNegative, ...] | None = None
    lighting: NotNegative = 0.0
    mean: tuple[float, ...] | None = None
    std: tuple[Positive, ...] | None = None
    erasing: Fraction = 0.0
    erasing_mode: Literal["const", "rand", "pixel"] = "const"
    erasing_count: Count = 1
    mixup: NotNegative = 0.0
    cutmix: NotNegative = 0.0
    mix_prob: Fraction = 1.0
    mix_switch: Fraction = 0.5
    mix_mode: Literal["batch", "pair", "elem"] = "batch"

    def __post_init__(self) -> None:
        for name, (low, high) in {"scale": self.scale, "ratio": self.ratio}.items():
            if low > high:
                raise InputError(f"augment.{name} goes from the smaller to the larger; got {low:g} to {high:g}")
        if self.auto is not None and (policy := self.auto.partition("-")[0]) not in POLICIES:
            known = f"raug15 or a policy of timm that begins with one of {', '.join(POLICIES[1:])}"
            raise InputError(f"augment.auto is {known}; got {self.auto!r}{nearest(policy, POLICIES)}")
        if self.color_jitter is not None and len(self.color_jitter) not in (3, 4):
            raise InputError(
                "augment.color_jitter has three numbers, for brightness, contrast and saturation, or a fourth for "
                f"hue; got {len(self.color_jitter)}"
            )
        if self.color_jitter is not None and max(self.color_jitter[3:], default=0) > 0.5:
            raise InputError(f"augment.color_jitter turns the hue by 0.5 at most; got {self.color_jitter[3]:g}")

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed, so that their labels are no longer one class each."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """What happens to images that are judged.

    Args:
        size: that of training unless given.
        crop_pct: side of the middle that is kept, as a share of the resized image's shorter side.
        interpolation: of whatever resizes.
        squash: resize to a square whatever the shape, so that nothing is cut off.
        batch_size: that of training unless given.
    """

    size: Size = None
    crop_pct: Share = 1.0
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    squash: bool = False
    batch_size: Count | None = None
