"""The whole story on real images: train with branches, collapse, prove, time, export."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from unbranch.convert import collapse
from unbranch.deploy import compare_latency, require_onnx, write_onnx
from unbranch.display import Account
from unbranch.errors import InputError
from unbranch.files import all_or_nothing
from unbranch.train import Data, Recipe, Watch, load_recipe, open_data, train
from unbranch.train.folder import LAST
from unbranch.train.job import validation_loader
from unbranch.weights import load, save

BLOCKS = ("acb", "dbb", "repvgg")
EPOCHS = {"digits": 20, "fashion-mnist": 1}
BATCHES = (1, 64)
FILES = ("deploy.safetensors", "deploy.onnx", "account.json")


@dataclass(frozen=True)
class Settings:
    """What to show; ``epochs`` is the data set's usual number unless given."""

    block: str = "dbb"
    data: str = "digits"
    epochs: int | None = None
    seed: int = 0
    out: Path = Path("demo-out")
    data_dir: Path | None = None


def run(settings: Settings, watch: Watch) -> Account:
    """Train, collapse, prove, time and export; writes weights, ONNX and the account to ``settings.out``.

    Raises UnbranchError, and writes nothing, if the two forms are not the same function.
    """
    _check(settings)
    recipe = _recipe(settings)
    data = open_data(settings.data if settings.data_dir is None else f"{settings.data}:{settings.data_dir}")
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        result = train(recipe, data, Path(folder, "run"), watch=watch)
        trained = time.perf_counter()
        if result is None:
            raise InputError("the demo is for one process")
        network, images = load(Path(folder, "run", LAST)), _images(recipe, data)
    collapsing = time.perf_counter()
    plain = collapse(network, images[:1])
    collapsed = time.perf_counter()
    latency = {size: compare_latency(network, plain, images[:size]) for size in BATCHES}
    settings.out.mkdir(parents=True, exist_ok=True)
    files = tuple(settings.out / name for name in FILES)
    with all_or_nothing(*files) as (weights, onnx, story):
        save(plain, weights)
        account = Account(
            block=settings.block,
            data=settings.data,
            seed=settings.seed,
            train_images=len(data.train),
            epochs=recipe.schedule.epochs,
            train_seconds=trained - start,
            collapse_seconds=collapsed - collapsing,
            proof=result.proof,
            report=result.report,
            latency=latency,
            onnx=replace(write_onnx(plain, images[:1], onnx), path=files[1]),
            files=files,
        )
        story.write_text(json.dumps(account.to_dict(), indent=2) + "\n")
    return account


def _recipe(settings: Settings) -> Recipe:
    epochs = EPOCHS[settings.data] if settings.epochs is None else settings.epochs
    changes = [f"schedule.epochs={epochs}", f"schedule.warmup_epochs={epochs / 10}"]
    return load_recipe(settings.data, [f"model.block={settings.block}", f"seed={settings.seed}", *changes])


def _images(recipe: Recipe, data: Data) -> Tensor:
    """As many validation images as the largest batch has, ``(B, C, H, W)``."""
    batch: Tensor = next(iter(validation_loader(recipe, data)))["image"]
    return batch[: max(BATCHES)]


def _check(settings: Settings) -> None:
    """Whatever can be known to fail before a minute of training."""
    if settings.data not in EPOCHS:
        raise InputError(f"data {settings.data!r} is none of {', '.join(EPOCHS)}")
    if settings.block not in BLOCKS:
        raise InputError(f"block {settings.block!r} is none of {', '.join(BLOCKS)}")
    if settings.epochs is not None and settings.epochs < 1:
        raise InputError(f"training needs an epoch; got {settings.epochs}")
    if settings.out.exists() and not settings.out.is_dir():
        raise InputError(f"{settings.out} is a file, not a folder")
    require_onnx()
