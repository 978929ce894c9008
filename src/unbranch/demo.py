"""The whole story on real images: train with branches, collapse, prove, time, export."""

from __future__ import annotations

import copy
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from unbranch.collapse import Report, collapse
from unbranch.deploy import compare_latency, require_onnx, write_onnx
from unbranch.errors import InputError, UnbranchError
from unbranch.files import all_or_nothing
from unbranch.models import create, save
from unbranch.report import Account, Equality
from unbranch.train import Images, Recipe, accuracy, fit, load, predict
from unbranch.train.loop import OnStep

EXACT = 1e-10  # of the largest logit, in float64
BLOCKS = ("acb", "dbb", "repvgg")
EPOCHS = {"digits": 20, "fashion-mnist": 1}
BATCHES = (1, 64)
FILES = ("deploy.safetensors", "deploy.onnx", "account.json")
LARGE_IMAGE = 16  # pixels; larger ones enter at half the size


@dataclass(frozen=True)
class Settings:
    """What to show; ``epochs`` is the data set's usual number unless given."""

    block: str = "dbb"
    data: str = "digits"
    epochs: int | None = None
    seed: int = 0
    out: Path = Path("demo-out")
    data_dir: Path | None = None


def run(settings: Settings, on_step: OnStep) -> Account:
    """Train, collapse, prove, time and export; writes weights, ONNX and the account to ``settings.out``.

    Raises UnbranchError, and writes nothing, if the two forms are not the same function.
    """
    _check(settings)
    images = load(settings.data, settings.data_dir)
    arguments = _arguments(settings, images)
    epochs = EPOCHS[settings.data] if settings.epochs is None else settings.epochs
    recipe = Recipe(epochs=epochs, seed=settings.seed, channels_last=True)
    torch.manual_seed(settings.seed)
    network = create("resnet8_cifar", **arguments)

    start = time.perf_counter()
    fit(network, images, recipe, on_step)
    trained = time.perf_counter()
    plain = collapse(network, images.test_images[:1])
    collapsed = time.perf_counter()

    equality = prove(network, plain, images.test_images)
    latency = {size: compare_latency(network, plain, images.test_images[:size]) for size in BATCHES}
    settings.out.mkdir(parents=True, exist_ok=True)
    files = tuple(settings.out / name for name in FILES)
    with all_or_nothing(*files) as (weights, onnx, story):
        save(plain, weights)
        account = Account(
            block=settings.block,
            data=settings.data,
            seed=settings.seed,
            train_images=len(images.train_labels),
            epochs=epochs,
            train_seconds=trained - start,
            collapse_seconds=collapsed - trained,
            accuracy_before=accuracy(predict(network, images.test_images), images.test_labels),
            accuracy_after=accuracy(predict(plain, images.test_images), images.test_labels),
            equality=equality,
            report=cast(Report, plain.collapse_report),
            latency=latency,
            onnx=replace(write_onnx(plain, images.test_images[:1], onnx), path=files[1]),
            files=files,
        )
        story.write_text(json.dumps(account.to_dict(), indent=2) + "\n")
    return account


def prove(network: nn.Module, plain: nn.Module, images: Tensor) -> Equality:
    """Compare logits and classes of both forms on all images, exactly in float64 and as served in float32."""
    double = copy.deepcopy(network).double()
    exact = predict(double, images.double())
    merged = predict(collapse(double, images[:1].double()), images.double())
    ours, theirs = predict(network, images), predict(plain, images)
    equality = Equality(
        images=len(images),
        same_class=int((ours.argmax(1) == theirs.argmax(1)).sum()),
        float64=_relative(merged, exact),
        float32=_relative(theirs, ours),
        noise=_relative(ours, exact),
    )
    if not equality.float64 <= EXACT or not torch.equal(merged.argmax(1), exact.argmax(1)):
        raise UnbranchError(f"the collapsed network is another function: {equality.float64:.1e} away in float64")
    return equality


def _arguments(settings: Settings, images: Images) -> dict[str, Any]:
    large = images.test_images.shape[-1] > LARGE_IMAGE
    return {
        "block": settings.block,
        "num_classes": images.classes,
        "in_channels": images.channels,
        "stem_stride": 2 if large else 1,
    }


def _check(settings: Settings) -> None:
    """Whatever can be known to fail before a minute of training."""
    if settings.data not in EPOCHS:
        raise InputError(f"data {settings.data!r} is none of {', '.join(EPOCHS)}")
    if settings.block not in BLOCKS:
        raise InputError(f"block {settings.block!r} is none of {', '.join(BLOCKS)}")
    if settings.out.exists() and not settings.out.is_dir():
        raise InputError(f"{settings.out} is a file, not a folder")
    require_onnx()


def _relative(ours: Tensor, reference: Tensor) -> float:
    return float((ours.double() - reference.double()).abs().max() / reference.double().abs().max())
