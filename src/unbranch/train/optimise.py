"""Parameter groups, optimizer, schedule and moving average of a recipe, on timm.

The learning rate of each group is a function of the step alone, so a resumed run has the same rates.
"""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any, cast

from torch import nn
from torch.optim import Optimizer

from unbranch.errors import InputError, nearest
from unbranch.extras import library
from unbranch.train.losses import penalised
from unbranch.train.recipe import Recipe


def parameter_groups(network: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Group the parameters that require a gradient by weight decay and learning rate.

    Each group has ``params``, their ``names``, ``weight_decay``, and ``lr_scale``, a factor of the scheduled rate.

    Raises:
        InputError: if no parameter requires a gradient, or ``optimizer.layer_decay`` is set and the network has no
            ``group_matcher``.
    """
    scale_of, apart = _depth_scales(network, recipe), set(penalised(network, recipe))
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        decay, lr_scale = _rates(recipe, name, parameter.ndim)
        decay = 0.0 if name in apart else decay * recipe.optimizer.weight_decay
        lr_scale *= scale_of(name)
        fresh = {"params": [], "names": [], "weight_decay": decay, "lr_scale": lr_scale}
        group = groups.setdefault((decay, lr_scale), fresh)
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise InputError("the network has no parameter that requires a gradient: there is nothing to train")
    return list(groups.values())


def make_optimizer(network: nn.Module, recipe: Recipe, batch: int) -> Optimizer:
    """Return the optimizer over the network's parameter groups.

    Args:
        batch: images per step, over all processes, which scale the rate if ``optimizer.lr_for_batch`` is set.

    Raises:
        InputError: if timm has no such optimizer, or this one doesn't have a given argument.
    """
    timm, settings = library("timm.optim", "train"), recipe.optimizer
    known = timm.list_optimizers()
    if settings.name not in known:
        raise InputError(
            f"`optimizer.name` must be an optimizer of timm, such as sgd, momentum or adamw, got {settings.name!r}"
            f"{nearest(settings.name, known)}"
        )
    optional = {"betas": settings.betas, "eps": settings.eps}
    given = {name: value for name, value in optional.items() if value is not None}
    taken = timm.get_optimizer_info(settings.name)
    for name in given:
        if not getattr(taken, f"has_{name}"):
            raise InputError(f"`optimizer.{name}` isn't an argument of {settings.name}: set it null")
    scale = batch / settings.lr_for_batch if settings.lr_for_batch else 1.0
    groups = parameter_groups(network, recipe)
    made = timm.create_optimizer_v2(
        groups, settings.name, lr=settings.lr * scale, weight_decay=settings.weight_decay,
        momentum=settings.momentum, **given,
    )  # fmt: skip
    return cast(Optimizer, made)


class LearningRates:
    """Sets the learning rate of each group of an optimizer; made by ``make_schedule``."""

    def __init__(self, scheduler: Any, update: Callable[[int], int]) -> None:
        self._scheduler, self._update = scheduler, update

    def set(self, step: int) -> None:
        """Set the rates of a step, counted from 0, in any order."""
        self._scheduler.step_update(self._update(step))


def make_schedule(optimizer: Optimizer, recipe: Recipe, steps_per_epoch: int) -> LearningRates:
    """Return the schedule of a run, on timm, and set the rates of the first step.

    Raises:
        InputError: if an epoch has no step.
    """
    settings = recipe.schedule
    if steps_per_epoch < 1:
        raise InputError("an epoch has no step: there are fewer images than data.batch_size")
    total, warmup = settings.epochs * steps_per_epoch, round(settings.warmup_epochs * steps_per_epoch)
    decline = total - warmup if settings.warmup_prefix else total
    timm = library("timm.scheduler", "train")
    steps: dict[str, Any] = {
        # timm multiplies one step before the milestone
        "decay_t": [round(at * steps_per_epoch) + 1 for at in settings.milestones],
        "decay_rate": settings.gamma,
    }
    choices: dict[str, tuple[Any, dict[str, Any]]] = {
        "cosine": (timm.CosineLRScheduler, {"t_initial": decline, "lr_min": settings.min_lr}),
        "linear": (timm.PolyLRScheduler, {"t_initial": decline, "lr_min": settings.min_lr, "power": 1.0}),
        "step": (timm.MultiStepLRScheduler, steps),
        "constant": (timm.MultiStepLRScheduler, steps),
    }
    make, arguments = choices[settings.name]
    scheduler = make(
        optimizer, **arguments, warmup_t=warmup, warmup_lr_init=settings.warmup_lr,
        warmup_prefix=settings.warmup_prefix, t_in_epochs=False,
    )  # fmt: skip
    if settings.warmup_inclusive and warmup > 1:
        scheduler.warmup_steps = [step * warmup / (warmup - 1) for step in scheduler.warmup_steps]
    length = steps_per_epoch if settings.per == "epoch" else 1
    rates = LearningRates(scheduler, lambda step: step - step % length)
    rates.set(0)
    return rates


def make_ema(network: nn.Module, recipe: Recipe, steps_per_epoch: int) -> Any:
    """Return timm's ``ModelEmaV3`` of the network, None without ``ema``; norm statistics are averaged, too.

    Call its ``update(network, step)`` after every step, counted from 1, for which ``updates_ema`` is true.
    """
    settings = recipe.ema
    if settings is None:
        return None
    apart = 1 - settings.decay
    if settings.per_image:
        apart = min(1.0, apart * recipe.data.batch_size * settings.every / recipe.schedule.epochs)
    return library("timm.utils", "train").ModelEmaV3(
        network,
        decay=1 - apart,
        update_after_step=round(settings.from_epoch * steps_per_epoch),
        use_warmup=settings.warmup,
    )


def updates_ema(recipe: Recipe, step: int) -> bool:
    """Whether the moving average is updated after this step, counted from 1."""
    return recipe.ema is not None and step % recipe.ema.every == 0


def _rates(recipe: Recipe, name: str, ndim: int) -> tuple[float, float]:
    """Return the factors of decay and learning rate of a parameter, without that of its depth."""
    flat = ndim <= 1 or name.rpartition(".")[2] == "bias"
    decay, lr_scale = (0.0 if flat and not recipe.optimizer.decay_1d else 1.0), 1.0
    for rule in recipe.optimizer.rules:
        if any(fnmatchcase(name, pattern) for pattern in rule.match):
            decay = decay if rule.decay_scale is None else rule.decay_scale
            lr_scale = lr_scale if rule.lr_scale is None else rule.lr_scale
    return decay, lr_scale


def _depth_scales(network: nn.Module, recipe: Recipe) -> Callable[[str], float]:
    """Return a function from a parameter's name to ``layer_decay`` to the power of its distance from the last depth."""
    factor = recipe.optimizer.layer_decay
    if factor is None:
        return lambda _: 1.0
    matcher = getattr(network, "group_matcher", None)
    if matcher is None:
        raise InputError(
            "`optimizer.layer_decay` needs a network that implements timm's group_matcher, and "
            f"{type(network).__name__} doesn't: set it null"
        )
    depths = library("timm.models", "train").group_parameters(network, matcher(coarse=False), reverse=True)
    last = max(depths.values())
    return lambda name: float(factor ** (last - depths[name]))
