"""Images held out of training where nobody has said which."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from unbranch.errors import InputError
from unbranch.train.data.dataset import ImageSet, Part

HELD_OUT = 5  # one image of so many
NOTE = "every fifth image of a class, by the hash of its name, is held out of training for validation"


def split(whole: ImageSet, names: Iterable[str]) -> tuple[ImageSet, ImageSet]:
    """Training and validation images; the same every time. Raises InputError if no class can spare one."""
    train, val = held_out(whole.labels, names)
    if not len(val):
        raise InputError("no class has two images, of which one could be held out for validation")
    return Part(whole, train), Part(whole, val)


def held_out(labels: Tensor, names: Iterable[str]) -> tuple[Tensor, Tensor]:
    """Indices for training and validation: a fifth of each class, but at least one and never all, goes to the latter.

    The choice follows from the names alone, so that it stays mostly as it was when images are added.
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
