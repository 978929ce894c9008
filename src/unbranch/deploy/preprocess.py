"""Evaluation preprocessing of image files, and class numbers of folders."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from torch import Tensor, nn

from unbranch.extras import library
from unbranch.models import input_size
from unbranch.train.data.dataset import COLOUR, GREY
from unbranch.train.transforms import Normalised

ImageStatistics: TypeAlias = tuple[int, tuple[int, int] | None, Sequence[float], Sequence[float]]
CROP = 0.875  # the central part of an image that is used, where the network doesn't say


def eval_preprocessing(model: nn.Module, images: ImageStatistics | None = None) -> Callable[[Any], Tensor]:
    """Return the preprocessing that a network was evaluated with: resize, central crop, normalise.

    timm's networks say what it is; others get a resize to 1/0.875 of their input size, bilinear, and the statistics
    of ``images``, ImageNet's by default.

    Args:
        model: the network.
        images: channels, size if all have the same, mean and standard deviation of a data set.
    """
    made = library("torchvision.transforms", "vision")
    _, rows, columns = input_size(model)
    known = getattr(model, "pretrained_cfg", None) or {}
    mean, std = statistics_for(model, images)
    crop = known.get("crop_pct") or CROP
    if images is not None and images[1] == (rows, columns):
        return Normalised(mean, std)
    around = math.floor(rows / crop), math.floor(columns / crop)
    mode = made.InterpolationMode(known.get("interpolation") or "bilinear")
    resize = made.Resize(around[0] if rows == columns else around, mode)
    steps: Callable[[Any], Tensor] = made.Compose([resize, made.CenterCrop((rows, columns)), Normalised(mean, std)])
    return steps


def statistics_for(model: nn.Module, images: ImageStatistics | None = None) -> tuple[Sequence[float], Sequence[float]]:
    """Return mean and standard deviation with which images are normalised: the data's, the network's, or ImageNet's."""
    channels = input_size(model)[0]
    usual = GREY if channels == 1 else COLOUR
    given = usual if images is None else (images[2], images[3])
    known = getattr(model, "pretrained_cfg", None) or {}
    if given == usual and len(known.get("mean", ())) == channels:
        return known["mean"], known["std"]
    return given


def class_numbers(folders: Sequence[str], model: nn.Module) -> tuple[dict[str, int] | None, str]:
    """Return the class that each folder of images stands for; None and the reason if that isn't clear.

    Folders are in the order of their names if there are as many as classes. Numbers are classes, and so are
    ImageNet's identifiers such as ``n01440764``.
    """
    names = sorted(set(folders))
    if names == [""]:
        return None, ""
    classes = _outputs(model)
    if classes == len(names) and "" not in names:
        return {name: number for number, name in enumerate(names)}, ""
    if all(name.isdigit() for name in names) and classes is not None and max(map(int, names)) < classes:
        return {name: int(name) for name in names}, ""
    if classes == 1000 and all(name[:1] == "n" and name[1:].isdigit() for name in names):
        order = library("timm.data", "vision").ImageNetInfo()
        known = {order.index_to_label_name(i): i for i in range(1000)}
        if set(names) <= known.keys():
            return {name: known[name] for name in names}, ""
    return None, (
        f"accuracy isn't computed: there are {len(names)} folders of images, and the network has "
        f"{'an unknown number of' if classes is None else classes} classes"
    )


def _outputs(model: nn.Module) -> int | None:
    """Return the outputs of the last linear layer, or 1×1 convolution."""
    last = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1:]
    return next((int(m.out_features if isinstance(m, nn.Linear) else m.out_channels) for m in last), None)
