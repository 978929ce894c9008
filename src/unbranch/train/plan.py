"""The plan of a run: steps, costs and memory, computed without training."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from unbranch.convert import NetworkCost, collapse
from unbranch.convert.costs import cost_of
from unbranch.render import Block, Paragraph, Renderable, Table, byte_size, count
from unbranch.train.build import make_network
from unbranch.train.compactors import example_image, make_resrep, with_compactors
from unbranch.train.data import Data
from unbranch.train.optimise import make_optimizer
from unbranch.train.recipe import Recipe
from unbranch.train.result import cost_rows
from unbranch.train.transforms import train_transform

GROUPS_SHOWN = 6


@dataclass(frozen=True)
class TrainingMemory:
    """Memory of each process, in bytes.

    Args:
        weights: parameters and buffers.
        optimizer: state of the optimizer.
        average: averaged weights.
        activations: what the forward pass of one part of a batch stores for the backward pass.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int

    @property
    def total(self) -> int:
        """Sum of all of them."""
        return sum(asdict(self).values())


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with one learning rate and one weight decay: their tensors, and the numbers in them."""

    tensors: int
    numbers: int
    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class TrainingPlan(Renderable):
    """The plan of a run, as ``--dry-run`` prints it.

    Args:
        image: shape of a training image ``(C, H, W)``.
        batch: images per step, over all processes.
        before, after: costs of the training form and the deploy form.
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
    memory: TrainingMemory
    groups: tuple[ParameterGroup, ...]

    @property
    def steps(self) -> int:
        """Number of updates of the whole run."""
        return self.epochs * self.steps_per_epoch

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {**asdict(self), "steps": self.steps, "memory": {**asdict(self.memory), "total": self.memory.total}}

    def blocks(self) -> Iterator[Block]:
        network = self.model if self.block is None else f"{self.model} of {self.block} blocks"
        image, memory = "×".join(map(str, self.image)), self.memory
        parts = {name: byte_size(size) for name, size in asdict(memory).items()}
        yield Table(
            ("", ""),
            [
                ("network", network),
                ("data", self.data),
                ("images", f"{image}, {self.batch} per step on {_counted(self.processes, 'process', 'processes')}"),
                ("steps", f"{self.steps:,}, {self.steps_per_epoch:,} in each of {_counted(self.epochs, 'epoch')}"),
                ("memory", f"{byte_size(memory.total)}: {', '.join(f'{name} {size}' for name, size in parts.items())}"),
            ],
        )
        yield Paragraph("")
        yield Table(("", "training form", "deploy form"), cost_rows(self.before, self.after), numeric=True)
        rows = [(str(g.tensors), count(g.numbers), f"{g.learning_rate:g}", f"{g.weight_decay:g}") for g in self.groups]
        yield Table(("tensors", "numbers", "rate", "decay"), rows, "parameter groups", limit=GROUPS_SHOWN)


def make_plan(recipe: Recipe, data: Data, *, processes: int = 1) -> TrainingPlan:
    """Return the plan of a run. The network is made; only the first image is read.

    Args:
        processes: number of processes that the run would have.

    Raises:
        InputError: for everything that would stop the run at its start.
    """
    torch.manual_seed(recipe.seed)
    network = with_compactors(make_network(recipe, data), recipe, data)
    image = train_transform(recipe, data)(data.train[0][0])
    optimizer = make_optimizer(network, recipe, recipe.data.batch_size)
    make_resrep(network, network, recipe, example_image(recipe, data), optimizer, 1)
    part = max(1, recipe.data.batch_size // (processes * recipe.training.accumulate))
    one = (torch.zeros(1, *image.shape),)
    return TrainingPlan(
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


def _memory(network: nn.Module, optimizer: Optimizer, shape: tuple[int, ...], recipe: Recipe) -> TrainingMemory:
    state = sum(_bytes(t) for t in network.state_dict().values())
    trained = sum(_bytes(p) for p in network.parameters() if p.requires_grad)
    return TrainingMemory(
        weights=state,
        gradients=trained,
        optimizer=trained * _slots(optimizer),
        average=state if recipe.ema is not None else 0,
        activations=activation_bytes(network, shape),
    )


def _slots(optimizer: Optimizer) -> int:
    """Return how many tensors an optimizer stores per parameter, found by one step on a small one."""
    settings = {k: v for k, v in optimizer.defaults.items() if k not in ("params", "fused", "foreach", "capturable")}
    number = nn.Parameter(torch.ones(2, 2))
    number.grad = torch.ones(2, 2)
    try:
        trial = type(optimizer)([number], **settings)
        trial.step()
    except Exception:  # an optimizer with requirements of its own: two moments, as most have
        return 2
    return sum(isinstance(v, Tensor) and v.dim() > 0 for v in trial.state[number].values())


def activation_bytes(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Return the activation memory of a training step in bytes, without parameters; nothing is computed.

    Args:
        shape: of the images, ``(B, C, H, W)``.
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


def _counted(number: int, one: str, several: str | None = None) -> str:
    return f"{number} {one if number == 1 else several or f'{one}s'}"


def _bytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * tensor.element_size()


def _group(group: dict[str, Any]) -> ParameterGroup:
    numbers = sum(p.numel() for p in group["params"])
    return ParameterGroup(len(group["params"]), numbers, float(group["lr"]), float(group["weight_decay"]))
