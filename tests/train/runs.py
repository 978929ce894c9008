"""Short runs on the digits, and what they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from unbranch.train.data import open_data
from unbranch.train.engine import train
from unbranch.train.recipe import Recipe, load_recipe
from unbranch.train.result import TrainingResult
from unbranch.train.run_directory import LAST, METRICS

SMALL = (
    "model.name=resnet8_cifar", "model.options.width=4", "model.block=acb", "model.drop_path=0.1", "data.batch_size=96",
    "data.workers=0", "schedule.epochs=2", "schedule.warmup_epochs=0.5",
    "training.log_every=1", "training.save_every=4",
    "ema.decay=0.9", "augment.mixup=0.2",
)  # fmt: skip


def normless(num_classes: int, in_channels: int, width: int) -> nn.Module:
    """A network whose step is the sum of what each image says."""
    layers = (nn.Conv2d(in_channels, width, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(9 * width, num_classes))
    return nn.Sequential(*layers)


def small(*changes: str) -> Recipe:
    """Fourteen steps an epoch, with everything that draws at random: augmentation, mixing, dropped paths, averages."""
    return load_recipe("digits", [*SMALL, *changes])


def run(out: Path, *changes: str, **options: Any) -> TrainingResult | None:
    return train(small(*changes), open_data("digits"), out, **options)


def lines(out: Path) -> list[dict[str, Any]]:
    """Metrics without what depends on the clock."""
    found = [json.loads(line) for line in (out / METRICS).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("time", "images_per_second")} for line in found]


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in lines(out) if "loss" in line]


def assert_same_end(a: Path, b: Path) -> None:
    """Weights, averages, statistics and metrics are the same bits."""
    first, second = (load_file(path / LAST) for path in (a, b))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert lines(a) == lines(b)
