"""How good a network is, and whether its two forms are one function, on a real validation set."""

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

EXACT = 1e-10  # of the largest logit, in float64
CHECKED = 256  # images on which float64 is compared


@dataclass(frozen=True)
class Scores:
    """Percentages of readable images whose class is the greatest logit, or among the five greatest; cross-entropy."""

    top1: float
    top5: float
    loss: float
    images: int


@dataclass(frozen=True)
class Proof:
    """A network and its collapsed form on the same images.

    Args:
        images: how many.
        same_class: for how many both choose one class.
        float32: greatest difference of their logits, over the greatest logit.
        float64: the same in float64, on the first images.
        noise: how far the trained network in float32 is from itself in float64, on those.
        before, after: their scores.
    """

    images: int
    same_class: int
    float32: float
    float64: float
    noise: float
    before: Scores
    after: Scores


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
    """Scores over the validation set of all processes; the network's mode is left as it was."""
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
    """Scores of a network on this process alone."""
    network.to(device).eval()
    tally = _Tally()
    for batch in batches:
        readable = batch["corrupt"] == 0
        if readable.any():
            tally.add(network(batch["image"][readable].to(device)).float(), batch["label"][readable].to(device))
    return tally.scores()


@torch.no_grad()
def prove(
    network: nn.Module, plain: nn.Module, batches: Iterable[Any], device: torch.device,
    form: Callable[[nn.Module, Tensor], nn.Module] | None = None,
) -> Proof:  # fmt: skip
    """Compare both forms on every image; ``form`` makes the second for float64, ``collapse`` unless given.

    Raises:
        UnbranchError: if in float64 they aren't one function.
    """
    both = [form.to(device).eval() for form in (network, plain)]
    tallies, same, worst, largest, noise = [_Tally(), _Tally()], 0, 0.0, 0.0, 0.0
    exact: float | None = None
    for batch in batches:
        readable = batch["corrupt"] == 0  # another image stands in the place of one that isn't
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
            exact, noise = _in_float64(network, images[:CHECKED], logits[0][:CHECKED], form or collapse)
    if exact is None:
        raise UnbranchError("there are no validation images to compare the two forms on")
    if not exact <= EXACT:
        raise UnbranchError(f"the collapsed network is another function: {exact:.1e} away in float64")
    before, after = (tally.scores() for tally in tallies)
    return Proof(before.images, same, worst / max(largest, 1e-30), exact, noise, before, after)


def _in_float64(
    network: nn.Module, images: Tensor, single: Tensor, form: Callable[[nn.Module, Tensor], nn.Module]
) -> tuple[float, float]:
    """Relative to float64's greatest logit: how far the other form is from it, and how far float32 is."""
    double, images = copy.deepcopy(network).cpu().double(), images.cpu().double()
    ours = double(images)
    others = (form(double, images[:1])(images), single.cpu().double())
    exact, noise = (float((other - ours).abs().max() / ours.abs().max()) for other in others)
    return exact, noise
