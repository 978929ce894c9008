"""Which numbers of a network must have a common scale: variables in a union-find structure.

An array of labels has the number of a variable for each number of a tensor. Two labels are special: ``FIXED`` belongs
to numbers whose scale must stay 1, and ``ANY`` to zeros, which every scale fits.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

FIXED = 0
ANY = -1


class Labels:
    """Variables, of which some are joined and some are fixed, each with the first reason."""

    def __init__(self) -> None:
        self._parent = [FIXED]
        self._reasons: dict[int, str] = {FIXED: ""}

    def __len__(self) -> int:
        return len(self._parent)

    def new(self, count: int) -> Tensor:
        """Return ``count`` new variables, ``(count,)``."""
        first = len(self._parent)
        self._parent += range(first, first + count)
        return torch.arange(first, first + count, dtype=torch.float64)

    def root(self, label: int) -> int:
        """Return the variable that stands for all that are joined with a variable."""
        parent = self._parent
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label

    def reason(self, label: int) -> str | None:
        """Return why a variable is fixed, None if it is free."""
        return self._reasons.get(self.root(label))

    def roots(self) -> Tensor:
        """Return for each variable the one that stands for it, ``(len(self),)``."""
        return torch.tensor([self.root(label) for label in range(len(self))])

    def fix(self, labels: Tensor, reason: str) -> None:
        """Fix all variables of an array."""
        for label in distinct(labels):
            if label > FIXED:
                self._reasons.setdefault(self.root(label), reason)

    def join(self, first: Tensor, second: Tensor, reason: str) -> Tensor:
        """Join two arrays elementwise, after broadcasting; returns the labels of, for example, their sum.

        Args:
            first, second: arrays of labels.
            reason: why a variable is fixed by a number whose scale is 1.
        """
        shape = (first + second).shape
        first, second = first.expand(shape), second.expand(shape)
        width = len(self._parent) + 1
        for code in distinct((first - ANY) * width + (second - ANY)):
            self._join(code // width + ANY, code % width + ANY, reason)
        return torch.where(first == ANY, second, first)

    def _join(self, first: int, second: int, reason: str) -> None:
        if first == second or ANY in (first, second):
            return
        if FIXED in (first, second):
            self._reasons.setdefault(self.root(max(first, second)), reason)
            return
        keep, gone = sorted((self.root(first), self.root(second)))
        if keep != gone:
            self._parent[gone] = keep
            if gone in self._reasons:
                self._reasons.setdefault(keep, self._reasons.pop(gone))

    def reduced(self, labels: Tensor, axes: Iterable[int], reason: str) -> Tensor:
        """Join all labels along axes; the result has size 1 along these."""
        for axis in axes:
            if labels.shape[axis] > 1:
                largest = labels.amax(axis, keepdim=True)  # ANY only where all are
                self.join(largest, labels, reason)
                labels = largest
        return labels

    def is_fixed(self, labels: Tensor) -> bool:
        """Whether no variable of an array is free."""
        return all(label <= FIXED or self.root(label) in self._reasons for label in distinct(labels))


def distinct(values: Tensor) -> list[int]:
    """Return the different values of an array of integers."""
    flat = values.reshape(-1)
    if flat.numel() > 1:
        changes = torch.ones(flat.numel(), dtype=torch.bool)
        torch.ne(flat[1:], flat[:-1], out=changes[1:])
        flat = flat[changes]  # the labels of an image change only between channels
    return [int(v) for v in torch.unique(flat).tolist()]
