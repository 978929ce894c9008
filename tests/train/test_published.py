"""Each recipe says what its authors published, the learning rate at every time included.

The figures are written here a second time, from the papers and the published scripts, not from the recipes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from unbranch.models.registry import MODELS
from unbranch.train.optimise import make_optimizer, make_schedule
from unbranch.train.recipe import Recipe, list_recipes, load_recipe, recipe_names
from unbranch.train.settings import Model

SGD = {"optimizer.name": "momentum", "optimizer.momentum": 0.9, "optimizer.lr_for_batch": None}
BIAS, DEPTH = (("*bias",), None, 2.0), (("*.depthwise.*",), 0.0, None)
CAFFE = {**SGD, "optimizer.decay_1d": True, "optimizer.rules": (BIAS, DEPTH)}
RESIZED = {"augment.crop": "resize", "augment.scale": (0.08, 1.0), "augment.ratio": (0.75, 4 / 3), "augment.flip": True}
LARGE = {**RESIZED, "data.image_size": 224, "augment.mean": None, "augment.std": None}
SMALL = {
    "augment.crop": "pad", "augment.padding": 4, "augment.padding_mode": "constant", "augment.flip": True,
    "augment.mean": (0.5,), "augment.std": (0.5,), "data.image_size": 32, "evaluate.crop_pct": 1.0,
}  # fmt: skip
WEAK = {
    "augment.auto": None, "augment.color_jitter": None, "augment.lighting": 0, "augment.erasing": 0,
    "augment.mixup": 0, "augment.cutmix": 0, "loss.smoothing": 0,
}  # fmt: skip
CROPPED = {"evaluate.crop_pct": 0.875, "evaluate.squash": False, "evaluate.size": None}


def acnet(name: str, decay: float, batch: int, lr: float, epochs: int, init: float) -> dict[str, Any]:
    return {
        **CAFFE, **WEAK, "model.name": name, "model.block": "acb", "optimizer.weight_decay": decay,
        "data.batch_size": batch, "optimizer.lr": lr, "schedule.epochs": epochs, "schedule.name": "cosine",
        "schedule.warmup_epochs": 0, "schedule.min_lr": 0, "block.init": init, "ema": None,
    }  # fmt: skip


DBB = {**acnet("resnet18", 1e-4, 256, 0.1, 120, 1), **LARGE, **CROPPED, "model.block": "dbb"}
REPVGG = {
    **SGD, **WEAK, **LARGE, "model.name": "repvgg_a0", "data.batch_size": 256, "optimizer.lr": 0.1,
    "optimizer.weight_decay": 1e-4, "optimizer.decay_1d": False,
    "optimizer.rules": ((("*identity.bn.weight",), 1.0, None),),
    "schedule.name": "cosine", "schedule.epochs": 120, "schedule.warmup_epochs": 0, "schedule.min_lr": 0,
    "evaluate.crop_pct": 1.0, "ema": None,
}  # fmt: skip
REPVGG_300 = {
    **REPVGG, "optimizer.name": "sgd", "optimizer.lr_for_batch": 256, "schedule.epochs": 300,
    "schedule.warmup_epochs": 5, "schedule.warmup_lr": 0, "loss.smoothing": 0.1,
}  # fmt: skip
REPLK = {
    **LARGE, **CROPPED, "model.name": "replknet_31b", "model.drop_path": 0.5, "data.batch_size": 2048,
    "optimizer.name": "adamw", "optimizer.lr": 4e-3, "optimizer.weight_decay": 0.05, "optimizer.decay_1d": False,
    "optimizer.rules": (), "optimizer.layer_decay": None, "schedule.name": "cosine", "schedule.epochs": 300,
    "schedule.warmup_epochs": 10, "schedule.warmup_lr": 0, "schedule.min_lr": 1e-6,
    "augment.auto": "rand-m9-mstd0.5-inc1", "augment.color_jitter": None, "augment.erasing": 0.25,
    "augment.erasing_mode": "pixel", "augment.mixup": 0.8, "augment.cutmix": 1.0, "augment.interpolation": "bicubic",
    "loss.smoothing": 0.1, "evaluate.interpolation": "bicubic", "ema.decay": 0.9999, "ema.every": 1,
    "training.sync_norm": True, "training.checkpointing": True, "model.pretrained": None,
}  # fmt: skip
REPLK_TUNED = {
    **REPLK, "optimizer.lr": 4e-4, "schedule.epochs": 30, "optimizer.weight_decay": 1e-8, "schedule.warmup_epochs": 1,
    "augment.mixup": 0, "augment.cutmix": 0, "optimizer.layer_decay": 0.7, "model.drop_path": 0.2,
    "model.pretrained": "required",
}  # fmt: skip
WARPED = {
    **REPLK_TUNED, "data.image_size": 384, "evaluate.crop_pct": 1.0, "evaluate.squash": True, "model.drop_path": 0.3,
    "schedule.min_lr": 3e-4,
}  # fmt: skip
REPGHOST = {
    **LARGE, **CROPPED, "model.name": "repghostnet_100", "model.drop_rate": 0.2, "optimizer.name": "sgd",
    "optimizer.momentum": 0.9, "optimizer.weight_decay": 1e-5, "optimizer.decay_1d": False, "optimizer.rules": (),
    "data.batch_size": 1024, "optimizer.lr": 0.6, "schedule.name": "cosine", "schedule.min_lr": 1e-5,
    "schedule.epochs": 300, "schedule.warmup_epochs": 5, "schedule.warmup_lr": 1e-4, "training.precision": "fp16",
    "ema.decay": 0.9999, "loss.smoothing": 0.1, "augment.color_jitter": (0.4, 0.4, 0.4), "augment.erasing": 0.2,
    "augment.erasing_mode": "pixel", "augment.interpolation": "random", "augment.auto": None, "augment.mixup": 0,
}  # fmt: skip

RESREP = {
    **SGD, "optimizer.lr": 0.01, "optimizer.weight_decay": 1e-4, "optimizer.rules": (BIAS,), "schedule.name": "cosine",
    "schedule.epochs": 480, "schedule.min_lr": 0.0, "model.pretrained": "required", "prune.metric": "macs",
    "prune.layers": "internal", "prune.strength": 1e-4, "prune.masked_strength": 1e-4, "prune.stop_when_met": False,
    "prune.momentum": 0.99, "prune.warmup_epochs": 5, "prune.interval": 200,
    "prune.granularity": 4, "prune.minimum": 1, "prune.multiple": 1, "prune.threshold": 1e-5, "prune.masked": False,
}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "acnet-imagenet": {**acnet("resnet18", 1e-4, 256, 0.1, 100, 1), **LARGE, **CROPPED},
    "acnet-cifar": {**acnet("vgg16_cifar", 1e-4, 128, 0.1, 400, 0.333), **SMALL},
    "acnet-cifar-quick": {**acnet("cifar_quick", 1e-4, 128, 0.1, 150, 0.333), **SMALL},
    "acnet-cifar-resnet56": {**acnet("resnet56_cifar", 1e-4, 128, 0.2, 400, 0.333), **SMALL},
    "acnet-cifar-wrn": {**acnet("wrn_16_8", 5e-4, 128, 0.1, 400, 0.333), **SMALL, "block.where": ("stem.*",)},
    "dbb": {**DBB, "augment.color_jitter": (0.4, 0, 0.4, 0.4), "augment.lighting": 0.1},
    "dbb-mobile": {**DBB, "model.name": "mobilenet_v1"},
    "repvgg": REPVGG,
    "repvgg-300": REPVGG_300,
    "repvggplus": {
        **REPVGG_300, "model.name": "repvggplus_l2pse", "optimizer.weight_decay": 4e-5, "data.image_size": 256,
        "evaluate.size": 320, "augment.auto": "raug15", "augment.mixup": 0.2, "loss.auxiliary": 0.1,
        "loss.custom_l2": False,
    },
    "repmlpnet": {
        **RESIZED, "model.name": "repmlpnet_t224", "data.image_size": None, "optimizer.name": "adamw",
        "optimizer.eps": 1e-8, "optimizer.betas": (0.9, 0.999), "optimizer.lr": 1e-3, "optimizer.lr_for_batch": 256,
        "data.batch_size": 32 * 8, "optimizer.weight_decay": 0.1, "optimizer.decay_1d": False, "optimizer.rules": (),
        "schedule.name": "cosine", "schedule.epochs": 100, "schedule.warmup_epochs": 10, "schedule.warmup_lr": 5e-7,
        "schedule.min_lr": 0, "optimizer.clip_grad": 5.0, "loss.smoothing": 0.1, "augment.auto": "raug15",
        "augment.mixup": 0.4, "augment.cutmix": 1.0, "evaluate.crop_pct": 1.0,
    },
    "replknet": REPLK,
    "replknet-22k": {
        **REPLK, "schedule.epochs": 90, "schedule.warmup_epochs": 5, "data.batch_size": 4096, "model.drop_path": 0.1,
        "ema": None, "ema.decay": None, "ema.every": None,
    },
    "replknet-finetune": REPLK_TUNED,
    "replknet-finetune-384": WARPED,
    "replknet-finetune-1k-384": {**WARPED, "model.drop_path": 0.8, "schedule.min_lr": 1e-6},
    "repghost": REPGHOST,
    "repghost-large": {
        **REPGHOST, "model.name": "repghostnet_130", "augment.auto": "rand-m9-mstd0.5", "augment.color_jitter": None,
    },
    "resrep-base": {
        **SGD, **WEAK, **SMALL, "model.name": "resnet56_cifar", "model.block": None, "data.batch_size": 64,
        "optimizer.lr": 0.1, "optimizer.weight_decay": 1e-4, "optimizer.decay_1d": False, "optimizer.rules": (BIAS,),
        "schedule.name": "step", "schedule.epochs": 240, "schedule.milestones": (120, 180), "schedule.gamma": 0.1,
        "schedule.warmup_epochs": 0,
    },
    "resrep-cifar": {
        **RESREP, **WEAK, **SMALL, "model.name": "resnet56_cifar", "data.batch_size": 64, "prune.target": 0.471,
    },
    "resrep-imagenet": {
        **RESREP, **RESIZED, "model.name": "resnet50", "data.batch_size": 256, "schedule.epochs": 180,
        "prune.target": 0.455,
    },
}  # fmt: skip
OURS = {"digits", "fashion-mnist", "resrep"}


def told(recipe: Recipe, path: str) -> Any:
    value: Any = recipe
    for part in path.split("."):
        value = None if value is None else getattr(value, part)
    if path == "optimizer.rules":
        return tuple((rule.match, rule.decay_scale, rule.lr_scale) for rule in value)
    return value


def test_every_recipe_of_the_package_is_published_or_ours() -> None:
    assert set(recipe_names()) == {*PUBLISHED, *OURS}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipe_has_the_published_figures(name: str) -> None:
    recipe = load_recipe(name)
    assert {path: told(recipe, path) for path in PUBLISHED[name]} == PUBLISHED[name]


def test_every_recipe_says_what_it_is_for_and_where_it_is_from() -> None:
    listed = list_recipes()
    assert len({recipe.about for recipe in listed}) == len(listed)
    assert all(
        "arXiv:" in recipe.source or "github.com" in recipe.source for recipe in listed if recipe.name not in OURS
    )


@pytest.mark.parametrize("name", recipe_names())
def test_networks_of_recipes_are_in_the_zoo(name: str) -> None:
    assert load_recipe(name).model.name in MODELS


# --- the learning rate; as published, each in its own words

STEPS = 20  # an epoch
Rate = Callable[[int], float]


def half_cosine(share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * share))


def annealed(lr: float, epochs: int) -> Rate:
    """torch's CosineAnnealingLR, stepped every iteration."""
    return lambda t: lr * half_cosine(t / (epochs * STEPS))


def hidden_warmup(lr: float, epochs: int, warmup: int, start: float) -> Rate:
    """timm's cosine in updates, in the scripts that came from Swin's."""
    w = warmup * STEPS
    return lambda t: start + t * (lr - start) / w if t < w else annealed(lr, epochs)(t)


def precomputed(lr: float, epochs: int, warmup: int, least: float) -> Rate:
    """ConvNeXt's table of rates: a linspace and a cosine, one behind the other."""
    w = warmup * STEPS
    length = epochs * STEPS - w
    ramp = torch.linspace(0, lr, w, dtype=torch.float64).tolist()
    decline = [least + (lr - least) * half_cosine(i / length) for i in range(length)]
    return [*ramp, *decline].__getitem__


def by_epoch(lr: float, epochs: int, warmup: int, start: float, least: float) -> Rate:
    """timm's training script, whose schedule steps once an epoch."""

    def rate(t: int) -> float:
        e = t // STEPS
        return start + e * (lr - start) / warmup if e < warmup else least + (lr - least) * half_cosine(e / epochs)

    return rate


SCHEDULES: dict[str, Rate] = {
    "resrep-cifar": lambda t: 0.01 * half_cosine(t / (480 * STEPS)),
    "resrep-imagenet": lambda t: 0.01 * half_cosine(t / (180 * STEPS)),
    "acnet-imagenet": annealed(0.1, 100),
    "acnet-cifar": annealed(0.1, 400),
    "acnet-cifar-quick": annealed(0.1, 150),
    "acnet-cifar-resnet56": annealed(0.2, 400),
    "acnet-cifar-wrn": annealed(0.1, 400),
    "dbb": annealed(0.1, 120),
    "dbb-mobile": annealed(0.1, 120),
    "repvgg": annealed(0.1, 120),
    "repvgg-300": hidden_warmup(0.1, 300, 5, 0),
    "repvggplus": hidden_warmup(0.1, 300, 5, 0),
    "repmlpnet": hidden_warmup(1e-3, 100, 10, 5e-7),
    "replknet": precomputed(4e-3, 300, 10, 1e-6),
    "replknet-22k": precomputed(4e-3, 90, 5, 1e-6),
    "replknet-finetune": precomputed(4e-4, 30, 1, 1e-6),
    "replknet-finetune-384": precomputed(4e-4, 30, 1, 3e-4),
    "replknet-finetune-1k-384": precomputed(4e-4, 30, 1, 1e-6),
    "repghost": by_epoch(0.6, 300, 5, 1e-4, 1e-5),
    "repghost-large": by_epoch(0.6, 300, 5, 1e-4, 1e-5),
    "resrep-base": lambda t: 0.1 * (1, 0.1, 0.01)[(t >= 120 * STEPS) + (t >= 180 * STEPS)],
}


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize("name", PUBLISHED)
def test_learning_rate_is_the_published_one_at_every_time(name: str) -> None:
    recipe = load_recipe(name, ["optimizer.layer_decay=null", "optimizer.rules=[{match: '*bias', decay_scale: 0}]"])
    optimizer = make_optimizer(nn.Linear(2, 2), recipe, recipe.data.batch_size)
    schedule = make_schedule(optimizer, recipe, STEPS)
    warmup, total = int(recipe.schedule.warmup_epochs * STEPS), recipe.schedule.epochs * STEPS
    around = {0, 1, warmup - 1, warmup, warmup + 1, total // 2 - 1, total // 2, 3 * total // 4, total - 1} - {-1}
    assert rates(optimizer) == pytest.approx([SCHEDULES[name](0)] * 2, abs=1e-15)
    for step in sorted(around, reverse=True):  # in no order of theirs: a rate depends on the step alone
        schedule.set(step)
        assert rates(optimizer) == pytest.approx([SCHEDULES[name](step)] * 2, rel=1e-9, abs=1e-15), step


def test_rate_is_proportional_to_the_batch_where_the_published_script_says_so() -> None:
    for name, factor in {"repvgg": 1, "repvgg-300": 2, "repmlpnet": 2, "replknet": 1}.items():
        recipe = load_recipe(name)
        optimizer = make_optimizer(nn.Linear(2, 2), recipe, 512)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(factor * recipe.optimizer.lr)


def test_recipes_are_values_that_are_compared() -> None:
    assert load_recipe("dbb") == load_recipe("dbb")
    assert load_recipe("dbb") != load_recipe("dbb", ["seed=1"])
    assert Recipe(model=Model(name="repvgg_a0")) == Recipe(model=Model(name="repvgg_a0"))
