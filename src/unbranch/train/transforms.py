"""From an image to what the network sees: augmented in training, cut to size where it is judged.

torchvision's and timm's transforms, put in order by the recipe. They draw from ``random``, numpy and torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

import torch
from torch import Tensor

from unbranch.errors import InputError
from unbranch.extras import library
from unbranch.models.registry import MODELS, resolve
from unbranch.train.policies import make_policy
from unbranch.train.recipe import Recipe
from unbranch.train.settings.bounds import Size

if TYPE_CHECKING:
    from PIL import Image

Transform: TypeAlias = "Callable[[Image.Image], Tensor]"
Sides: TypeAlias = tuple[int, int]
USUAL = (224, 224)

# Covariance of ImageNet's colours: its principal components, in columns, and their deviations. Krizhevsky,
# Sutskever, Hinton: "ImageNet Classification with Deep Convolutional Neural Networks", 2012, section 4.1.
COMPONENTS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
DEVIATIONS = (0.2175, 0.0188, 0.0045)


class Pictures(Protocol):
    """What transforms have to know of data."""

    @property
    def channels(self) -> int: ...
    @property
    def size(self) -> Sides | None: ...
    @property
    def mean(self) -> Sequence[float]: ...
    @property
    def std(self) -> Sequence[float]: ...
    @property
    def mirrored(self) -> bool: ...


def train_transform(recipe: Recipe, data: Pictures) -> Transform:
    """From an image to ``(C, H, W)``, augmented at random.

    Raises:
        InputError: for what the recipe asks for and images of this kind can't have.
    """
    augment, made = recipe.augment, library("torchvision.transforms", "train")
    mean, std = _statistics(recipe, data)
    steps: list[Any] = [*_cropped(recipe, data)]
    if augment.flip and data.mirrored:
        steps.append(made.RandomHorizontalFlip())
    if augment.auto is not None:
        side = min(image_size(recipe, data))
        steps.append(make_policy(augment.auto, side, mean, augment.interpolation))
    if augment.color_jitter is not None:
        steps.append(made.ColorJitter(*augment.color_jitter))
    if augment.lighting:
        if data.channels != 3:
            raise InputError(f"augment.lighting is for images in colour; these have {data.channels} channel: set it 0")
        steps += [made.ToTensor(), Lighting(augment.lighting), made.Normalize(mean, std)]
    else:
        steps.append(Normalised(mean, std))
    if augment.erasing:
        erase = library("timm.data.random_erasing", "train").RandomErasing
        steps.append(erase(augment.erasing, mode=augment.erasing_mode, max_count=augment.erasing_count, device="cpu"))
    return cast(Transform, made.Compose(steps))


def eval_transform(recipe: Recipe, data: Pictures) -> Transform:
    """From an image to ``(C, H, W)``: the middle, or all of it, at the size of evaluation."""
    made, judged = library("torchvision.transforms", "train"), recipe.evaluate
    size = _sides(judged.size) or image_size(recipe, data)
    around = cast(Sides, tuple(math.floor(side / judged.crop_pct) for side in size))
    steps = []
    if data.size != size or around != size:
        if judged.squash or around[0] == around[1]:  # a number is the shorter side: the shape is kept
            resize = made.Resize(around if judged.squash else around[0], _mode(judged.interpolation))
        else:
            resize = library("timm.data.transforms", "train").ResizeKeepRatio(
                around, interpolation=judged.interpolation
            )
        steps = [resize, made.CenterCrop(size)]
    return cast(Transform, made.Compose([*steps, Normalised(*_statistics(recipe, data))]))


def image_size(recipe: Recipe, data: Pictures) -> Sides:
    """Height and width in training: the recipe's, else the data's, else the network's, else 224."""
    entry = MODELS.get(resolve(recipe.model.name) or "")
    own = entry.input_size[1:] if entry else None
    return _sides(recipe.data.image_size) or data.size or own or USUAL


class Normalised:
    """``(pixel / 255 − mean) / std`` of an image with 8 bits a channel, ``(C, H, W)``.

    torchvision's ToTensor and Normalize in one, which take four times as long on small images.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std, self._array = tuple(mean), tuple(std), library("numpy", "train").array
        deviation = torch.tensor(self.std).view(-1, 1, 1)
        self.scale, self.shift = 1 / (255 * deviation), -torch.tensor(self.mean).view(-1, 1, 1) / deviation

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(self._array(image))
        pixels = pixels.unsqueeze(0) if pixels.dim() == 2 else pixels.permute(2, 0, 1).contiguous()  # (C, H, W)
        return pixels * self.scale + self.shift

    def __repr__(self) -> str:
        return f"Normalised(mean={self.mean}, std={self.std})"


class Lighting:
    """AlexNet's colour noise: ``x + Σ αᵢ·λᵢ·vᵢ`` with α ~ N(0, deviation²), ``(3, H, W)`` in [0, 1] to the same.

    v are the principal components of ImageNet's colours. Section 4.1 of the paper above.
    """

    def __init__(self, deviation: float) -> None:
        self.deviation = deviation
        self.directions = torch.tensor(COMPONENTS) * torch.tensor(DEVIATIONS)  # (3, component)

    def __call__(self, x: Tensor) -> Tensor:
        return x + (self.directions @ torch.randn(3).mul(self.deviation)).view(3, 1, 1)

    def __repr__(self) -> str:
        return f"Lighting({self.deviation:g})"


def mixing(recipe: Recipe, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Mixup and cutmix, from images ``(B, C, H, W)`` and labels ``(B,)`` to mixed ones and ``(B, classes)``; or None.

    Labels are smoothed as ``loss.smoothing`` says. The images are changed in place. timm's, which draws from numpy.
    """
    augment = recipe.augment
    if not augment.mixes:
        return None
    mix = library("timm.data", "train").Mixup(
        mixup_alpha=augment.mixup,
        cutmix_alpha=augment.cutmix,
        prob=augment.mix_prob,
        switch_prob=augment.mix_switch,
        mode=augment.mix_mode,
        label_smoothing=recipe.loss.smoothing,
        num_classes=classes,
    )

    def mixed(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if len(images) % 2:
            raise InputError(f"mixup and cutmix mix pairs of images; got {len(images)} on this process")
        return cast(tuple[Tensor, Tensor], mix(images, labels))

    return mixed


def _cropped(recipe: Recipe, data: Pictures) -> list[Any]:
    """What brings images to the size of training."""
    augment, made, size = recipe.augment, library("torchvision.transforms", "train"), image_size(recipe, data)
    if augment.crop == "resize":
        crop = library("timm.data.transforms", "train").RandomResizedCropAndInterpolation
        return [crop(size, scale=augment.scale, ratio=augment.ratio, interpolation=augment.interpolation)]
    interpolation = "bilinear" if augment.interpolation == "random" else augment.interpolation
    steps = [] if data.size == size else [made.Resize(size, _mode(interpolation))]
    if augment.crop == "pad" and augment.padding:
        steps.append(made.RandomCrop(size, augment.padding, padding_mode=augment.padding_mode))
    return steps


def _statistics(recipe: Recipe, data: Pictures) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel."""
    chosen = {"mean": recipe.augment.mean or data.mean, "std": recipe.augment.std or data.std}
    for name, values in chosen.items():
        if len(values) not in (1, data.channels):
            raise InputError(
                f"augment.{name} has one number for each of {data.channels} channels, or one for all; got {values}"
            )
    mean, std = (list(v) * (data.channels if len(v) == 1 else 1) for v in chosen.values())
    return mean, std


def _sides(size: Size) -> Sides | None:
    return (size, size) if isinstance(size, int) else size


def _mode(name: str) -> Any:
    return library("timm.data.transforms", "train").str_to_interp_mode(name)
