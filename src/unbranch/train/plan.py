"""What a run would be, without running it: sizes, steps, memory."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from unbranch.convert import NetworkCost, collapse
from unbranch.convert.costs import cost_of
from unbranch.train.build import make_network
from unbranch.train.compactors import example_image, make_resrep, with_compactors
from unbranch.train.data import Data
from unbranch.train.optimise import make_optimizer
from unbranch.train.recipe import Recipe
from unbranch.train.transforms import train_transform


@dataclass(frozen=True)
class Memory:
    """Bytes on each process: weights and buffers, gradients, the optimizer's state, averaged weights, activations.

    Activations are what the forward pass of one part of a batch keeps for the backward pass.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Group:
    """Parameters that are treated alike."""

    tensors: int
    numbers: int
    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class Plan:
    """What ``--dry-run`` tells.

    Args:
        image: ``(C, H, W)`` as the network gets it in training.
        batch: images a step of all processes.
    """

    model: str
    block: str | None
    data: str
    image: tuple[int, ...]
    batch: int
    processes: int
    epochs: int
    steps_per_epoch: int
    before: NetworkCost
    after: NetworkCost
    memory: Memory
    groups: tuple[Group, ...]

    @property
    def steps(self) -> int:
        """Updates of the whole run."""
        return self.epochs * self.steps_per_epoch

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "steps": self.steps, "memory": {**asdict(self.memory), "total": self.memory.total}}


def make_plan(recipe: Recipe, data: Data, processes: int = 1) -> Plan:
    """The plan of a run on so many processes; the network is made, no image but the first is read.

    Raises:
        InputError: for whatever would stop the run at its beginning.
    """
    torch.manual_seed(recipe.seed)
    network = with_compactors(make_network(recipe, data), recipe, data)
    image = train_transform(recipe, data)(data.train[0][0])
    optimizer = make_optimizer(network, recipe, recipe.data.batch_size)
    make_resrep(network, network, recipe, example_image(recipe, data), optimizer, 1)
    part = max(1, recipe.data.batch_size // (processes * recipe.training.accumulate))
    one = (torch.zeros(1, *image.shape),)
    return Plan(
        model=recipe.model.name,
        block=recipe.model.block,
        data=str(data),
        image=tuple(image.shape),
        batch=recipe.data.batch_size,
        processes=processes,
        epochs=recipe.schedule.epochs,
        steps_per_epoch=len(data.train) // recipe.data.batch_size,
        before=cost_of(network.eval(), one),
        after=cost_of(collapse(network.eval()), one),
        memory=_memory(network, optimizer, (part, *image.shape), recipe),
        groups=tuple(_group(group) for group in optimizer.param_groups),
    )


def _memory(network: nn.Module, optimizer: Optimizer, shape: tuple[int, ...], recipe: Recipe) -> Memory:
    state = sum(_bytes(t) for t in network.state_dict().values())
    trained = sum(_bytes(p) for p in network.parameters() if p.requires_grad)
    return Memory(
        weights=state,
        gradients=trained,
        optimizer=trained * _slots(optimizer),
        average=state if recipe.ema is not None else 0,
        activations=activation_bytes(network, shape),
    )


def _slots(optimizer: Optimizer) -> int:
    """Tensors that an optimizer keeps for each parameter, found by one step on a single number."""
    settings = {k: v for k, v in optimizer.defaults.items() if k not in ("params", "fused", "foreach", "capturable")}
    number = nn.Parameter(torch.ones(2, 2))
    number.grad = torch.ones(2, 2)
    try:
        trial = type(optimizer)([number], **settings)
        trial.step()
    except Exception:  # an optimizer with needs of its own: two moments, as most have
        return 2
    return sum(isinstance(v, Tensor) and v.dim() > 0 for v in trial.state[number].values())


def activation_bytes(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Bytes that a forward pass in training keeps for the backward pass, beside the parameters; nothing is computed.

    ``shape`` is that of the images, ``(B, C, H, W)``.
    """
    shadow = copy.deepcopy(network).to("meta").train()
    own = {t.untyped_storage()._cdata for t in (*shadow.parameters(), *shadow.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in own:
            kept[storage] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = shadow(torch.empty(shape, device="meta"))
        size = sum(t.untyped_storage().nbytes() for t in kept.values())
    del outputs
    return size


def _bytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * tensor.element_size()


def _group(group: dict[str, Any]) -> Group:
    numbers = sum(p.numel() for p in group["params"])
    return Group(len(group["params"]), numbers, float(group["lr"]), float(group["weight_decay"]))
