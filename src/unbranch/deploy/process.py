"""The caller's side of a worker process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from unbranch.deploy.targets.base import Source, Target
from unbranch.errors import UnbranchError
from unbranch.render import plain

LAST_LINES = 3


class WorkerError(UnbranchError):
    """A target that failed in its process; the message is the reason."""


class Worker:
    """A process for one target, see ``unbranch.deploy.worker``.

    Args:
        target: the target.
        scratch: working directory of the process.
        threads: for libraries that read their number of threads from the environment.
    """

    def __init__(self, target: Target, scratch: Path, *, threads: int | None = None) -> None:
        self.target = f"{type(target).__module__}:{type(target).__qualname__}"
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `close`
        paths = os.pathsep.join([p for p in sys.path if p] or [""])
        environment = {**os.environ, "PYTHONPATH": paths, "PYTHONWARNINGS": "ignore"}
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "unbranch.deploy.worker"],
            cwd=scratch, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            start_new_session=True,
        )  # fmt: skip

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Send a request and return the answer.

        Raises:
            WorkerError: if the target raised, or the process ended.
        """
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"do": do, "target": self.target, **plain(request)}) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(self._death())
        answer: dict[str, Any] = json.loads(line)
        if not answer.pop("ok"):
            raise WorkerError(answer["error"])
        return answer

    def export(self, source: Source, directory: Path) -> None:
        """Convert a source into a directory."""
        self.ask("export", source=source, directory=directory.absolute())

    def load(self, directory: Path, inputs: Path, *, threads: int, setting: str) -> dict[str, Any]:
        """Load an artifact and run it once on the first arrays in ``inputs``."""
        return self.ask("load", directory=directory.absolute(), inputs=inputs, threads=threads, setting=setting)

    def close(self) -> None:
        """End the process."""
        process = self._process
        if hasattr(os, "killpg"):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # with the programs that it has started
        elif process.poll() is None:
            process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        process.wait()
        self._log.close()

    def _death(self) -> str:
        code = self._process.wait()
        self._log.seek(0)
        text = self._log.read().decode(errors="replace")
        last = [line.strip() for line in text.splitlines() if line.strip()][-LAST_LINES:]
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"its process ended with {how}{': ' if last else ''}{' / '.join(last)}"


@contextmanager
def worker(target: Target, scratch: Path, *, threads: int | None = None) -> Iterator[Worker]:
    """Context of a worker process, which is ended in any case."""
    process = Worker(target, scratch, threads=threads)
    try:
        yield process
    finally:
        process.close()
