"""The whole path on real images: train a network with branches, collapse it, verify, time and export it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from unbranch.convert import Report, collapse
from unbranch.deploy import Latency, OnnxFile, compare_latency, require_onnx, write_onnx
from unbranch.deprecation import RenamedAttribute, renamed_arguments, renamed_names
from unbranch.errors import InputError
from unbranch.files import all_or_nothing
from unbranch.render import Block, Paragraph, Renderable, Table, count, plain, written_files
from unbranch.train import Data, OnProgress, Recipe, load_recipe, open_data, train
from unbranch.train.context import validation_loader
from unbranch.train.evaluate import FormComparison
from unbranch.train.progress import ignore
from unbranch.train.run_directory import LAST
from unbranch.weights import load, save

BLOCKS = ("acb", "dbb", "repvgg")
EPOCHS = {"digits": 20, "fashion-mnist": 1}
BATCHES = (1, 64)
FILES = ("deploy.safetensors", "deploy.onnx", "account.json")


@dataclass(frozen=True)
class DemoSettings:
    """What to train, and where to write the results.

    Args:
        block: ``acb``, ``dbb`` or ``repvgg``.
        data: ``digits`` or ``fashion-mnist``.
        epochs: the default of the data set unless given.
        output: directory for weights, ONNX file and results.
        data_dir: directory with the files of the data set.
    """

    block: str = "dbb"
    data: str = "digits"
    epochs: int | None = None
    seed: int = 0
    output: str | Path = Path("demo-out")
    data_dir: str | Path | None = None

    out = RenamedAttribute("output")


@dataclass(frozen=True)
class DemoResult(Renderable):
    """The result of the demo; times are in seconds, with one latency for each batch size."""

    block: str
    data: str
    seed: int
    train_images: int
    epochs: int
    train_seconds: float
    collapse_seconds: float
    proof: FormComparison
    report: Report
    latency: dict[int, Latency]
    onnx: OnnxFile
    files: tuple[Path, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON, without the list of merges."""
        values: dict[str, Any] = plain(self)
        values["report"] = {"before": values["report"]["before"], "after": values["report"]["after"]}
        values["latency"] = {str(size): latency for size, latency in values["latency"].items()}
        return values

    def blocks(self) -> Iterator[Block]:
        epochs = "1 epoch" if self.epochs == 1 else f"{self.epochs} epochs"
        agrees = "" if self.onnx.max_rel is None else f"; ONNX Runtime agrees to {self.onnx.max_rel:.0e}"
        yield Paragraph(f"A small residual network of {self.block.upper()} blocks on {self.data}", "bold")
        yield Paragraph(
            f"trained on {self.train_images:,} images, {epochs}, in {self.train_seconds:.0f} s; "
            f"collapsed in {self.collapse_seconds:.1f} s\n"
        )
        yield Table(("", "training form", "deploy form", "ratio"), list(self._rows()), numeric=True)
        yield Paragraph("")
        yield from self.proof.blocks()
        yield Paragraph(f"ONNX graph of {self.onnx.nodes} nodes{agrees}\n")
        yield written_files(self.files)

    def _rows(self) -> Iterator[tuple[str, ...]]:
        yield "test accuracy", f"{self.proof.before.top1:.2f} %", f"{self.proof.after.top1:.2f} %", ""
        before, after = self.report.before, self.report.after
        costs = (
            ("MACs per image", before.macs, after.macs),
            ("parameters", before.params, after.params),
            ("operations launched", before.launches, after.launches),
        )
        for name, first, second in costs:
            yield name, count(first), count(second), f"{first / second:.1f}×" if first and second else ""
        for size, latency in self.latency.items():
            name = f"latency, {size} image{'s' if size > 1 else ''}, {latency.threads} threads"
            yield name, *latency.cells(), f"{latency.ratio:.1f}×"


@renamed_arguments(watch="on_progress")
def run_demo(settings: DemoSettings, on_progress: OnProgress = ignore) -> DemoResult:
    """Train, collapse, verify, time and export a small network.

    Args:
        settings: what to train; weights, an ONNX file and the result are written to ``settings.output``.
        on_progress: called after each report of the training.

    Raises:
        UnbranchError: if the two forms aren't the same function; nothing is written then.
    """
    _check(settings)
    recipe = _recipe(settings)
    data = open_data(settings.data if settings.data_dir is None else f"{settings.data}:{settings.data_dir}")
    with TemporaryDirectory() as directory:
        start = time.perf_counter()
        trained = train(recipe, data, Path(directory, "run"), on_progress=on_progress)
        train_seconds = time.perf_counter() - start
        if trained is None:
            raise InputError("the demo must run in one process")
        network, images = load(Path(directory, "run", LAST)), _images(recipe, data)
    start = time.perf_counter()
    collapsed = collapse(network, images[:1])
    collapse_seconds = time.perf_counter() - start
    latency = {size: compare_latency(network, collapsed, images[:size]) for size in BATCHES}
    output = Path(settings.output)
    output.mkdir(parents=True, exist_ok=True)
    files = tuple(output / name for name in FILES)
    with all_or_nothing(*files) as (weights, onnx, summary):
        save(collapsed, weights)
        result = DemoResult(
            block=settings.block,
            data=settings.data,
            seed=settings.seed,
            train_images=len(data.train),
            epochs=recipe.schedule.epochs,
            train_seconds=train_seconds,
            collapse_seconds=collapse_seconds,
            proof=trained.proof,
            report=trained.report,
            latency=latency,
            onnx=replace(write_onnx(collapsed, images[:1], onnx), path=files[1]),
            files=files,
        )
        summary.write_text(json.dumps(result.to_dict(), indent=2) + "\n")
    return result


def _recipe(settings: DemoSettings) -> Recipe:
    epochs = EPOCHS[settings.data] if settings.epochs is None else settings.epochs
    changes = [f"schedule.epochs={epochs}", f"schedule.warmup_epochs={epochs / 10}"]
    return load_recipe(settings.data, [f"model.block={settings.block}", f"seed={settings.seed}", *changes])


def _images(recipe: Recipe, data: Data) -> Tensor:
    """Return validation images for the largest batch, ``(B, C, H, W)``."""
    batch: Tensor = next(iter(validation_loader(recipe, data)))["image"]
    return batch[: max(BATCHES)]


def _check(settings: DemoSettings) -> None:
    """Raise InputError for everything that can be known to fail before training."""
    if settings.data not in EPOCHS:
        raise InputError(f"`data` must be one of {', '.join(EPOCHS)}, got {settings.data!r}")
    if settings.block not in BLOCKS:
        raise InputError(f"`block` must be one of {', '.join(BLOCKS)}, got {settings.block!r}")
    if settings.epochs is not None and settings.epochs < 1:
        raise InputError(f"`epochs` must be at least 1, got {settings.epochs}")
    output = Path(settings.output)
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file, not a directory")
    require_onnx()


__getattr__ = renamed_names(__name__, {"Settings": "DemoSettings", "run": "run_demo"})
