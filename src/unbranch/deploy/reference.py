"""What artifacts are compared with: the network's outputs in float64, and its own float32 rounding noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unbranch.convert.prove.distance import plain_distance
from unbranch.graph.float64 import Float64
from unbranch.runtimes.arrays import Calls
from unbranch.runtimes.signature import FlatNetwork

AMPLIFIED = 8
"""Errors up to this multiple of the network's own rounding noise are rounding, too: runtimes sum in other orders."""


@dataclass(frozen=True, eq=False)
class Reference:
    """Outputs of the network on the user's data.

    Args:
        calls: inputs of each call.
        outputs: of each call, in float64.
        noise: largest difference of the outputs in float32, relative to the largest output.
        labels: class of each image ``(N,)``, None if it isn't known.
    """

    calls: Calls
    outputs: tuple[tuple[Tensor, ...], ...]
    noise: float
    labels: Tensor | None

    @property
    def images(self) -> int:
        """Number of images, over all calls."""
        return sum(len(call[0]) for call in self.calls)

    def classes(self) -> Tensor | None:
        """Return the class that the network assigns to each image, ``(N,)``; None if it isn't a classifier."""
        return predicted(self.outputs)


@dataclass(frozen=True)
class Agreement:
    """How the outputs of an artifact compare with the reference.

    Args:
        error: largest difference from the reference, relative to the largest output; infinite if shapes differ.
        rms: root mean square of the difference, relative to the standard deviation of the outputs.
        same_class: fraction of images with the same class; None if the network isn't a classifier.
        accuracy: fraction of images with the right class; None without labels.
    """

    error: float
    rms: float
    same_class: float | None
    accuracy: float | None


def make_reference(
    network: FlatNetwork, calls: Sequence[Sequence[Tensor]], labels: Tensor | None, *, double: bool = True
) -> Reference:  # fmt: skip
    """Run the network on the user's data, in float64 and float32; without ``double``, in float32 only."""
    exact, noise = [], 0.0
    for call in calls:
        with torch.no_grad():
            native = network(*(value.clone() for value in call))
            if not double:
                exact.append(tuple(value.clone() for value in native))
                continue
            with Float64() as run:
                wide = run.values(network(*(_double(value) for value in call)))
        exact.append(tuple(value.clone() for value in wide))
        noise = max(noise, error_of(native, exact[-1]))
    return Reference([[v.numpy() for v in call] for call in calls], tuple(exact), noise, labels)


def compare(reference: Reference, found: Calls) -> Agreement:
    """Compare the outputs of an artifact with the reference, call by call."""
    theirs = tuple(tuple(torch.from_numpy(value) for value in call) for call in found)
    pairs = list(zip(theirs, reference.outputs, strict=True))
    error = max(error_of(ours, exact) for ours, exact in pairs)
    ours, expected = (predicted(theirs), reference.classes()) if error < float("inf") else (None, None)
    same = None if ours is None or expected is None else float((ours == expected).double().mean())
    rms = _rms(theirs, reference.outputs) if error < float("inf") else float("inf")
    return Agreement(error, rms, same, accuracy(ours, reference.labels))


def _rms(ours: Sequence[Sequence[Tensor]], exact: Sequence[Sequence[Tensor]]) -> float:
    """Return the largest relative root mean square of any output, over all calls."""
    found = []
    for index in range(len(exact[0])):
        a, b = (torch.cat([call[index].double().flatten() for call in calls]) for calls in (ours, exact))
        scale = (b - b.mean()).square().mean().sqrt().clamp_min(torch.finfo(torch.float64).tiny)
        found.append(float((a - b).square().mean().sqrt() / scale))
    return max(found)


def accuracy(classes: Tensor | None, labels: Tensor | None) -> float | None:
    """Return the fraction of right classes; a label below 0 isn't known."""
    if classes is None or labels is None or len(classes) != len(labels) or not bool((labels >= 0).any()):
        return None
    known = labels >= 0
    return float((classes[known] == labels[known]).double().mean())


def drop_of(found: Agreement, reference: Reference) -> float | None:
    """Return the loss of accuracy in percentage points; without labels, images with another class."""
    before = accuracy(reference.classes(), reference.labels)
    if before is not None and found.accuracy is not None:
        return 100 * (before - found.accuracy)
    return None if found.same_class is None else 100 * (1 - found.same_class)


def error_of(ours: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Return the largest relative difference of any output; infinite if their number or shapes differ."""
    if len(ours) != len(exact) or any(a.shape != b.shape for a, b in zip(ours, exact, strict=True)):
        return float("inf")
    return max(plain_distance(a, b).relative for a, b in zip(ours, exact, strict=True))


def predicted(outputs: Sequence[Sequence[Tensor]]) -> Tensor | None:
    """Return the largest entry of the first two-dimensional output of every call, ``(N,)``."""
    first = outputs[0]
    index = next((i for i, v in enumerate(first) if v.dim() == 2 and v.shape[1] > 1 and v.is_floating_point()), None)
    return None if index is None else torch.cat([call[index].argmax(1) for call in outputs])


def _double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value.clone()
