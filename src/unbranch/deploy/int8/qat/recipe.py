"""Settings of quantisation-aware training: those of the network's own run, or settings that fit most networks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from unbranch.deploy.preprocess import CROP, statistics_for
from unbranch.deploy.samples import RunImages, data_of_run
from unbranch.errors import InputError
from unbranch.models import input_size

RATE = 1e-2  # of a run's largest learning rate, with which its collapsed network goes on
PADDING = 8  # images are shifted by up to this part of their side


@dataclass(frozen=True)
class TrainingData:
    """Labelled images, and the settings with which a network is trained on them.

    Args:
        recipe: of ``unbranch.train``.
        data: images for training and validation.
    """

    recipe: Any
    data: Any


def training_data(source: Any, model: nn.Module, epochs: int, seed: int) -> TrainingData:
    """Return the images and settings for training on what was given to ``deploy``.

    Args:
        source: the directory of a run, the name of a data set, or a folder of classes.
        model: for the preprocessing, unless it is that of a run.
        epochs: number of epochs.
        seed: of everything random.

    Raises:
        InputError: if it is something else, or can't be read.
    """
    from unbranch.train import open_data
    from unbranch.train.run_directory import RECIPE

    if isinstance(source, str | Path) and (Path(source).expanduser() / RECIPE).is_file():
        source = RunImages(Path(source).expanduser())
    if isinstance(source, RunImages):
        recipe, data = data_of_run(source)
        return TrainingData(_continued(recipe, data, epochs, seed), data)
    if not isinstance(source, str | Path):
        raise InputError(
            "`epochs` needs training images with labels: `data` must be the directory of a run, the name of a data "
            f"set or a folder of classes, got {type(source).__name__}"
        )
    data = open_data(source)
    return TrainingData(_usual(data, model, epochs, seed), data)


def _continued(recipe: Any, data: Any, epochs: int, seed: int) -> Any:
    """Return the recipe of a run for its collapsed network: its augmentation and optimizer, at a small rate.

    Images have the size of evaluation, for which the network is exported. Weights aren't averaged, since that would
    take more steps than there are.
    """
    from unbranch.train.settings import BlockSettings, Model, Schedule, Training
    from unbranch.train.transforms import image_size

    size = recipe.evaluate.size or image_size(recipe, data)
    batch = min(recipe.data.batch_size, max(2, len(data.train) // 2 * 2))
    return replace(
        recipe,
        about="",
        source="",
        model=Model(name=recipe.model.name, num_classes=recipe.model.num_classes),
        data=replace(recipe.data, image_size=size, batch_size=batch),
        optimizer=replace(recipe.optimizer, lr=RATE * recipe.optimizer.lr, rules=(), layer_decay=None),
        schedule=Schedule(name="cosine", epochs=epochs),
        loss=replace(recipe.loss, custom_l2=False),
        ema=None,
        block=BlockSettings(),
        prune=None,
        training=Training(accumulate=recipe.training.accumulate, log_every=recipe.training.log_every),
        seed=seed,
    )


def _usual(data: Any, model: nn.Module, epochs: int, seed: int) -> Any:
    """Return a recipe for a network without a run, with the preprocessing that ``deploy`` evaluates it with."""
    from unbranch.train import Recipe
    from unbranch.train.settings import Augment, DataSettings, Evaluate, Model, Optimizer, Schedule, Training

    _, rows, columns = input_size(model)
    known = getattr(model, "pretrained_cfg", None) or {}
    same = data.size == (rows, columns)
    mean, std = map(tuple, statistics_for(model, (data.channels, data.size, data.mean, data.std)))
    crop: dict[str, Any] = {"crop": "resize", "scale": (0.25, 1.0)}
    if same:
        crop = {"crop": "pad", "padding": max(1, min(rows, columns) // PADDING)}
    return Recipe(
        model=Model(name=type(model).__name__),
        data=DataSettings(batch_size=max(2, min(64, len(data.train))), workers=0, image_size=(rows, columns)),
        augment=Augment(**crop, mean=mean, std=std),
        evaluate=Evaluate(crop_pct=1.0 if same else known.get("crop_pct") or CROP),
        optimizer=Optimizer(name="momentum", lr=2e-3),
        schedule=Schedule(name="cosine", epochs=epochs),
        training=Training(log_every=20),
        seed=seed,
    )
