"""One step of training: forward, backward and update of a part of a batch."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from unbranch.extras import library
from unbranch.train.context import TrainingContext
from unbranch.train.optimise import updates_ema
from unbranch.train.progress import RunningMeans


def train_part(context: TrainingContext, batch: dict[str, Tensor], part: int, step: int, means: RunningMeans) -> bool:
    """Run a part of a batch forward and backward, and update the weights after the last part.

    Args:
        batch: ``image`` ``(B, C, H, W)``, ``label`` and ``corrupt`` ``(B,)``.
        part: number of the part in the epoch.
        step: updates done so far.
        means: gets the loss and the outputs.

    Returns:
        Whether the weights were updated.
    """
    accelerator, recipe = context.accelerator, context.recipe
    parts = recipe.training.accumulate
    _seed(recipe.seed, step * parts + part % parts, accelerator.process_index)
    images, labels = batch["image"].to(memory_format=context.memory_format), batch["label"]
    with accelerator.accumulate(context.network), context.safe_channels_last():
        mixed, targets = (images, labels) if context.mix is None else context.mix(images, labels)
        context.schedule.set(step)
        outputs = context.network(mixed)
        loss = context.loss(outputs, targets)
        accelerator.backward(loss if context.penalty is None else loss + context.penalty())
        _update(context)
    means.add(loss.detach(), outputs, labels, batch["corrupt"])
    updated = bool(accelerator.sync_gradients)
    if updated and updates_ema(recipe, step + 1):
        context.ema.update(accelerator.unwrap_model(context.network), step=step + 1)
    return updated


def _update(context: TrainingContext) -> None:
    """Clip gradients, run ResRep and the optimizer; accelerate skips the update until the last part of a batch."""
    accelerator, clip = context.accelerator, context.recipe.optimizer.clip_grad
    if accelerator.sync_gradients and clip is not None:
        accelerator.clip_grad_norm_(context.network.parameters(), clip)
    if accelerator.sync_gradients and context.resrep is not None:
        if clip is None:  # clipping unscales them
            accelerator.unscale_gradients(context.optimizer)
        context.resrep.step()
    context.optimizer.step()
    context.optimizer.zero_grad()


def _seed(seed: int, step: int, process: int) -> None:
    """Seed every generator, so that what a step draws depends on seed, step and process alone."""
    numpy = library("numpy", "train")
    (mixed,) = numpy.random.SeedSequence((seed, step, process)).generate_state(1, numpy.uint64).tolist()
    torch.manual_seed(mixed >> 1)
    numpy.random.seed(mixed & 0xFFFFFFFF)
    random.seed(mixed)
