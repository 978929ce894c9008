"""Everything that the steps of a run work on, made before the first step, on every process alike."""

from __future__ import annotations

import copy
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from unbranch.blocks import fuse_branches_in_training
from unbranch.channels_last import SafeChannelsLast
from unbranch.errors import InputError
from unbranch.extras import library
from unbranch.prune import ResRep
from unbranch.train.build import make_network
from unbranch.train.compactors import example_image, make_resrep, with_compactors
from unbranch.train.data import Data
from unbranch.train.losses import extra_penalty, make_loss
from unbranch.train.optimise import make_ema, make_optimizer, make_schedule
from unbranch.train.recipe import Recipe
from unbranch.train.samples import EpochOrder, Samples, loader
from unbranch.train.sync import synchronise_norms
from unbranch.train.transforms import eval_transform, mixing, train_transform


@dataclass
class TrainingContext:
    """Network, optimizer, data and the rest of a run; made by ``prepare``.

    Args:
        initial_model: the network as the recipe makes it, on the CPU; never trained.
        network: the network as it is trained: wrapped by accelerate, in its memory format.
        mix: mixup and cutmix, from images and labels to mixed ones.
    """

    recipe: Recipe
    data: Data
    accelerator: Any
    initial_model: nn.Module
    network: nn.Module
    optimizer: Optimizer
    schedule: Any
    ema: Any
    order: EpochOrder
    batches: DataLoader[Any]
    validation: DataLoader[Any]
    loss: Callable[[Any, Tensor], Tensor]
    penalty: Callable[[], Tensor] | None
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None
    resrep: ResRep | None
    steps_per_epoch: int

    @property
    def steps(self) -> int:
        """Number of updates of the whole run."""
        return self.steps_per_epoch * self.recipe.schedule.epochs

    @property
    def memory_format(self) -> torch.memory_format:
        """Memory format of images and kernels."""
        return _memory_format(self.recipe)

    def safe_channels_last(self) -> AbstractContextManager[Any]:
        """Context of a step that avoids oneDNN's fault in channels_last on a CPU, see ``SafeChannelsLast``."""
        on_cpu = self.accelerator.device.type == "cpu"
        return SafeChannelsLast() if on_cpu and self.recipe.training.channels_last else nullcontext()

    def environment(self) -> dict[str, Any]:
        """Return what must be the same for a resumed run to be bit-identical."""
        return {
            "processes": self.accelerator.num_processes,
            "threads": torch.get_num_threads(),
            "device": self.accelerator.device.type,
            "torch": torch.__version__,
            "machine": platform.machine(),
            "data": self.data.fingerprint,
        }


def prepare(recipe: Recipe, data: Data, network: nn.Module | None = None) -> TrainingContext:
    """Make everything that a run needs, for the number of processes that were launched.

    Args:
        recipe: the settings of the run.
        data: images for training and validation.
        network: to be trained; made from ``model`` in the recipe unless given.

    Raises:
        InputError: if the batch can't be divided among the processes, or a setting doesn't fit the network or data.
    """
    accelerator = _accelerator(recipe)
    torch.manual_seed(recipe.seed)
    initial_model = network or with_compactors(make_network(recipe, data), recipe, data)
    network = _trainable(copy.deepcopy(initial_model), recipe, accelerator)
    optimizer = make_optimizer(network, recipe, recipe.data.batch_size)
    order, batches, validation = _loaders(recipe, data, accelerator.num_processes)
    steps = len(order) // recipe.data.batch_size
    resrep = make_resrep(network, initial_model, recipe, example_image(recipe, data), optimizer, steps)
    if resrep is not None and "FSDP" in str(accelerator.distributed_type):
        raise InputError("compactors can't be sharded over processes: prune without FSDP")
    penalty, ema = extra_penalty(network, recipe), make_ema(network, recipe, steps)
    if ema is not None and "FSDP" in str(accelerator.distributed_type):
        raise InputError("averaged weights aren't supported with FSDP: set ema=null")
    mix = mixing(recipe, recipe.model.num_classes or len(data.classes))
    loss = make_loss(recipe, mix is not None)
    network, optimizer, batches, validation = accelerator.prepare(network, optimizer, batches, validation)
    if ema is not None:
        ema.to(accelerator.device)
        accelerator.register_for_checkpointing(ema)
    if resrep is not None:
        accelerator.register_for_checkpointing(resrep)
    schedule = make_schedule(optimizer, recipe, steps)
    return TrainingContext(
        recipe, data, accelerator, initial_model, network, optimizer, schedule, ema, order, batches, validation, loss,
        penalty, mix, resrep, steps,
    )  # fmt: skip


def _accelerator(recipe: Recipe) -> Any:
    accelerate = library("accelerate", "train")
    training = recipe.training
    # accelerate would keep the settings of the first run of a process for all later ones
    accelerate.state.AcceleratorState._reset_state()
    accelerate.state.GradientState._reset_state()
    return accelerate.Accelerator(
        cpu=not torch.accelerator.is_available(),  # else processes on CPUs wouldn't form a group
        mixed_precision=training.precision,
        gradient_accumulation_steps=training.accumulate,
        dynamo_backend="inductor" if training.compile else None,
        step_scheduler_with_optimizer=False,
        dataloader_config=accelerate.DataLoaderConfiguration(use_seedable_sampler=False, non_blocking=True),
    )


def _trainable(network: nn.Module, recipe: Recipe, accelerator: Any) -> nn.Module:
    """Apply the settings of ``training`` to the network: synchronised norms, checkpointing, memory format."""
    training = recipe.training
    if training.sync_norm and accelerator.num_processes > 1:
        network = synchronise_norms(network, accelerator.device)
    if training.checkpointing:
        switch = getattr(network, "set_grad_checkpointing", None)
        if switch is None:
            raise InputError(
                f"`training.checkpointing` needs a network with set_grad_checkpointing, and {recipe.model.name} has "
                "none: set it false"
            )
        switch()
    if training.cheaper is not None:
        network = fuse_branches_in_training(network)
    return network.to(memory_format=_memory_format(recipe))


def _memory_format(recipe: Recipe) -> torch.memory_format:
    return torch.channels_last if recipe.training.channels_last else torch.contiguous_format


def _loaders(recipe: Recipe, data: Data, processes: int) -> tuple[EpochOrder, DataLoader[Any], DataLoader[Any]]:
    batch, parts = recipe.data.batch_size, processes * recipe.training.accumulate
    if batch % parts:
        raise InputError(
            f"`data.batch_size` must be a multiple of {processes} processes × {recipe.training.accumulate} parts, "
            f"got {batch}"
        )
    order = EpochOrder(len(data.train), batch, recipe.seed)
    if len(order) == 0:
        raise InputError(f"{len(data.train)} images are fewer than one batch of {batch}")
    samples = Samples(data.train, train_transform(recipe, data), recipe.seed, recipe.data.on_corrupt)
    batches = loader(samples, order, batch // parts, recipe.data.workers)
    return order, batches, validation_loader(recipe, data)


def validation_loader(recipe: Recipe, data: Data) -> DataLoader[Any]:
    """Return a loader of the validation set, in its order."""
    order = EpochOrder(len(data.val), 1, recipe.seed, shuffle=False)
    samples = Samples(data.val, eval_transform(recipe, data), recipe.seed, recipe.data.on_corrupt, random=False)
    return loader(samples, order, recipe.evaluate.batch_size or recipe.data.batch_size, recipe.data.workers)
