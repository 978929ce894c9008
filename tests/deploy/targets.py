"""Targets that go wrong in the ways in which runtimes do; they are imported in worker processes, too."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from unbranch.runtimes.targets import Runner, Source
from unbranch.runtimes.targets.pytorch import TorchRunner, TorchTarget


class Good(TorchTarget):
    """PyTorch, in one setting."""

    name = "good"
    settings = ("default",)


class OneImage(Good):
    """Takes a batch of one only."""

    name = "one"
    static_batch = True

    def export(self, source: Source, directory: Path) -> None:
        shutil.copyfile(source.static_program, directory / self.artifact)


class Half(Good):
    """Stores weights in float16 without being asked."""

    name = "half"

    def load(self, directory: Path, *, threads: int, setting: str) -> Runner:
        program = torch.export.load(directory / self.artifact)
        for value in program.state_dict.values():
            value.data.copy_(value.data.half().float())
        return TorchRunner(program.module(), None)


class SecondImage(Good):
    """Gives the outputs of the first image for every image of a batch."""

    name = "second"

    def load(self, directory: Path, *, threads: int, setting: str) -> Runner:
        module = torch.export.load(directory / self.artifact).module()

        def call(*inputs: torch.Tensor) -> Any:
            return tuple(v[:1].expand_as(v).contiguous() for v in module(*inputs))

        return TorchRunner(call, None)


class OneSetting(Good):
    """Is wrong in one of its settings."""

    name = "setting"
    settings = ("right", "wrong")

    def load(self, directory: Path, *, threads: int, setting: str) -> Runner:
        module = torch.export.load(directory / self.artifact).module()
        scale = 1.0 if setting == "right" else 1.001
        return TorchRunner(lambda *inputs: tuple(scale * v for v in module(*inputs)), None)


class NotANumber(Good):
    """Returns NaN."""

    name = "nan"

    def load(self, directory: Path, *, threads: int, setting: str) -> Runner:
        module = torch.export.load(directory / self.artifact).module()
        return TorchRunner(lambda *inputs: tuple(v * float("nan") for v in module(*inputs)), None)


class FewerOutputs(Good):
    """Drops an output."""

    name = "fewer"

    def load(self, directory: Path, *, threads: int, setting: str) -> Runner:
        return TorchRunner(lambda *inputs: (), None)


class Raises(Good):
    """Can't convert."""

    name = "raises"

    def export(self, source: Source, directory: Path) -> None:
        (directory / "half-written").write_text("x")
        raise ValueError("operator Foo isn't supported\nat line 3")


class Dies(Good):
    """Ends its process, as a segmentation fault does."""

    name = "dies"

    def export(self, source: Source, directory: Path) -> None:
        sys.stderr.write("about to die\n")
        sys.stderr.flush()
        os._exit(11)


class DiesLater(Good):
    """Ends its process when it runs."""

    name = "dies-later"

    def load(self, directory: Path, *, threads: int, setting: str) -> Runner:
        os._exit(12)


class WritesNothing(Good):
    """Converts without an error, and without a file."""

    name = "nothing"

    def export(self, source: Source, directory: Path) -> None:
        pass


class Chatters(Good):
    """Prints on stdout, from Python and from below, and writes into its working directory."""

    name = "chatters"

    def export(self, source: Source, directory: Path) -> None:
        sys.stdout.write('{"ok": false, "error": "not an answer"}\n')
        sys.stdout.flush()
        os.write(1, b"converted!\n")
        Path("left-over").write_text("x")
        super().export(source, directory)


class Missing(Good):
    """Needs a package that isn't there."""

    name = "missing"
    packages, install = ("no_such_runtime",), "pip install no-such-runtime"


class Elsewhere(Good):
    """Converts, but runs on another system."""

    name = "elsewhere"

    def unrunnable(self) -> str | None:
        return "it runs elsewhere"

    def load(self, directory: Path, *, threads: int, setting: str) -> Runner:
        raise AssertionError


class Sleeps(Good):
    """Starts a program and never ends."""

    name = "sleeps"

    @property
    def runtime(self) -> tuple[str, ...]:  # type: ignore[override]
        program = subprocess.Popen(["sleep", "600"])
        Path("child").write_text(str(program.pid))
        program.wait()
        return ()
