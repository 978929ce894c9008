"""``deploy``: from a network to verified files for each runtime, with the one to ship."""

from __future__ import annotations

import copy
import json
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unbranch.convert import explain
from unbranch.deploy.artifact import Artifact
from unbranch.deploy.batches import Call, repeatable
from unbranch.deploy.benchmark import timed
from unbranch.deploy.check import Check, checked, directory_name, make_check
from unbranch.deploy.int8.ladder import Int8Settings
from unbranch.deploy.int8.qat.recipe import training_data
from unbranch.deploy.int8.qat.training import DIRECTORY, QatRun, finish_training
from unbranch.deploy.int8.quantizer import Quantizer
from unbranch.deploy.reference import accuracy
from unbranch.deploy.result import DeployResult
from unbranch.deploy.samples import Samples, load_samples
from unbranch.deploy.store import WEIGHTS, Store
from unbranch.errors import InputError
from unbranch.provenance import provenance_of
from unbranch.runtimes.environment import environment
from unbranch.runtimes.measure import OnProgress
from unbranch.runtimes.signature import FlatNetwork
from unbranch.runtimes.source import write_source
from unbranch.runtimes.targets import Precision, Source, Target, find_targets
from unbranch.weights import save

LEAST_THREADS = 16  # that are allowed on any machine
IMAGES = 32  # on which artifacts are compared
CALIBRATION, EVALUATION = 300, 1000  # images for quantising
_ALONE = threading.RLock()  # torch.export isn't safe in threads, and timings would disturb each other
CPUS = ("this", "vnni", "avx2")


def deploy(
    model: nn.Module,
    data: Any,
    output: str | Path,
    *,
    to: str | Iterable[str] = "all",
    half: bool = False,
    int8: bool = False,
    max_drop: float = 0.5,
    calibration: int = CALIBRATION,
    evaluation: int = EVALUATION,
    cpu: str = "this",
    epochs: int = 0,
    images: int = IMAGES,
    threads: int | None = None,
    batches: int | Sequence[int] = (1,),
    rounds: int = 10,
    dynamic_size: bool = False,
    seed: int = 0,
    on_progress: OnProgress = lambda *_: None,
) -> DeployResult:
    """Collapse a network, convert it for each target, and keep the files that compute the same function.

    Every file is loaded again in its own runtime and run on ``data``, with one image and with several in a call, and
    compared with the collapsed network in float64. Files that differ aren't kept. A target that fails doesn't stop
    the others; it has its reason in the result. If all fail, nothing is written, and an earlier deployment stays.

    Args:
        model: any network that ``torch.export`` can export; it isn't changed.
        data: images to compare on: a batch ``(N, C, H, W)``, with labels as a pair; a data set; an iterable of batches;
            a folder of images; or a name that ``unbranch.train.open_data`` knows. None for random numbers.
        output: directory for the files; it is created.
        to: names of targets, see ``unbranch.deploy.TARGETS``, or ``"all"``.
        half: write float16 files as well, for the targets that have them.
        int8: write files quantised to 8-bit integers as well, for the targets that have them.
        max_drop: the largest loss of accuracy of these, in percentage points; without labels, the largest share of
            images with another class.
        calibration: number of images from which ranges of activations are estimated; training images where ``data``
            has them.
        evaluation: number of images on which the accuracy of quantised networks is measured.
        cpu: CPU of the target, which decides whether weights need 7 bits: ``"this"``, ``"vnni"`` for one with 8-bit
            instructions that don't saturate (AVX-512 VNNI, AVX-VNNI, AMX, ARM's dot product), or ``"avx2"``.
        epochs: of quantisation-aware training, if nothing else keeps the loss of accuracy within ``max_drop``; 0 for
            none. ``data`` must be the directory of a run, the name of a data set or a folder of classes. Ctrl-C leaves
            a checkpoint in ``output``; the same call continues it.
        images: number of images to compare on.
        threads: for timing; those of PyTorch by default.
        batches: sizes of batches to time.
        rounds: number of turns that each artifact is timed in; 0 for no timing.
        dynamic_size: let images have any height and width.
        seed: of the choice of images.
        on_progress: called with (what is done, steps done, steps in total).

    Raises:
        InputError: if an argument or the data can't be used, or the network can't be exported.
        CollapseError: if the collapsed network differs.
        TrainingInterrupted: after Ctrl-C or SIGTERM in quantisation-aware training, once a checkpoint is written.

    Example:
        >>> import unbranch as ub
        >>> from tempfile import TemporaryDirectory
        >>> model = ub.create_model("resnet8_cifar", block="repvgg", width=4)
        >>> with TemporaryDirectory() as folder:
        ...     result = ub.deploy.deploy(model, torch.randn(4, 3, 32, 32), folder, to=["torch"], rounds=2)
        ...     result.best("latency").target, result.artifacts[0].status
        ('torch', 'verified')
    """
    targets, threads = find_targets(to), torch.get_num_threads() if threads is None else threads
    batches = (batches,) if isinstance(batches, int) else tuple(batches)
    _require_integers(0, rounds=rounds, epochs=epochs)
    _require_integers(1, images=images, threads=threads, calibration=calibration, evaluation=evaluation)
    _require_integers(1, **{f"batches[{place}]": size for place, size in enumerate(batches)})
    _require_threads(threads)
    if epochs and not int8:
        raise InputError("`epochs` is for 8-bit integers: set `int8` as well")
    jobs = _jobs(targets, half, int8)
    store = Store(output, [directory_name(*job) for job in jobs])
    if int8:
        data = repeatable(data, max(images, calibration, evaluation))
    samples = load_samples(data, model, limit=images, seed=seed)
    quantizer = None
    if int8:
        training = training_data(data, model, epochs, seed) if epochs else None
        qat = None if training is None else QatRun(training, store.directory / DIRECTORY)
        quantizer = _quantizer(data, model, seed, max_drop, calibration, evaluation, cpu, qat)
    on_progress("collapsing", 0, 1)
    with _ALONE, store.scratch() as scratch:
        plain, flat = _collapsed(model, samples.batch(1))
        if quantizer is not None:
            quantizer.claim(plain, flat)
        converting = None if int8 else [target for target in targets if target.unavailable() is None]
        source = write_source(flat, scratch, targets=converting, dynamic_size=dynamic_size)
        on_progress("computing the reference in float64", 0, 1)
        check = make_check(flat, samples, source.signature, scratch, threads, max(batches, default=1))
        if quantizer is not None:
            quantizer.climb(plain, flat, source, scratch, threads, on_progress)
        artifacts = _converted(jobs, source, check, quantizer, on_progress)
        if rounds:
            artifacts = timed(
                artifacts, source.signature, scratch, threads=threads, batches=batches, rounds=rounds,
                on_progress=on_progress,
            )  # fmt: skip
        ladder = None if quantizer is None or quantizer.ladder is None else quantizer.ladder.finished()
        result = replace(_result(plain, samples, check, artifacts, source, store), ladder=ladder)
        if quantizer is not None:
            result = replace(result, notes=(*result.notes, *quantizer.notes))
        if not result.usable:
            return replace(result, notes=(*result.notes, f"no target has a usable file: {_unchanged(store)}"))
        save(plain, check.staged / WEIGHTS)
        store.commit(check.staged, json.dumps(result.to_dict(), indent=2) + "\n")
        finish_training(store.directory / DIRECTORY, kept=ladder is not None and ladder.has_trained)
    return result


def _collapsed(model: nn.Module, example: Call) -> tuple[nn.Module, FlatNetwork]:
    """Return the collapsed network on the CPU, and the same with flat inputs and outputs."""
    tensors = [*model.parameters(), *model.buffers()]
    if any(value.is_meta for value in tensors):
        raise InputError("the network has no weights, it is on the meta device: load them first")
    on_cpu = all(value.device.type == "cpu" for value in tensors)
    plain = explain(model if on_cpu else copy.deepcopy(model).cpu(), example).apply().eval()
    return plain, FlatNetwork(plain, example)


def _converted(
    jobs: Sequence[tuple[Target, Precision]], source: Source, check: Check, quantizer: Quantizer | None,
    on_progress: OnProgress,
) -> list[Artifact]:  # fmt: skip
    """Return the artifact of each target and precision, checked."""
    artifacts = []
    for number, (target, precision) in enumerate(jobs):
        on_progress(f"converting to {directory_name(target, precision)}", number, len(jobs))
        if precision == "int8" and quantizer is not None:
            artifacts.append(quantizer.artifact(target, check))
        else:
            artifacts.append(checked(target, replace(source, precision=precision), check))
    return artifacts


def _result(
    plain: nn.Module, samples: Samples, check: Check, artifacts: Sequence[Artifact], source: Source, store: Store
) -> DeployResult:  # fmt: skip
    moved = (
        a if a.path is None else replace(a, path=store.directory / a.path.relative_to(check.staged)) for a in artifacts
    )
    return DeployResult(
        directory=store.directory, model=_name_of(plain), artifacts=tuple(moved), data=samples.description,
        images=len(samples), noise=check.noise, accuracy=accuracy(check.single.classes(), samples.labels),
        environment=environment(), notes=(*samples.notes, *check.notes), signature=source.signature,
    )  # fmt: skip


def _unchanged(store: Store) -> str:
    return f"{store.directory} is as it was" if store.earlier else "nothing was written"


def _jobs(targets: Sequence[Target], half: bool, int8: bool) -> list[tuple[Target, Precision]]:
    asked: tuple[Precision, ...] = ("float32", *(("float16",) if half else ()), *(("int8",) if int8 else ()))
    return [(target, precision) for target in targets for precision in asked if precision in target.precisions]


def _quantizer(
    data: Any, model: nn.Module, seed: int, max_drop: float, calibration: int, evaluation: int, cpu: str,
    qat: QatRun | None,
) -> Quantizer:  # fmt: skip
    """Load the images for quantising."""
    if data is None:
        raise InputError("int8 needs your images: random numbers would give wrong ranges")
    if not 0 <= max_drop <= 100:
        raise InputError(f"`max_drop` must be percentage points from 0 to 100, got {max_drop:g}")
    if cpu not in CPUS:
        raise InputError(f"`cpu` must be one of {', '.join(CPUS)}, got {cpu!r}")
    split = qat is not None  # so that it isn't evaluated on images that it was trained on
    ranges = load_samples(data, model, limit=calibration, seed=seed, train=True, split=split)
    settings = Int8Settings(max_drop, ranges, cpu, qat)
    return Quantizer(settings, load_samples(data, model, limit=evaluation, seed=seed, split=split))


def _name_of(model: nn.Module) -> str:
    provenance = provenance_of(model)
    return provenance.network or provenance.source_class.rpartition(".")[2] or type(model).__name__


def _require_integers(least: int, **values: object) -> None:
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise InputError(f"`{name}` must be an integer, got {value!r}")
        if value < least:
            raise InputError(f"`{name}` must be at least {least}, got {value}")


def _require_threads(threads: int) -> None:
    most = max(LEAST_THREADS, 4 * (os.cpu_count() or 1))
    if threads > most:
        raise InputError(f"`threads` must be at most {most} on this machine, got {threads}")
