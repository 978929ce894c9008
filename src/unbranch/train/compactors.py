"""Pruning in a run: compactors in the network, and ResRep next to the optimizer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from unbranch.blocks import Compactor
from unbranch.prune import ResRep, insert_compactors, read_graph
from unbranch.train.data import Data
from unbranch.train.optimise import make_schedule
from unbranch.train.recipe import Recipe
from unbranch.train.samples import Samples
from unbranch.train.transforms import eval_transform

SAFETY_FACTOR = 2.0  # how often a masked row could shrink from norm 1 to 0


def example_image(recipe: Recipe, data: Data) -> Tensor:
    """Return the first validation image, preprocessed, ``(1, C, H, W)``."""
    samples = Samples(data.val, eval_transform(recipe, data), recipe.seed, recipe.data.on_corrupt, random=False)
    image: Tensor = samples[0, 0]["image"]
    return image[None]


def with_compactors(network: nn.Module, recipe: Recipe, data: Data) -> nn.Module:
    """Return the network with compactors if the recipe prunes; the network itself if not, or if it has compactors.

    Raises:
        InputError: if no layer can be pruned.
    """
    if recipe.prune is None or any(isinstance(module, Compactor) for module in network.modules()):
        return network
    prune = recipe.prune
    return insert_compactors(
        network, example_image(recipe, data), layers=prune.layers, include=prune.include, exclude=prune.exclude
    ).train()


def make_resrep(
    network: nn.Module,
    initial_model: nn.Module,
    recipe: Recipe,
    example: Tensor,
    optimizer: Optimizer,
    steps_per_epoch: int,
) -> ResRep | None:
    """Return ResRep for the network as it is trained, None if the recipe doesn't prune.

    Args:
        initial_model: the same network, before wrappers and other settings of ``training`` were applied.

    Raises:
        InputError: if the target can't be reached, or the optimizer isn't SGD with momentum.
    """
    prune = recipe.prune
    if prune is None:
        return None
    strength = prune.masked_strength
    graph = read_graph(initial_model, (example,), untrained=True)
    warmup = round(prune.warmup_epochs * steps_per_epoch)
    granularity = prune.granularity
    if granularity is None:
        rounds = (recipe.schedule.epochs * steps_per_epoch // 3 - warmup) // prune.interval
        granularity = max(4, math.ceil(sum(graph.full) / max(1, rounds)))
    return ResRep(
        network, example, optimizer, target=prune.target, metric=prune.metric, strength=prune.strength,
        masked_strength=sufficient_strength(network, recipe, optimizer, steps_per_epoch)
        if strength is None
        else strength,
        stop_when_met=prune.stop_when_met, momentum=prune.momentum, warmup=warmup, interval=prune.interval,
        granularity=granularity, minimum=prune.minimum, multiple=prune.multiple, threshold=prune.threshold,
        graph=graph, runtime=prune.runtime,
    )  # fmt: skip


def sufficient_strength(network: nn.Module, recipe: Recipe, optimizer: Optimizer, steps_per_epoch: int) -> float:
    """Return the λ that brings rows which are masked in the first third of the run to zero by its middle.

    It suffices for a row of norm 1, ``SAFETY_FACTOR`` times over: a masked row is moved by the penalty alone, by
    lr · λ / (1 − momentum) in each step.
    """
    assert recipe.prune is not None
    compactors = {id(module.conv.weight) for module in network.modules() if isinstance(module, Compactor)}
    scales = [g.get("lr_scale", 1.0) for g in optimizer.param_groups if any(id(p) in compactors for p in g["params"])]
    parameter = {"params": [nn.Parameter(torch.zeros(1))], "lr_scale": min(scales, default=1.0)}
    alike = torch.optim.SGD([parameter], optimizer.defaults["lr"])
    schedule = make_schedule(alike, recipe, steps_per_epoch)
    steps, distance = recipe.schedule.epochs * steps_per_epoch, 0.0
    for step in range(steps // 3, max(steps // 2, steps // 3 + 1)):
        schedule.set(step)
        distance += alike.param_groups[0]["lr"] / (1 - recipe.prune.momentum)
    return max(recipe.prune.strength, SAFETY_FACTOR / max(distance, 1e-12))
