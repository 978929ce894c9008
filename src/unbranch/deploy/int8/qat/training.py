"""Training a fake-quantised network in a run directory, which is resumed if it was interrupted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unbranch.deploy.int8.qat.network import FakeQuantizedNetwork
from unbranch.deploy.int8.qat.recipe import TrainingData
from unbranch.errors import InputError, TrainingInterrupted
from unbranch.runtimes.signature import FlatNetwork, Signature

DIRECTORY, START = "qat", "start.json"


@dataclass(frozen=True)
class QatRun:
    """Quantisation-aware training, and its directory in that of the deployment.

    Args:
        training: recipe and images.
        directory: of the run. It is left if the training is interrupted, and resumed by the same deployment.
        identity: of the network, the images and the settings; made by ``claim``.
    """

    training: TrainingData
    directory: Path
    identity: str = ""

    def claim(self, network: nn.Module, flat: FlatNetwork, *details: Any) -> QatRun:
        """Return the run for a network.

        Args:
            network: that is to be trained.
            flat: the same with flat inputs and outputs.
            details: other settings that belong to the run.

        Raises:
            InputError: if the network isn't a classifier of one image into the classes of the data, or the directory
                has something else, or an interrupted training of something else.
        """
        _check(flat.signature, len(self.training.data.classes))
        identity = self._identity(network, details)
        started = _started_by(self.directory)
        if self.directory.exists() and started is None:
            raise InputError(f"{self.directory} exists and isn't from an earlier deployment: choose another directory")
        if _is_interrupted(self.directory) and started != identity:
            raise InputError(
                f"{self.directory} has an interrupted training of another network, or with other settings: continue "
                "that, or remove the directory"
            )
        return replace(self, identity=identity)

    def _identity(self, network: nn.Module, details: tuple[Any, ...]) -> str:
        from unbranch.train import to_yaml
        from unbranch.train.data.dataset import fingerprint

        state: dict[str, Tensor] = network.state_dict()
        values = [part for name, value in state.items() for part in (name, value.detach().cpu())]
        return fingerprint(*values, to_yaml(self.training.recipe), self.training.data.fingerprint, *details)

    def train(self, network: FakeQuantizedNetwork, on_step: Callable[[str, int, int], None]) -> nn.Module:
        """Return the network with trained weights and scales.

        Raises:
            TrainingInterrupted: after Ctrl-C or SIGTERM, once a checkpoint is written.
        """
        from unbranch.train import TrainingProgress, fit
        from unbranch.train.run_directory import RECIPE
        from unbranch.train.samples import generators_restored

        def report(at: TrainingProgress) -> None:
            on_step(f"training, epoch {at.epoch} of {at.epochs}: loss {at.loss:.3f}", at.step, at.steps)

        if not _is_interrupted(self.directory):
            shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(exist_ok=True)
        (self.directory / START).write_text(json.dumps({"identity": self.identity}) + "\n")
        resume = (self.directory / RECIPE).is_file()
        recipe, data = self.training.recipe, self.training.data
        try:
            with generators_restored():
                return fit(network, recipe, data, self.directory, resume=resume, on_progress=report)
        except InputError:  # a checkpoint of a training that can't go on would only be in the way
            shutil.rmtree(self.directory, ignore_errors=True)
            raise
        except TrainingInterrupted as error:
            raise TrainingInterrupted(
                f"interrupted; the same deployment to {self.directory.parent} will continue the training"
            ) from error


def finish_training(directory: Path, *, kept: bool) -> None:
    """Remove the checkpoints of a training that is over; its recipe and metrics stay.

    Args:
        directory: of the run; anything else in its place isn't touched.
        kept: whether this deployment has trained. If not, what an earlier one has left is removed, unless it was
            interrupted.
    """
    if _started_by(directory) is None:
        return
    if not kept:
        if not _is_interrupted(directory):
            shutil.rmtree(directory, ignore_errors=True)
        return
    for path in [*directory.glob("checkpoints"), *directory.glob("tensorboard")]:
        shutil.rmtree(path, ignore_errors=True)
    for path in directory.glob("*.safetensors"):
        path.unlink()


def _is_interrupted(directory: Path) -> bool:
    return (directory / "checkpoints").is_dir()


def _started_by(directory: Path) -> str | None:
    """Return the identity of the training in a directory, None if there is none."""
    try:
        identity = json.loads((directory / START).read_text())["identity"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(identity)


def _check(signature: Signature, classes: int) -> None:
    if len(signature.inputs) != 1 or len(signature.inputs[0].shape) != 4:
        raise InputError("`epochs` needs a network that takes images (N, C, H, W) alone")
    index = logits_of(signature)
    if index is None:
        raise InputError("`epochs` needs a classifier: the network has no output (N, classes)")
    if (found := signature.outputs[index].shape[1]) < classes:
        raise InputError(f"`epochs` needs data of at most {found} classes, those of the network; got {classes}")


def logits_of(signature: Signature) -> int | None:
    """Return which output has logits ``(N, classes)``, as ``predicted`` chooses it; None if there is none."""
    outputs = enumerate(signature.outputs)
    return next((i for i, v in outputs if len(v.shape) == 2 and v.shape[1] > 1 and v.dtype.startswith("float")), None)
