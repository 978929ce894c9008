"""What a recipe says of learning: optimiser, schedule, loss, average, and how the run is carried out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unbranch.errors import InputError
from unbranch.train.settings.bounds import Count, NotNegative, Positive, Rate, Share


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Exceptions for parameters whose name matches a pattern such as ``*.bias``; the last rule that matches counts.

    Args:
        match: patterns of names.
        decay_scale: factor of ``optimizer.weight_decay``, 0 for none and 1 for all of it, whatever ``decay_1d`` says.
        lr_scale: factor of the learning rate, on top of ``layer_decay``.
    """

    match: tuple[str, ...]
    decay_scale: NotNegative | None = None
    lr_scale: NotNegative | None = None

    def __post_init__(self) -> None:
        if self.decay_scale is None and self.lr_scale is None:
            raise InputError(f"the rule for {', '.join(self.match)} needs decay_scale or lr_scale")


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Who moves the parameters, and how far.

    Args:
        name: in timm's words: ``sgd`` is Nesterov's, ``momentum`` the plain one, ``adamw``, ``lamb``, …
        lr: for a batch of ``lr_for_batch``, and proportional to the batch; whatever the batch if that is null.
        momentum: of those that have one; ``betas`` and ``eps`` likewise, the optimizer's own unless given.
        weight_decay: of every parameter but those that ``decay_1d`` and the rules leave out.
        decay_1d: decay biases and other parameters of one dimension, the scales of norms, too.
        rules: exceptions by name.
        layer_decay: factor of the learning rate from each depth of the network to the one before it.
        clip_grad: largest norm of the gradient.
    """

    name: str = "sgd"
    lr: Positive = 0.1
    lr_for_batch: Count | None = None
    momentum: Rate = 0.9
    betas: tuple[Rate, Rate] | None = None
    eps: Positive | None = None
    weight_decay: NotNegative = 1e-4
    decay_1d: bool = False
    rules: tuple[Rule, ...] = ()
    layer_decay: Share | None = None
    clip_grad: Positive | None = None


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate over time.

    Args:
        name: ``cosine`` and ``linear`` go down to ``min_lr``; ``step`` multiplies by ``gamma`` at each milestone.
        epochs: of the run.
        warmup_epochs: during which the rate climbs evenly from ``warmup_lr``.
        warmup_prefix: the decline begins behind the warm-up, in place of being hidden by it.
        warmup_inclusive: the last step of the warm-up has the full rate, in place of the first one behind it.
        min_lr: at the end.
        milestones, gamma: of ``step``.
        per: the rate changes with every update, or stays for an epoch.
    """

    name: Literal["cosine", "step", "linear", "constant"] = "cosine"
    epochs: Count = 100
    warmup_epochs: NotNegative = 0.0
    warmup_lr: NotNegative = 0.0
    warmup_prefix: bool = False
    warmup_inclusive: bool = False
    min_lr: NotNegative = 0.0
    milestones: tuple[Positive, ...] = ()
    gamma: Positive = 0.1
    per: Literal["update", "epoch"] = "update"

    def __post_init__(self) -> None:
        if self.warmup_epochs >= self.epochs:
            raise InputError(
                f"schedule.warmup_epochs is less than schedule.epochs, {self.epochs}; got {self.warmup_epochs:g}"
            )
        if bool(self.milestones) != (self.name == "step"):
            raise InputError(
                f"schedule.milestones are for schedule.name=step, which needs them; got {self.name} and "
                f"{list(self.milestones)}"
            )
        if list(self.milestones) != sorted(set(self.milestones)) or max(self.milestones, default=0) >= self.epochs:
            raise InputError(
                f"schedule.milestones rise and lie before the end, {self.epochs}; got {list(self.milestones)}"
            )


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What is made small.

    Args:
        smoothing: of labels, by that share of a uniform distribution.
        auxiliary: weight of each auxiliary classifier, where the network has any.
        custom_l2: RepVGG's penalty on the kernels that are served, in place of the decay of those they come from.
    """

    smoothing: Rate = 0.0
    auxiliary: NotNegative = 0.1
    custom_l2: bool = False


@dataclass(frozen=True, kw_only=True)
class Ema:
    """A moving average of the weights, which is then judged and served.

    Args:
        decay: share of the old average that stays at each update.
        every: steps to one update.
        from_epoch: until then the average is the weights themselves.
        per_image: 1 − decay is for one image an epoch: it is multiplied by the batch and ``every``, divided by epochs.
        warmup: begin with a small decay that grows, as timm does.
    """

    decay: Rate = 0.9999
    every: Count = 1
    from_epoch: NotNegative = 0.0
    per_image: bool = False
    warmup: bool = False


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the run is carried out; little of it changes what is learned.

    Args:
        precision: of the arithmetic, ``no`` for single precision throughout.
        accumulate: parts that a batch is cut into, for want of memory.
        sync_norm: statistics of batch norms over all processes.
        channels_last: memory format of images and kernels.
        compile: the network, by ``torch.compile``.
        checkpointing: compute activations twice rather than keep them.
        cheaper: ``merged`` computes branches of blocks from fewer convolutions, see ``unbranch.train_cheaper``.
        log_every: steps to one line of metrics.
        save_every: steps to one checkpoint; one an epoch unless given.
        keep: checkpoints that are kept, beside the best one.
    """

    precision: Literal["no", "bf16", "fp16"] = "no"
    accumulate: Count = 1
    sync_norm: bool = False
    channels_last: bool = False
    compile: bool = False
    checkpointing: bool = False
    cheaper: Literal["merged"] | None = None
    log_every: Count = 50
    save_every: Count | None = None
    keep: Count = 1
