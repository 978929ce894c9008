"""Pruning in a run: compactors in the network, and ResRep beside the optimiser."""

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

WAYS = 2.0  # from a norm of 1 to 0


def example_image(recipe: Recipe, data: Data) -> Tensor:
    """The first image of the validation set as the network gets it, ``(1, C, H, W)``."""
    samples = Samples(data.val, eval_transform(recipe, data), recipe.seed, recipe.data.on_corrupt, random=False)
    image: Tensor = samples[0, 0]["image"]
    return image[None]


def with_compactors(network: nn.Module, recipe: Recipe, data: Data) -> nn.Module:
    """The network ready to be pruned, where the recipe says so; as it is otherwise, or if it has compactors.

    Raises:
        InputError: if nothing can be pruned.
    """
    if recipe.prune is None or any(isinstance(module, Compactor) for module in network.modules()):
        return network
    prune = recipe.prune
    return insert_compactors(
        network, example_image(recipe, data), layers=prune.layers, include=prune.include, exclude=prune.exclude
    ).train()


def make_resrep(
    network: nn.Module, blank: nn.Module, recipe: Recipe, example: Tensor, optimizer: Optimizer, steps_per_epoch: int
) -> ResRep | None:
    """ResRep for the network as it is trained; ``blank`` is the same before it was made ready for that.

    Raises:
        InputError: if the target can't be reached, or the optimiser isn't SGD with momentum.
    """
    prune = recipe.prune
    if prune is None:
        return None
    graph = read_graph(blank, (example,), untrained=True)
    warmup = round(prune.warmup_epochs * steps_per_epoch)
    granularity = prune.granularity
    if granularity is None:
        rounds = (recipe.schedule.epochs * steps_per_epoch // 3 - warmup) // prune.interval
        granularity = max(4, math.ceil(sum(graph.full) / max(1, rounds)))
    return ResRep(
        network, example, optimizer, target=prune.target, metric=prune.metric, strength=prune.strength,
        masked_strength=enough_pull(network, recipe, optimizer, steps_per_epoch) if prune.pull is None else prune.pull,
        stop_when_met=prune.settle, momentum=prune.momentum, warmup=warmup, interval=prune.interval,
        granularity=granularity, minimum=prune.minimum, multiple=prune.multiple, threshold=prune.threshold, graph=graph,
    )  # fmt: skip


def enough_pull(network: nn.Module, recipe: Recipe, optimizer: Optimizer, steps_per_epoch: int) -> float:
    """λ with which a row of norm 1 that is masked by a third of the run could go to zero ``WAYS`` times by the middle.

    Once it is masked, only the penalty moves a row: by lr · λ / (1 − momentum) a step.
    """
    assert recipe.prune is not None
    compactors = {id(module.conv.weight) for module in network.modules() if isinstance(module, Compactor)}
    scales = [g.get("lr_scale", 1.0) for g in optimizer.param_groups if any(id(p) in compactors for p in g["params"])]
    parameter = {"params": [nn.Parameter(torch.zeros(1))], "lr_scale": min(scales, default=1.0)}
    alike = torch.optim.SGD([parameter], optimizer.defaults["lr"])
    schedule = make_schedule(alike, recipe, steps_per_epoch)
    steps, way = recipe.schedule.epochs * steps_per_epoch, 0.0
    for step in range(steps // 3, max(steps // 2, steps // 3 + 1)):
        schedule.set(step)
        way += alike.param_groups[0]["lr"] / (1 - recipe.prune.momentum)
    return max(recipe.prune.strength, WAYS / max(way, 1e-12))
