"""scikit-learn's 1797 handwritten digits of 8 × 8 pixels; a fixed fifth of them is for validation."""

from __future__ import annotations

from pathlib import Path

import torch

from unbranch.errors import InputError
from unbranch.train.data.pixels import Pixels

SPLIT_SEED = 0
TEST_FRACTION = 0.2
STEP = 15  # of brightness: 0 … 16 becomes 0 … 240


def digits(folder: Path | None = None) -> Pixels:
    """Return the digits. Raise InputError if scikit-learn isn't installed, or a folder is given."""
    if folder is not None:
        raise InputError(f"the digits come with scikit-learn, not from {folder}: write `digits` alone")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError("the digits come with scikit-learn: pip install 'unbranch[train]'") from error
    found = load_digits()
    images = (STEP * torch.from_numpy(found.images)).to(torch.uint8)  # (N, 8, 8)
    labels = torch.from_numpy(found.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    val, train = order.tensor_split([int(TEST_FRACTION * len(order))])
    names = tuple(str(digit) for digit in range(10))
    return Pixels(images[train], labels[train], images[val], labels[val], names, mirrored=False)
