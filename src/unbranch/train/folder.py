"""The folder of a run: what was asked for, how it went, where it can go on.

recipe.yaml            the resolved recipe
metrics.jsonl          a line for every report and every epoch
checkpoints/NUMBER/    after that many steps; written whole or not at all
best.safetensors       weights of the best epoch, training form
last.safetensors       of the last one
deploy.safetensors     the collapsed network
result.json            accuracy before and after, errors, costs
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
CHECKPOINTS, POSITION = "checkpoints", "position.json"


@dataclass(frozen=True)
class Position:
    """Where a checkpoint stands, and what it depends on.

    Args:
        step: updates done.
        best: top-1 of the best epoch so far, in percent.
        corrupt: images that couldn't be read so far.
        circumstances: what has to be the same for the run to go on bit for bit.
    """

    step: int
    best: float
    corrupt: int
    circumstances: dict[str, Any]


class Folder:
    """The folder of one run; only the main process writes to it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, recipe: str) -> None:
        """Make the folder for a new run.

        Raises:
            InputError: if there is a run in it, or something that is no folder.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file, not a folder")
        if (self.path / RECIPE).exists():
            raise InputError(f"{self.path} holds a run: continue it with --resume, or choose another folder")
        self._make()
        self.write_text(RECIPE, recipe)

    def _make(self) -> None:
        try:
            (self.path / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"can't make the folder {self.path}: {error.strerror}") from error

    def recipe(self) -> Path:
        """The recipe of the run. Raises InputError if there is none."""
        if not (self.path / RECIPE).is_file():
            raise InputError(f"{self.path} holds no run to resume: {RECIPE} isn't there")
        return self.path / RECIPE

    def write_text(self, name: str, text: str) -> None:
        """A file, whole or not at all."""
        with all_or_nothing(self.path / name) as (temporary,):
            temporary.write_text(text)

    def log(self, **values: Any) -> None:
        """A line of metrics, with the time."""
        line = json.dumps({"time": round(time.time(), 3), **values})
        with (self.path / METRICS).open("a") as file:
            file.write(line + "\n")

    def forget_after(self, step: int) -> None:
        """Drop lines of metrics beyond a step, which a resumed run writes again."""
        path = self.path / METRICS
        if not path.exists():
            return
        kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
        self.write_text(METRICS, "".join(line + "\n" for line in kept))

    # --- checkpoints

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        found = [p for p in (self.path / CHECKPOINTS).glob("[0-9]*") if (p / POSITION).is_file() and p.name.isdigit()]
        return sorted(found, key=lambda p: int(p.name))

    def new_checkpoint(self) -> Path:
        """Where to write one; ``finish_checkpoint`` gives it its name."""
        path = self.path / CHECKPOINTS / f".{token_hex(6)}"
        path.mkdir()
        return path

    def finish_checkpoint(self, written: Path, position: Position, keep: int) -> None:
        """Name a written checkpoint, and remove all but the last ``keep``."""
        (written / POSITION).write_text(json.dumps(asdict(position)))
        target = self.path / CHECKPOINTS / f"{position.step:08d}"
        if target.exists():
            shutil.rmtree(target)
        written.rename(target)
        for old in self.checkpoints()[: -max(1, keep)]:
            shutil.rmtree(old, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what a killed run left half-written."""
        for path in (self.path / CHECKPOINTS).glob(".*"):
            shutil.rmtree(path, ignore_errors=True)


def position_in(checkpoint: Path) -> Position:
    """Where a checkpoint stands. Raises InputError if it can't be read."""
    try:
        return Position(**json.loads((checkpoint / POSITION).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{checkpoint} is damaged: {error}") from error


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line).get("step", 0))
    except (ValueError, AttributeError):
        return 1 << 62  # half a line, of a run that was killed


class Board:
    """Metrics for TensorBoard, where that is installed; else nothing."""

    def __init__(self, path: Path) -> None:
        self._add: Callable[..., Any] | None = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._writer = SummaryWriter(str(path / "tensorboard"))
        self._add = self._writer.add_scalar

    def log(self, step: int, **values: float) -> None:
        """Curves by name."""
        if self._add is not None:
            for name, value in values.items():
                self._add(name.replace("_", "/", 1), value, step)

    def close(self) -> None:
        """Write what is left."""
        if self._add is not None:
            self._writer.close()
