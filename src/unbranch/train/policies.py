"""Automatic augmentation by name: ``raug15``, or a policy of timm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

from unbranch.errors import InputError
from unbranch.extras import library

if TYPE_CHECKING:
    from PIL import Image

Policy: TypeAlias = "Callable[[Image.Image], Image.Image]"


def make_policy(name: str, side: int, mean: Sequence[float], interpolation: str) -> Policy:
    """Return the policy of a name.

    Args:
        name: ``raug15``, or a policy in timm's syntax.
        side: of the images in pixels, which scales translations.
        mean: one number for each channel in [0, 1], which fills the area outside the image.
        interpolation: of every geometric operation.

    Raises:
        InputError: if timm has no such policy.
    """
    from unbranch.train import raug15  # Pillow is there by now

    if name == "raug15":
        return raug15.RandAugment15()
    timm = library("timm.data.auto_augment", "train")
    makers = {"rand": timm.rand_augment_transform, "augmix": timm.augment_and_mix_transform}
    options: dict[str, Any] = {
        "translate_const": int(side * 0.45),
        "img_mean": tuple(min(255, round(255 * value)) for value in mean),
    }
    if interpolation != "random":
        options["interpolation"] = library("timm.data.transforms", "train").str_to_pil_interp(interpolation)
    try:
        policy = makers.get(name.partition("-")[0], timm.auto_augment_transform)(name, options)
    except (AssertionError, ValueError, KeyError) as error:
        raise InputError(f"augment.auto={name} isn't a policy of timm: {error}") from error
    return _repaired(policy, timm.posterize, raug15.posterize)


def _repaired(policy: Any, broken: Callable[..., Any], posterize: Callable[..., Any]) -> Policy:
    """Return the policy with a "Posterize" that may keep 0 bits, for which timm's fails with Pillow 13 and later."""
    operations = policy.ops if hasattr(policy, "ops") else chain.from_iterable(policy.policy)
    for operation in operations:
        if operation.aug_fn is broken:
            operation.aug_fn = posterize
    repaired: Policy = policy
    return repaired
