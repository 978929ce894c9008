"""The directory of a run: its recipe, metrics, checkpoints and results.

recipe.yaml            the resolved recipe
metrics.jsonl          a line for every report and every epoch
checkpoints/NUMBER/    state after that many steps; complete, or not there
best.safetensors       training form, weights of the best epoch
last.safetensors       training form, weights of the last epoch
deploy.safetensors     deploy form: the collapsed network
result.json            accuracy of both forms, errors, costs
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

from unbranch.errors import InputError
from unbranch.files import all_or_nothing

RECIPE, METRICS, RESULT = "recipe.yaml", "metrics.jsonl", "result.json"
BEST, LAST, DEPLOY = "best.safetensors", "last.safetensors", "deploy.safetensors"
CHECKPOINTS, INFO = "checkpoints", "position.json"
OLD_KEYS = {"circumstances": "environment"}  # of the files of version 0.1


@dataclass(frozen=True)
class CheckpointInfo:
    """The position of a checkpoint in its run, and the environment that it was written in.

    Args:
        step: updates done.
        best: top-1 of the best epoch so far, in percent.
        corrupt: number of images that couldn't be read so far.
        environment: what must be the same for the resumed run to be bit-identical.
    """

    step: int
    best: float
    corrupt: int
    environment: dict[str, Any]


class RunDirectory:
    """The directory of one run; only the main process writes to it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def create(self, recipe: str) -> None:
        """Create the directory for a new run, with its recipe as YAML.

        Raises:
            InputError: if the path holds a run already, is a file, or can't be created.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file, not a directory")
        if (self.path / RECIPE).exists():
            raise InputError(f"{self.path} holds a run already: continue it with --resume, or choose another directory")
        self._create_directories()
        self.write_text(RECIPE, recipe)

    def _create_directories(self) -> None:
        try:
            (self.path / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"can't create the directory {self.path}: {error.strerror}") from error

    def recipe_path(self) -> Path:
        """Return the path of the run's recipe.

        Raises:
            InputError: if there is none.
        """
        if not (self.path / RECIPE).is_file():
            raise InputError(f"{self.path} holds no run to resume: there is no {RECIPE}")
        return self.path / RECIPE

    def write_text(self, name: str, text: str) -> None:
        """Write a text file, completely or not at all."""
        with all_or_nothing(self.path / name) as (temporary,):
            temporary.write_text(text)

    def log_metrics(self, **values: Any) -> None:
        """Append a line of metrics, with the time."""
        line = json.dumps({"time": round(time.time(), 3), **values})
        with (self.path / METRICS).open("a") as file:
            file.write(line + "\n")

    def truncate_metrics(self, step: int) -> None:
        """Drop the lines of metrics after a step; a resumed run writes them again."""
        path = self.path / METRICS
        if not path.exists():
            return
        kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
        self.write_text(METRICS, "".join(line + "\n" for line in kept))

    # --- checkpoints

    def checkpoints(self) -> list[Path]:
        """Return the complete checkpoints, oldest first."""
        found = [p for p in (self.path / CHECKPOINTS).glob("[0-9]*") if (p / INFO).is_file() and p.name.isdigit()]
        return sorted(found, key=lambda p: int(p.name))

    def new_checkpoint(self) -> Path:
        """Create a directory to write a checkpoint to; ``commit_checkpoint`` gives it its final name."""
        path = self.path / CHECKPOINTS / f".{token_hex(6)}"
        path.mkdir()
        return path

    def commit_checkpoint(self, written: Path, info: CheckpointInfo, keep: int) -> None:
        """Give a written checkpoint its final name, and remove all but the last ``keep``."""
        (written / INFO).write_text(json.dumps(asdict(info)))
        target = self.path / CHECKPOINTS / f"{info.step:08d}"
        if target.exists():
            shutil.rmtree(target)
        written.rename(target)
        for old in self.checkpoints()[: -max(1, keep)]:
            shutil.rmtree(old, ignore_errors=True)

    def remove_incomplete(self) -> None:
        """Remove incomplete checkpoints of a run that was killed."""
        for path in (self.path / CHECKPOINTS).glob(".*"):
            shutil.rmtree(path, ignore_errors=True)


def read_checkpoint_info(checkpoint: Path) -> CheckpointInfo:
    """Return the info of a checkpoint, as this version or version 0.1 wrote it.

    Raises:
        InputError: if it can't be read.
    """
    try:
        values = json.loads((checkpoint / INFO).read_text())
        return CheckpointInfo(**{OLD_KEYS.get(key, key): value for key, value in values.items()})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{checkpoint} is damaged: {error}") from error


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line).get("step", 0))
    except (ValueError, AttributeError):
        return 1 << 62  # an incomplete line, of a run that was killed


class TensorBoardLogger:
    """Curves for TensorBoard in ``tensorboard/``; does nothing if TensorBoard isn't installed."""

    def __init__(self, path: Path) -> None:
        self._add: Callable[..., Any] | None = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._writer = SummaryWriter(str(path / "tensorboard"))
        self._add = self._writer.add_scalar

    def log(self, step: int, **values: float) -> None:
        """Add a point to each curve; ``train_loss`` is shown as ``train/loss``."""
        if self._add is not None:
            for name, value in values.items():
                self._add(name.replace("_", "/", 1), value, step)

    def close(self) -> None:
        """Flush and close the file."""
        if self._add is not None:
            self._writer.close()
