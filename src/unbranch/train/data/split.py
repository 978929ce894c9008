"""Images held out of training for validation, in data sets without a validation split."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from unbranch.errors import InputError
from unbranch.train.data.dataset import ImageSet, ImageSubset

HELD_OUT = 5  # one of five images
NOTE = "every fifth image of a class, by the hash of its name, is held out of training for validation"


def split(whole: ImageSet, names: Iterable[str]) -> tuple[ImageSet, ImageSet]:
    """Split a set into training and validation images, the same every time.

    Args:
        names: of the images, which decide the split.

    Raises:
        InputError: if every class has only one image.
    """
    train, val = held_out(whole.labels, names)
    if not len(val):
        raise InputError("every class has only one image: there is none to hold out for validation")
    return ImageSubset(whole, train), ImageSubset(whole, val)


def held_out(labels: Tensor, names: Iterable[str]) -> tuple[Tensor, Tensor]:
    """Return indices for training and for validation.

    Validation gets a fifth of each class, at least one image and never all. The choice depends on the names alone, so
    adding images changes it little.
    """
    ranks = [hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest() for name in names]
    members = defaultdict(list)
    for index, label in enumerate(labels.tolist()):
        members[label].append(index)
    held = torch.zeros(len(labels), dtype=torch.bool)
    for indices in members.values():
        indices.sort(key=ranks.__getitem__)
        count = min(max(1, len(indices) // HELD_OUT), len(indices) - 1)
        held[indices[:count]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()
