"""What artifacts are compared with: the network's outputs in float64, and its own float32 rounding noise."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import torch
from torch import Tensor

from unbranch.convert.prove.distance import is_real, plain_distance
from unbranch.graph.float64 import Float64
from unbranch.runtimes.arrays import Calls
from unbranch.runtimes.signature import FlatNetwork

AMPLIFIED = 8
"""Errors up to this multiple of the network's own rounding noise are rounding, too: runtimes sum in other orders."""
LARGEST_NOISE = 2e-2
"""Rounding noise doesn't allow for larger errors: a wrong network could be that close, too."""


@dataclass(frozen=True, eq=False)
class Reference:
    """Outputs of the network on the user's data.

    Args:
        calls: inputs of each call.
        outputs: of each call, in float64.
        noises: for each output, its largest difference in the network's own precision, see ``errors_of``.
        labels: class of each image ``(N,)``, None if it isn't known.
    """

    calls: Calls
    outputs: tuple[tuple[Tensor, ...], ...]
    noises: tuple[float, ...]
    labels: Tensor | None

    @property
    def noise(self) -> float:
        """Largest rounding noise of any output."""
        return max(self.noises, default=0.0)

    @property
    def images(self) -> int:
        """Number of images, over all calls."""
        return sum(self._sizes)

    def classes(self) -> Tensor | None:
        """Return the class that the network assigns to each image, ``(N,)``; None if it isn't a classifier."""
        return predicted(self.outputs, self._sizes)

    @property
    def number_of_classes(self) -> int | None:
        """Number of classes; None if the network isn't a classifier."""
        index = _scores(self.outputs, self._sizes)
        return None if index is None else self.outputs[0][index].shape[1]

    @property
    def _sizes(self) -> list[int]:
        return [len(call[0]) if call[0].ndim else 1 for call in self.calls]


@dataclass(frozen=True)
class Agreement:
    """How the outputs of an artifact compare with the reference.

    Args:
        errors: for each output, the largest difference from the reference, see ``errors_of``.
        rms: root mean square of the difference, relative to the standard deviation of the outputs.
        same_class: fraction of images with the same class; None if the network isn't a classifier.
        accuracy: fraction of images with the right class; None without labels.
    """

    errors: tuple[float, ...]
    rms: float
    same_class: float | None
    accuracy: float | None

    @property
    def error(self) -> float:
        """Largest error of any output."""
        return max(self.errors)

    def merged(self, other: Agreement) -> Agreement:
        """Return this agreement with the larger errors of both."""
        return replace(self, errors=largest(self.errors, other.errors), rms=max(self.rms, other.rms))


def make_reference(
    network: FlatNetwork, calls: Sequence[Sequence[Tensor]], labels: Tensor | None, *, double: bool = True
) -> Reference:  # fmt: skip
    """Run the network on the user's data, in float64 and its own precision; without ``double``, in the latter only."""
    exact: list[tuple[Tensor, ...]] = []
    noises: tuple[float, ...] = ()
    for call in calls:
        with torch.no_grad():
            native = tuple(value.clone() for value in network(*(value.clone() for value in call)))
            if not double:
                exact.append(native)
                continue
            with Float64() as run:
                wide = run.values(network(*(_double(value) for value in call)))
        exact.append(tuple(value.clone() for value in wide))
        noises = largest(noises, errors_of(native, exact[-1]))
    return Reference([[v.numpy() for v in call] for call in calls], tuple(exact), noises, labels)


def compare(reference: Reference, found: Calls) -> Agreement:
    """Compare the outputs of an artifact with the reference, call by call."""
    theirs = tuple(tuple(torch.from_numpy(value) for value in call) for call in found)
    pairs = list(zip(theirs, reference.outputs, strict=True))
    errors = functools.reduce(largest, (errors_of(ours, exact) for ours, exact in pairs))
    if max(errors) == float("inf"):
        return Agreement(errors, float("inf"), None, None)
    ours, expected = replace(reference, outputs=theirs).classes(), reference.classes()
    same = None if ours is None or expected is None else float((ours == expected).double().mean())
    return Agreement(errors, _rms(theirs, reference.outputs), same, accuracy(ours, reference.labels))


def _rms(ours: Sequence[Sequence[Tensor]], exact: Sequence[Sequence[Tensor]]) -> float:
    """Return the largest relative root mean square of any output, over all calls."""
    found = []
    for index in range(len(exact[0])):
        a, b = (torch.cat([_reals(call[index]) for call in calls]) for calls in (ours, exact))
        finite = a.isfinite() & b.isfinite()
        if not bool(finite.any()):
            continue
        a, b = a[finite], b[finite]
        scale = (b - b.mean()).square().mean().sqrt().clamp_min(torch.finfo(torch.float64).tiny)
        found.append(min(float((a - b).square().mean().sqrt() / scale), sys.float_info.max))
    return max(found, default=0.0)


def _reals(value: Tensor) -> Tensor:
    return (torch.view_as_real(value) if value.is_complex() else value).double().flatten()


def accuracy(classes: Tensor | None, labels: Tensor | None) -> float | None:
    """Return the fraction of right classes; a label below 0 isn't known."""
    if classes is None or labels is None or len(classes) != len(labels) or not bool((labels >= 0).any()):
        return None
    known = labels >= 0
    return float((classes[known] == labels[known]).double().mean())


def drop_of(found: Agreement, reference: Reference) -> float | None:
    """Return the loss of accuracy in percentage points; without labels that the network knows, images with another
    class.
    """
    before = accuracy(reference.classes(), reference.labels)
    if before is not None and found.accuracy is not None and before > _chance(reference):
        return 100 * (before - found.accuracy)
    return None if found.same_class is None else 100 * (1 - found.same_class)


def _chance(reference: Reference) -> float:
    """Return the accuracy of a network that has learned nothing: there, no loss of accuracy means nothing."""
    return 1 / (reference.number_of_classes or 1)


def errors_of(ours: Sequence[Tensor], exact: Sequence[Tensor]) -> tuple[float, ...]:
    """Return the error of each output: infinite if their number or shapes differ.

    For real numbers it is the largest difference relative to the largest output, for integers the share of those that
    differ, since a class number that differs by one isn't closer than another.
    """
    if len(ours) != len(exact) or any(a.shape != b.shape for a, b in zip(ours, exact, strict=True)):
        return tuple(float("inf") for _ in exact)
    return tuple(_error(a, b) for a, b in zip(ours, exact, strict=True))


def _error(ours: Tensor, exact: Tensor) -> float:
    if is_real(ours) or is_real(exact):
        return plain_distance(ours, exact).relative
    return float((ours != exact).double().mean()) if exact.numel() else 0.0


def largest(first: Sequence[float], second: Sequence[float]) -> tuple[float, ...]:
    """Return the elementwise maximum; a sequence may be longer, or empty."""
    return tuple(max(pair) for pair in zip_longest(first, second, fillvalue=0.0))


def predicted(outputs: Sequence[Sequence[Tensor]], sizes: Sequence[int]) -> Tensor | None:
    """Return the largest entry of the first output of scores ``(N, K)`` of every call, ``(N,)``.

    Args:
        outputs: of each call.
        sizes: of the batch of each call; an output with other rows isn't one of scores.
    """
    index = _scores(outputs, sizes)
    return None if index is None else torch.cat([call[index].argmax(1) for call in outputs])


def _scores(outputs: Sequence[Sequence[Tensor]], sizes: Sequence[int]) -> int | None:
    def fits(value: Tensor, size: int) -> bool:
        return value.dim() == 2 and value.shape[0] == size and value.shape[1] > 1 and value.is_floating_point()

    places = range(len(outputs[0]))
    return next((i for i in places if all(fits(c[i], n) for c, n in zip(outputs, sizes, strict=True))), None)


def _double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value.clone()
