"""Training augmentation and evaluation preprocessing: from an image to a tensor.

The transforms are torchvision's and timm's, composed as the recipe says. They draw from the global generators of
Python, NumPy and PyTorch.
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
DEFAULT_SIZE = (224, 224)

# Covariance of ImageNet's colours: principal components in columns, and their standard deviations. Krizhevsky,
# Sutskever, Hinton: "ImageNet Classification with Deep Convolutional Neural Networks", 2012, section 4.1.
COMPONENTS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
DEVIATIONS = (0.2175, 0.0188, 0.0045)


class ImageProperties(Protocol):
    """What transforms depend on in the data."""

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


def train_transform(recipe: Recipe, data: ImageProperties) -> Transform:
    """Return the training augmentation, from an image to ``(C, H, W)``.

    Raises:
        InputError: for settings that don't fit the images.
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
            raise InputError(
                f"`augment.lighting` needs images in colour, and these have {data.channels} channel: set it 0"
            )
        steps += [made.ToTensor(), Lighting(augment.lighting), made.Normalize(mean, std)]
    else:
        steps.append(Normalised(mean, std))
    if augment.erasing:
        erase = library("timm.data.random_erasing", "train").RandomErasing
        steps.append(erase(augment.erasing, mode=augment.erasing_mode, max_count=augment.erasing_count, device="cpu"))
    return cast(Transform, made.Compose(steps))


def eval_transform(recipe: Recipe, data: ImageProperties) -> Transform:
    """Return the evaluation preprocessing, from an image to ``(C, H, W)``: resize, central crop, normalise."""
    made, settings = library("torchvision.transforms", "train"), recipe.evaluate
    size = _sides(settings.size) or image_size(recipe, data)
    around = cast(Sides, tuple(math.floor(side / settings.crop_pct) for side in size))
    steps = []
    if data.size != size or around != size:
        if settings.squash or around[0] == around[1]:  # a number is the shorter side: the aspect ratio is kept
            resize = made.Resize(around if settings.squash else around[0], _mode(settings.interpolation))
        else:
            resize = library("timm.data.transforms", "train").ResizeKeepRatio(
                around, interpolation=settings.interpolation
            )
        steps = [resize, made.CenterCrop(size)]
    return cast(Transform, made.Compose([*steps, Normalised(*_statistics(recipe, data))]))


def image_size(recipe: Recipe, data: ImageProperties) -> Sides:
    """Return height and width in training: those of the recipe, else the data, else the network, else 224."""
    entry = MODELS.get(resolve(recipe.model.name) or "")
    own = entry.input_size[1:] if entry else None
    return _sides(recipe.data.image_size) or data.size or own or DEFAULT_SIZE


class Normalised:
    """``(pixel / 255 − mean) / std`` of an image with 8 bits per channel, ``(C, H, W)``.

    It computes torchvision's ToTensor and Normalize in one step, in a quarter of the time on small images.
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
    """Return mixup and cutmix, None if the recipe has neither.

    The function takes images ``(B, C, H, W)``, which it changes in place, and labels ``(B,)``. It returns mixed images
    and mixed labels ``(B, classes)``, smoothed by ``loss.smoothing``. It is timm's, which draws from NumPy.
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
            raise InputError(f"mixup and cutmix need an even number of images on each process, got {len(images)}")
        return cast(tuple[Tensor, Tensor], mix(images, labels))

    return mixed


def _cropped(recipe: Recipe, data: ImageProperties) -> list[Any]:
    """Return the transforms that crop or resize images to the training size."""
    augment, made, size = recipe.augment, library("torchvision.transforms", "train"), image_size(recipe, data)
    if augment.crop == "resize":
        crop = library("timm.data.transforms", "train").RandomResizedCropAndInterpolation
        return [crop(size, scale=augment.scale, ratio=augment.ratio, interpolation=augment.interpolation)]
    interpolation = "bilinear" if augment.interpolation == "random" else augment.interpolation
    steps = [] if data.size == size else [made.Resize(size, _mode(interpolation))]
    if augment.crop == "pad" and augment.padding:
        steps.append(made.RandomCrop(size, augment.padding, padding_mode=augment.padding_mode))
    return steps


def _statistics(recipe: Recipe, data: ImageProperties) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel."""
    chosen = {"mean": recipe.augment.mean or data.mean, "std": recipe.augment.std or data.std}
    for name, values in chosen.items():
        if len(values) not in (1, data.channels):
            raise InputError(
                f"`augment.{name}` must have one number for each of {data.channels} channels, or one for all; "
                f"got {values}"
            )
    mean, std = (list(v) * (data.channels if len(v) == 1 else 1) for v in chosen.values())
    return mean, std


def _sides(size: Size) -> Sides | None:
    return (size, size) if isinstance(size, int) else size


def _mode(name: str) -> Any:
    return library("timm.data.transforms", "train").str_to_interp_mode(name)
