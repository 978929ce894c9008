"""A small training loop: SGD with Nesterov momentum, a cosine schedule with warm-up, shifts and mirrors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from unbranch.errors import InputError
from unbranch.train.data import Images


@dataclass(frozen=True)
class Recipe:
    """How to train; the learning rate is that of the whole batch, ``shift`` in pixels."""

    epochs: int = 15
    batch_size: int = 64
    learning_rate: float = 0.1
    weight_decay: float = 1e-4
    shift: int = 1
    seed: int = 0
    channels_last: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2:
            raise InputError(f"training needs an epoch and two images a batch; got {self.epochs}, {self.batch_size}")


@dataclass(frozen=True)
class Step:
    """Where training stands after one batch."""

    epoch: int
    done: int
    total: int
    loss: float


OnStep: TypeAlias = Callable[[Step], None]


def _silent(_: Step) -> None:
    return None


def fit(network: nn.Module, images: Images, recipe: Recipe, on_step: OnStep = _silent) -> None:
    """Train the network in place on the training images, calling ``on_step`` after each batch."""
    generator = torch.Generator().manual_seed(recipe.seed)
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    network.to(memory_format=layout).train()
    total = recipe.epochs * (len(images.train_labels) // recipe.batch_size)
    if total == 0:
        raise InputError(f"{len(images.train_labels)} images are fewer than one batch of {recipe.batch_size}")
    optimizer, schedule = _optimizer(network, recipe, total)
    done = 0
    for epoch in range(recipe.epochs):
        for batch, labels in _batches(images, recipe, generator):
            loss = F.cross_entropy(network(batch.to(memory_format=layout)), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            done += 1
            on_step(Step(epoch, done, total, loss.item()))
    network.eval()


@torch.no_grad()
def predict(network: nn.Module, images: Tensor, batch_size: int = 500) -> Tensor:
    """Logits ``(N, classes)`` in eval mode; the network's mode is left as it was."""
    training = network.training
    network.eval()
    try:
        return torch.cat([network(batch) for batch in torch.split(images, batch_size)])
    finally:
        network.train(training)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The fraction of images whose greatest logit is that of their class."""
    return (logits.argmax(1) == labels).double().mean().item()


def _optimizer(network: nn.Module, recipe: Recipe, total: int) -> tuple[Optimizer, OneCycleLR]:
    """SGD without decay on scales and biases; the rate climbs for a tenth of the steps, then follows a cosine."""
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = SGD(groups, recipe.learning_rate, momentum=0.9, nesterov=True)
    # total + 1: the schedule steps once more after the last batch.
    return optimizer, OneCycleLR(optimizer, recipe.learning_rate, total + 1, pct_start=0.1, cycle_momentum=False)


def _batches(images: Images, recipe: Recipe, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(images.train_labels), generator=generator)
    for chosen in torch.split(order, recipe.batch_size):
        if len(chosen) == recipe.batch_size:  # batch statistics of a small rest would be noise
            batch = _augmented(images.train_images[chosen], recipe.shift, images.mirrored, generator)
            yield batch, images.train_labels[chosen]


def _augmented(batch: Tensor, shift: int, mirrored: bool, generator: torch.Generator) -> Tensor:
    """Each image moved by up to ``shift`` pixels, its edge repeated, and mirrored half of the time if it may be."""
    count, _, height, width = batch.shape
    padded = F.pad(batch, (shift,) * 4, mode="replicate")
    moves = torch.randint(2 * shift + 1, (2, count, 1, 1, 1), generator=generator)
    rows = moves[0] + torch.arange(height).view(1, 1, -1, 1)  # (B, 1, H, 1)
    columns = moves[1] + torch.arange(width).view(1, 1, 1, -1)  # (B, 1, 1, W)
    if mirrored:
        flip = torch.rand((count, 1, 1, 1), generator=generator) < 0.5
        columns = torch.where(flip, columns.flip(3), columns)
    batch_index = torch.arange(count).view(-1, 1, 1, 1)
    channel_index = torch.arange(batch.shape[1]).view(1, -1, 1, 1)
    return padded[batch_index, channel_index, rows, columns]  # (B, C, H, W)
