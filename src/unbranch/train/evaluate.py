"""Accuracy of a network, and comparison of its two forms, on a validation set."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbranch.convert import collapse
from unbranch.errors import UnbranchError
from unbranch.render import Block, Paragraph, Renderable

TOLERANCE = 1e-10  # of the largest logit, in float64
FLOAT64_IMAGES = 256  # on which the forms are compared in float64


@dataclass(frozen=True)
class Scores:
    """Accuracy on the images that can be read.

    Args:
        top1, top5: percentage of images whose class has the largest logit, or one of the five largest.
        loss: mean cross-entropy.
        images: their number.
    """

    top1: float
    top5: float
    loss: float
    images: int


@dataclass(frozen=True)
class FormComparison(Renderable):
    """Comparison of a network with its collapsed form on the same images.

    Args:
        images: their number.
        same_class: number of images to which both forms assign the same class.
        float32: largest difference of the logits, relative to the largest logit.
        float64: the same in float64, on the first images.
        noise: difference of the trained network in float32 from itself in float64, on the same images.
        before, after: scores of both forms.
    """

    images: int
    same_class: int
    float32: float
    float64: float
    noise: float
    before: Scores
    after: Scores

    def blocks(self) -> tuple[Block, ...]:
        text = (
            f"same class on {self.same_class:,} of {self.images:,} images; largest difference of the logits, relative "
            f"to the largest logit: {self.float64:.0e} in float64, {self.float32:.0e} in float32, where float32 itself "
            f"differs by {self.noise:.0e} from float64"
        )
        return (Paragraph(text),)


class _Tally:
    """Sums over batches of logits ``(B, classes)`` and labels ``(B,)``."""

    def __init__(self) -> None:
        self.images, self.first, self.five, self.loss = 0, 0, 0, 0.0

    def add(self, logits: Tensor, labels: Tensor) -> None:
        top = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels.unsqueeze(1)
        self.images += len(labels)
        self.first += int(top[:, 0].sum())
        self.five += int(top.sum())
        self.loss += float(F.cross_entropy(logits.double(), labels, reduction="sum"))

    def scores(self) -> Scores:
        n = max(1, self.images)
        return Scores(100 * self.first / n, 100 * self.five / n, self.loss / n, self.images)


@torch.no_grad()
def evaluate(network: nn.Module, batches: Iterable[Any], accelerator: Any) -> Scores:
    """Return the scores over the validation set of all processes; the network's mode is restored."""
    training, tally = network.training, _Tally()
    network.eval()
    try:
        for batch in batches:
            found = (network(batch["image"]).float(), batch["label"], batch["corrupt"])
            logits, labels, corrupt = accelerator.gather_for_metrics(found)
            tally.add(logits[corrupt == 0], labels[corrupt == 0])
    finally:
        network.train(training)
    return tally.scores()


@torch.no_grad()
def score(network: nn.Module, batches: Iterable[Any], device: torch.device) -> Scores:
    """Return the scores of a network, computed on this process alone."""
    network.to(device).eval()
    tally = _Tally()
    for batch in batches:
        readable = batch["corrupt"] == 0
        if readable.any():
            tally.add(network(batch["image"][readable].to(device)).float(), batch["label"][readable].to(device))
    return tally.scores()


@torch.no_grad()
def compare_forms(
    network: nn.Module, plain: nn.Module, batches: Iterable[Any], device: torch.device,
    convert: Callable[[nn.Module, Tensor], nn.Module] | None = None,
) -> FormComparison:  # fmt: skip
    """Compare both forms of a network on every image.

    Args:
        network, plain: training form and deploy form.
        convert: makes the deploy form of a network in float64, given an example input; ``collapse`` unless given.

    Raises:
        UnbranchError: if in float64 the forms aren't the same function.
    """
    convert = convert or collapse
    both = [form.to(device).eval() for form in (network, plain)]
    tallies, same, worst, largest, noise = [_Tally(), _Tally()], 0, 0.0, 0.0, 0.0
    exact: float | None = None
    for batch in batches:
        readable = batch["corrupt"] == 0  # a corrupt image is replaced by another one
        images, labels = batch["image"][readable].to(device), batch["label"][readable].to(device)
        if len(images) == 0:
            continue
        logits = [form(images).float() for form in both]
        for tally, found in zip(tallies, logits, strict=True):
            tally.add(found, labels)
        same += int((logits[0].argmax(1) == logits[1].argmax(1)).sum())
        worst = max(worst, float((logits[0] - logits[1]).abs().max()))
        largest = max(largest, float(logits[0].abs().max()))
        if exact is None:
            exact, noise = _in_float64(network, images[:FLOAT64_IMAGES], logits[0][:FLOAT64_IMAGES], convert)
    if exact is None:
        raise UnbranchError("there are no validation images to compare the two forms on")
    if not exact <= TOLERANCE:
        raise UnbranchError(f"the collapsed network computes another function: it differs by {exact:.1e} in float64")
    before, after = (tally.scores() for tally in tallies)
    return FormComparison(before.images, same, worst / max(largest, 1e-30), exact, noise, before, after)


def _in_float64(
    network: nn.Module, images: Tensor, single: Tensor, convert: Callable[[nn.Module, Tensor], nn.Module]
) -> tuple[float, float]:
    """Return the differences of the other form and of float32 from float64, relative to its largest logit."""
    double, images = copy.deepcopy(network).cpu().double(), images.cpu().double()
    ours = double(images)
    others = (convert(double, images[:1])(images), single.cpu().double())
    exact, noise = (float((other - ours).abs().max() / ours.abs().max()) for other in others)
    return exact, noise
