"""The ladder: ways to quantise a network, from the cheapest on, each measured on the user's images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import TypeAlias

import torch
from torch import nn

from unbranch.deploy.int8.engines import EXACT, Engine, NNCFEngine, TrainedEngine, default_engine
from unbranch.deploy.int8.qat.rung import train_quantized
from unbranch.deploy.int8.qat.training import QatRun
from unbranch.deploy.int8.rung import Ladder, Rung
from unbranch.deploy.int8.symmetries import mend
from unbranch.deploy.reference import Agreement, Reference, compare, drop_of
from unbranch.deploy.samples import Samples
from unbranch.errors import InputError
from unbranch.runtimes.arrays import Calls, read_arrays, write_arrays
from unbranch.runtimes.environment import has_int8_instructions
from unbranch.runtimes.process import WorkerError, worker
from unbranch.runtimes.signature import FlatNetwork
from unbranch.runtimes.source import write_source
from unbranch.runtimes.targets import Source
from unbranch.runtimes.targets.base import Quantization

OnStep: TypeAlias = Callable[[str, int, int], None]
SATURATION = 1.5  # times the error of exact arithmetic: more is called saturation


@dataclass(frozen=True)
class Int8Settings:
    """How a network is to be quantised.

    Args:
        max_drop: the largest loss of accuracy, in percentage points; without labels, of images with another class.
        calibration: images from which ranges are estimated.
        cpu: ``"this"``, or the CPU of the target: ``"vnni"`` for one with 8-bit instructions that don't saturate (also
            ARM's), ``"avx2"`` for one without.
        qat: quantisation-aware training, if that is allowed.
    """

    max_drop: float
    calibration: Samples
    cpu: str = "this"
    qat: QatRun | None = None

    @property
    def reduce_range(self) -> bool:
        """Whether weights have to have 7 bits, since the CPU's instructions saturate."""
        return not has_int8_instructions() if self.cpu == "this" else self.cpu == "avx2"


@dataclass(frozen=True)
class Attempt:
    """A way to quantise: an engine with its options, and the files of the network that it starts from."""

    name: str
    source: Source
    quantization: Quantization
    engine: Engine
    notes: tuple[str, ...] = ()


def climb(
    plain: nn.Module, source: Source, reference: Reference, settings: Int8Settings, scratch: Path, threads: int,
    on_step: OnStep,
) -> Ladder:  # fmt: skip
    """Quantise a network in one way after the other, until the drop is small enough.

    Args:
        plain: the collapsed network.
        source: its files.
        reference: its outputs on the images that decide.
        settings: what is allowed, and calibration images.
        scratch: directory for temporary files.
        threads: for runtimes.
        on_step: called with (what is done, steps done, steps in total).

    Raises:
        TrainingInterrupted: if that training is interrupted, once a checkpoint is written.
    """
    rungs: list[Rung] = []
    starts: list[Rung] = []
    for attempt in attempts(plain, source, reference, settings, scratch):
        on_step(attempt.name, 0, 1)
        rungs.append(measured(attempt, reference, scratch, threads))
        if rungs[-1].directory is not None and (rungs[-1].drop or 0.0) <= settings.max_drop:
            return Ladder(tuple(rungs), settings.max_drop, settings.reduce_range)
        if attempt.quantization.max_drop is None and not rungs[-1].problem:
            starts.append(rungs[-1])
    if settings.qat is not None:
        start = min(starts, key=lambda rung: rung.drop or 0.0, default=Rung("", "", source=source))
        rungs.append(_trained(settings.qat, start, reference, settings, scratch, threads, on_step))
    return Ladder(tuple(rungs), settings.max_drop, settings.reduce_range)


def _trained(
    run: QatRun, start: Rung, reference: Reference, settings: Int8Settings, scratch: Path, threads: int,
    on_step: OnStep,
) -> Rung:  # fmt: skip
    """Train the network of the best rung that has all layers in integers, and measure it."""
    begun, folder = time.perf_counter(), Path(mkdtemp(prefix="trained-", dir=scratch))
    epochs = run.training.recipe.schedule.epochs
    rung = Rung(
        f"quantisation-aware training, {epochs} epoch{'s' if epochs > 1 else ''}", TrainedEngine.name, trained=True
    )
    source = start.source
    assert source is not None
    try:
        trained = train_quantized(
            run, source, settings.calibration, folder, on_step,
            weight_bits=7 if settings.reduce_range else 8,
        )  # fmt: skip
    except InputError as error:
        return replace(rung, problem=str(error), seconds=time.perf_counter() - begun)
    ready = replace(trained.source, onnx=trained.quantized, static_onnx=trained.quantized)
    attempt = Attempt(rung.name, ready, Quantization(scratch / "calibration.npz"), TrainedEngine(), start.notes)
    found = measured(attempt, reference, scratch, threads)
    return replace(found, trained=True, source=trained.source, seconds=time.perf_counter() - begun)


def attempts(
    plain: nn.Module, source: Source, reference: Reference, settings: Int8Settings, scratch: Path
) -> Iterator[Attempt]:  # fmt: skip
    """The rungs, in their order; later ones are made only if they are needed."""
    calibration = scratch / "calibration.npz"
    write_arrays(calibration, [[value.numpy() for value in call] for call in settings.calibration.calls])
    how, engine = Quantization(calibration, reduce_range=settings.reduce_range), default_engine()
    yield Attempt("post-training quantisation", source, how, engine)
    mended, notes = mend(plain, settings.calibration)
    if mended is not None:
        folder = Path(mkdtemp(prefix="mended-", dir=scratch))
        source = write_source(FlatNetwork(mended, settings.calibration.batch(1)), folder)
        yield Attempt("the same after exact symmetries", source, how, engine, notes)
    if not isinstance(engine, NNCFEngine):
        return
    full = replace(how, full_bias_correction=True)
    yield Attempt("with full bias correction", source, full, engine, notes)
    if reference.classes() is None:
        return
    validation = scratch / "validation.npz"
    write_arrays(validation, _validation(reference))
    yield Attempt(
        "with accuracy control: the worst layers in float32", source,
        replace(how, validation=validation, max_drop=settings.max_drop / 100), engine, notes,
    )  # fmt: skip


def _validation(reference: Reference) -> Calls:
    """Return images one by one, each with its class: the right one if that is known, otherwise the network's own."""
    classes, labels = reference.classes(), reference.labels
    assert classes is not None
    wanted = classes if labels is None else torch.where(labels >= 0, labels, classes)
    images = [[value[i : i + 1] for value in call] for call in reference.calls for i in range(len(call[0]))]
    return [[*image, label.numpy()] for image, label in zip(images, wanted, strict=True)]


def measured(attempt: Attempt, reference: Reference, scratch: Path, threads: int) -> Rung:
    """Quantise, run the file with and without ONNX Runtime's optimisations, and compare."""
    start = time.perf_counter()
    directory = Path(mkdtemp(prefix="int8-", dir=scratch))
    rung = Rung(attempt.name, attempt.engine.name, notes=attempt.notes)
    try:
        found = _agreements(attempt, reference, directory, scratch, threads)
    except WorkerError as error:
        return replace(rung, problem=str(error), seconds=time.perf_counter() - start)
    run, exact = found
    return replace(
        rung, rms=run.rms, exact_rms=exact.rms, accuracy=run.accuracy, same_class=run.same_class,
        exact_accuracy=exact.accuracy, exact_same_class=exact.same_class, drop=drop_of(run, reference),
        saturates=run.rms > SATURATION * exact.rms, seconds=time.perf_counter() - start, directory=directory,
        source=attempt.source,
    )  # fmt: skip


def _agreements(
    attempt: Attempt, reference: Reference, directory: Path, scratch: Path, threads: int
) -> list[Agreement]:  # fmt: skip
    asked = replace(attempt.source, precision="int8", quantization=attempt.quantization)
    with worker(attempt.engine, Path(mkdtemp(dir=scratch))) as process:
        process.export(asked, directory)
    inputs, outputs = scratch / "evaluation.npz", scratch / "evaluated.npz"
    if not inputs.exists():
        write_arrays(inputs, reference.calls)
    found = []
    with worker(attempt.engine, Path(mkdtemp(dir=scratch))) as process:
        for setting in ("default", EXACT):
            process.load(directory, inputs, threads=threads, setting=setting)
            process.ask("run", inputs=inputs, outputs=outputs)
            found.append(compare(reference, read_arrays(outputs)))
    return found
