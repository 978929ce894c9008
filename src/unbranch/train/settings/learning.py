"""Settings of learning: optimizer, schedule, loss, moving average, and how the run is carried out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unbranch.errors import InputError
from unbranch.train.settings.bounds import Count, Flag, Many, NotNegative, Pair, Positive, Rate, Share, Text


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Exceptions for parameters whose name matches a pattern such as ``*.bias``; the last matching rule counts.

    Args:
        match: patterns of names.
        decay_scale: factor of ``optimizer.weight_decay``, 0 for none and 1 for all of it, regardless of ``decay_1d``.
        lr_scale: factor of the learning rate, in addition to ``layer_decay``.
    """

    match: Many[Text]
    decay_scale: NotNegative | None = None
    lr_scale: NotNegative | None = None

    def __post_init__(self) -> None:
        if self.decay_scale is None and self.lr_scale is None:
            raise InputError(f"the rule for {', '.join(self.match)} must have `decay_scale` or `lr_scale`")


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The optimizer and its parameter groups.

    Args:
        name: in timm's names: ``sgd`` has Nesterov momentum, ``momentum`` the plain one; ``adamw``, ``lamb``, …
        lr: learning rate, for a batch of ``lr_for_batch`` and proportional to the batch size; for every batch size if
            ``lr_for_batch`` is null.
        momentum: of optimizers that have one; ``betas`` and ``eps`` likewise, the optimizer's defaults unless given.
        weight_decay: of every parameter except those excluded by ``decay_1d`` and the rules.
        decay_1d: decay biases and other parameters of one dimension, such as the scales of norms, too.
        rules: exceptions by name.
        layer_decay: factor of the learning rate from each depth of the network to the one before it.
        clip_grad: largest norm of the gradient.
    """

    name: Text = "sgd"
    lr: Positive = 0.1
    lr_for_batch: Count | None = None
    momentum: Rate = 0.9
    betas: Pair[Rate] | None = None
    eps: Positive | None = None
    weight_decay: NotNegative = 1e-4
    decay_1d: Flag = False
    rules: Many[Rule] = ()
    layer_decay: Share | None = None
    clip_grad: Positive | None = None


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate over time; lengths are in epochs.

    Args:
        name: ``cosine`` and ``linear`` decay to ``min_lr``; ``step`` multiplies by ``gamma`` at each milestone.
        epochs: length of the run.
        warmup_epochs: length of the linear warm-up from ``warmup_lr``.
        warmup_prefix: start the decay after the warm-up; by default the warm-up replaces its first part.
        warmup_inclusive: reach the full rate in the last step of the warm-up, instead of the first one after it.
        min_lr: rate at the end.
        milestones, gamma: of ``step``.
        per: change the rate with every ``update`` or every ``epoch``.
    """

    name: Literal["cosine", "step", "linear", "constant"] = "cosine"
    epochs: Count = 100
    warmup_epochs: NotNegative = 0.0
    warmup_lr: NotNegative = 0.0
    warmup_prefix: Flag = False
    warmup_inclusive: Flag = False
    min_lr: NotNegative = 0.0
    milestones: Many[Positive] = ()
    gamma: Positive = 0.1
    per: Literal["update", "epoch"] = "update"

    def __post_init__(self) -> None:
        if self.warmup_epochs >= self.epochs:
            raise InputError(
                f"`schedule.warmup_epochs` must be less than schedule.epochs={self.epochs}, got {self.warmup_epochs:g}"
            )
        milestones = list(self.milestones)
        if bool(milestones) != (self.name == "step"):
            raise InputError(
                f"`schedule.milestones` must be given for schedule.name=step, and only then; got {milestones} with "
                f"schedule.name={self.name}"
            )
        if milestones != sorted(set(milestones)) or max(milestones, default=0) >= self.epochs:
            raise InputError(
                f"`schedule.milestones` must increase and be less than schedule.epochs={self.epochs}, got {milestones}"
            )


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The loss.

    Args:
        smoothing: label smoothing, as the fraction of a uniform distribution.
        auxiliary: weight of each auxiliary classifier, if the network has any.
        custom_l2: RepVGG's penalty on the collapsed kernels, instead of weight decay of the kernels of the branches.
    """

    smoothing: Rate = 0.0
    auxiliary: NotNegative = 0.1
    custom_l2: Flag = False


@dataclass(frozen=True, kw_only=True)
class Ema:
    """A moving average of the weights, which is evaluated and deployed in place of the weights.

    Args:
        decay: fraction of the old average kept at each update.
        every: steps per update.
        from_epoch: until this epoch the average is the weights themselves.
        per_image: 1 − decay is for one image in one epoch: multiply it by the batch size and ``every``, and divide it
            by the number of epochs.
        warmup: start with a small decay that grows, as in timm.
    """

    decay: Rate = 0.9999
    every: Count = 1
    from_epoch: NotNegative = 0.0
    per_image: Flag = False
    warmup: Flag = False


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the run is carried out; little of it changes what is learned.

    Args:
        precision: mixed precision, or ``no`` for float32.
        accumulate: parts of a batch whose gradients are accumulated, to save memory.
        sync_norm: compute the statistics of batch norms over all processes.
        channels_last: use the channels_last memory format for images and kernels.
        compile: run the network through ``torch.compile``.
        checkpointing: recompute activations in the backward pass instead of storing them.
        cheaper: ``merged`` computes branches of blocks from fewer convolutions, see ``fuse_branches_in_training``.
        log_every: steps per line of metrics.
        save_every: steps per checkpoint; one checkpoint an epoch unless given.
        keep: number of checkpoints to keep, besides the best weights.
    """

    precision: Literal["no", "bf16", "fp16"] = "no"
    accumulate: Count = 1
    sync_norm: Flag = False
    channels_last: Flag = False
    compile: Flag = False
    checkpointing: Flag = False
    cheaper: Literal["merged"] | None = None
    log_every: Count = 50
    save_every: Count | None = None
    keep: Count = 1
