"""``deploy``: from a network to verified files for each runtime, with the one to ship."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unbranch.convert import explain
from unbranch.deploy.artifact import MANIFEST, DeployResult
from unbranch.deploy.benchmark import timed
from unbranch.deploy.check import Check, checked
from unbranch.deploy.environment import environment
from unbranch.deploy.measure import OnProgress
from unbranch.deploy.reference import Reference, accuracy, make_reference
from unbranch.deploy.samples import Samples, load_samples
from unbranch.deploy.signature import FlatNetwork
from unbranch.deploy.source import write_source
from unbranch.deploy.store import Store
from unbranch.deploy.targets import Precision, Target, find_targets
from unbranch.errors import InputError
from unbranch.files import all_or_nothing
from unbranch.provenance import provenance_of
from unbranch.weights import save

IMAGES = 32  # on which artifacts are compared
SECOND_BATCH = 4


@dataclass(frozen=True)
class DeploySettings:
    """What ``deploy`` was asked for; see there."""

    half: bool = False
    images: int = IMAGES
    threads: int = 1
    batches: tuple[int, ...] = (1,)
    rounds: int = 10
    dynamic_size: bool = False
    seed: int = 0


def deploy(
    model: nn.Module,
    data: Any,
    output: str | Path,
    *,
    to: str | Iterable[str] = "all",
    half: bool = False,
    images: int = IMAGES,
    threads: int | None = None,
    batches: Sequence[int] = (1,),
    rounds: int = 10,
    dynamic_size: bool = False,
    seed: int = 0,
    on_progress: OnProgress = lambda *_: None,
) -> DeployResult:
    """Collapse a network, convert it for each target, and keep the files that compute the same function.

    Every file is loaded again in its own runtime and run on ``data``, with one image and with several in a call, and
    compared with the collapsed network in float64. Files that differ aren't kept. A target that fails doesn't stop
    the others; it has its reason in the result.

    Args:
        model: any network that ``torch.export`` can export; it isn't changed.
        data: images to compare on: a batch ``(N, C, H, W)``, with labels as a pair; a data set; an iterable of batches;
            a folder of images; or a name that ``unbranch.train.open_data`` knows. None for random numbers.
        output: directory for the files; it is created.
        to: names of targets, see ``unbranch.deploy.TARGETS``, or ``"all"``.
        half: write float16 files as well, for the targets that have them.
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

    Example:
        >>> import unbranch as ub
        >>> from tempfile import TemporaryDirectory
        >>> model = ub.create_model("resnet8_cifar", block="repvgg", width=4)
        >>> with TemporaryDirectory() as folder:
        ...     result = ub.deploy.deploy(model, torch.randn(4, 3, 32, 32), folder, to=["torch"], rounds=2)
        ...     result.best("latency").target, result.artifacts[0].status
        ('torch', 'verified')
    """
    targets = find_targets(to)
    settings = DeploySettings(
        half, images, threads or torch.get_num_threads(), tuple(batches), rounds, dynamic_size, seed
    )
    _require_positive(settings)
    store = Store(output)
    samples = load_samples(data, model, limit=images, seed=seed)
    on_progress("collapsing", 0, 1)
    network = copy.deepcopy(model).cpu() if _on_device(model) else model
    example = samples.batch(1)
    conversion = explain(network, example)
    plain = conversion.apply().eval()
    flat = FlatNetwork(plain, example)
    with tempfile.TemporaryDirectory(prefix=".deploy-", dir=store.directory) as scratch:
        return _deployed(plain, flat, samples, targets, store, Path(scratch), settings, on_progress)


def _deployed(
    plain: nn.Module, flat: FlatNetwork, samples: Samples, targets: Sequence[Target], store: Store, scratch: Path,
    settings: DeploySettings, on_progress: OnProgress,
) -> DeployResult:  # fmt: skip
    on_progress("computing the reference in float64", 0, 1)
    references = _references(flat, samples)
    onnx = any(target.needs_onnx and target.unavailable() is None for target in targets)
    source = write_source(flat, scratch, onnx=onnx, dynamic_size=settings.dynamic_size)
    check = Check(references, scratch, settings.threads)
    artifacts, notes = [], list(samples.notes)
    jobs = _jobs(targets, settings.half)
    for number, (target, precision) in enumerate(jobs):
        on_progress(f"converting to {_named(target, precision)}", number, len(jobs))
        artifacts.append(checked(target, replace(source, precision=precision), check, store))
    if settings.rounds:
        artifacts = timed(artifacts, source.signature, scratch, settings, on_progress)
    if samples.labels is None:
        notes.append("without labels, accuracy isn't computed")
    single = references[0]
    result = DeployResult(
        directory=store.directory, model=_name_of(plain), artifacts=tuple(artifacts), data=samples.description,
        images=len(samples), noise=single.noise, accuracy=accuracy(single.classes(), samples.labels),
        environment=environment(), notes=tuple(notes), signature=source.signature,
    )  # fmt: skip
    save(plain, store.directory / "model.safetensors")
    write_result(result)
    return result


def _references(flat: FlatNetwork, samples: Samples) -> tuple[Reference, Reference]:
    """Return references for one image in a call, and for several."""
    single = make_reference(flat, samples.calls, samples.labels)
    several = make_reference(flat, [samples.batch(min(SECOND_BATCH, len(samples)))], None)
    return single, several


def _jobs(targets: Sequence[Target], half: bool) -> list[tuple[Target, Precision]]:
    jobs: list[tuple[Target, Precision]] = []
    for target in targets:
        jobs.append((target, "float32"))
        if half and "float16" in target.precisions:
            jobs.append((target, "float16"))
    return jobs


def write_result(result: DeployResult) -> None:
    """Write ``deploy.json``."""
    with all_or_nothing(result.directory / MANIFEST) as (temporary,):
        temporary.write_text(json.dumps(result.to_dict(), indent=2) + "\n")


def _named(target: Target, precision: Precision) -> str:
    return target.name if precision == "float32" else f"{target.name} in {precision}"


def _name_of(model: nn.Module) -> str:
    provenance = provenance_of(model)
    return provenance.network or provenance.source_class.rpartition(".")[2] or type(model).__name__


def _on_device(model: nn.Module) -> bool:
    return any(value.device.type != "cpu" for value in (*model.parameters(), *model.buffers()))


def _require_positive(settings: DeploySettings) -> None:
    for name, value in (
        ("images", settings.images),
        ("threads", settings.threads),
        *(("batches", b) for b in settings.batches),
    ):
        if value < 1:
            raise InputError(f"`{name}` must be at least 1, got {value}")
    if settings.rounds < 0:
        raise InputError(f"`rounds` must be at least 0, got {settings.rounds}")
