"""Settings of images: how they are read, augmented and preprocessed for evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unbranch.errors import InputError, nearest
from unbranch.train.settings.bounds import (
    AtLeastTwo,
    Count,
    Flag,
    Fraction,
    Interpolation,
    Many,
    NotNegative,
    Number,
    Pair,
    Positive,
    Share,
    Size,
    Text,
    Whole,
)

POLICIES = ("raug15", "rand", "augmix", "original", "originalr", "v0", "v0r", "3a")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """How images are read.

    Args:
        batch_size: images per step, over all processes and accumulated parts.
        workers: processes that read and augment images, for each training process.
        on_corrupt: ``stop`` at an image that can't be decoded, or ``skip`` and count it.
        image_size: in training, in pixels; that of the data, else of the network, unless given.
    """

    batch_size: AtLeastTwo = 128
    workers: Whole = 4
    on_corrupt: Literal["stop", "skip"] = "stop"
    image_size: Size = None


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Training augmentation, in this order.

    Args:
        crop: ``resize`` a random part, cut a random part of the padded image (``pad``), or ``none``.
        scale, ratio: area of the resized part as a fraction of the image, and its width divided by its height.
        padding, padding_mode: width of the border in pixels, and what fills it.
        interpolation: of every resize.
        flip: mirror half of the images, if the data allow it.
        auto: ``raug15``, or a policy in timm's syntax, such as ``rand-m9-mstd0.5-inc1``.
        color_jitter: strength for brightness, contrast, saturation (and hue), in addition to ``auto``.
        lighting: standard deviation of AlexNet's colour noise along the principal components of ImageNet.
        mean, std: of the normalisation, one number for each channel or one for all; those of the data unless given.
        erasing, erasing_mode, erasing_count: probability of erasing rectangles, their fill, and how many.
        mixup, cutmix: α of their beta distributions; 0 turns them off.
        mix_prob, mix_switch, mix_mode: probability of mixing, probability of cutmix if both are on, and whether a
            draw is for the batch, a pair or an image.
    """

    crop: Literal["resize", "pad", "none"] = "pad"
    scale: Pair[Share] = (0.08, 1.0)
    ratio: Pair[Positive] = (3 / 4, 4 / 3)
    padding: Whole = 4
    padding_mode: Literal["constant", "edge", "reflect", "symmetric"] = "constant"
    interpolation: Interpolation = "bilinear"
    flip: Flag = True
    auto: Text | None = None
    color_jitter: Many[NotNegative] | None = None
    lighting: NotNegative = 0.0
    mean: Many[Number] | None = None
    std: Many[Positive] | None = None
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
                raise InputError(
                    f"`augment.{name}` must go from the smaller to the larger number, got {low:g}, {high:g}"
                )
        if self.auto is not None and (policy := self.auto.partition("-")[0]) not in POLICIES:
            known = f"raug15 or a policy of timm, whose name starts with one of {', '.join(POLICIES[1:])}"
            raise InputError(f"`augment.auto` must be {known}; got {self.auto!r}{nearest(policy, POLICIES)}")
        if self.color_jitter is not None:
            self._check_color_jitter(self.color_jitter)

    @staticmethod
    def _check_color_jitter(strengths: tuple[float, ...]) -> None:
        if len(strengths) not in (3, 4):
            raise InputError(
                "`augment.color_jitter` must have three numbers, for brightness, contrast and saturation, or a fourth "
                f"for hue; got {len(strengths)}"
            )
        if max(strengths[3:], default=0) > 0.5:
            raise InputError(f"the hue in `augment.color_jitter` must be at most 0.5, got {strengths[3]:g}")

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed, so that a label is no longer one class."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Evaluation preprocessing.

    Args:
        size: of the images, in pixels; that of training unless given.
        crop_pct: side of the central crop, as a fraction of the resized image's shorter side.
        interpolation: of every resize.
        squash: resize to a square without keeping the aspect ratio, so that nothing is cut off.
        batch_size: that of training unless given.
    """

    size: Size = None
    crop_pct: Share = 1.0
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    squash: Flag = False
    batch_size: Count | None = None
