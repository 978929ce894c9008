"""The caller's side of worker processes."""

from __future__ import annotations

import atexit
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from unbranch.errors import UnbranchError
from unbranch.render import plain
from unbranch.runtimes.targets.base import Source, Target

LAST_LINES = 3
MODULE = "unbranch.runtimes.worker"
FORKS = platform.system() == "Linux"  # elsewhere, system libraries may not run after a fork
PATIENCE = 1.0  # seconds for the server to end by itself
STANDARD = 2  # the largest number of a standard stream
_STARTING = threading.RLock()


class WorkerError(UnbranchError):
    """A target that failed in its process; the message is the reason."""


class ForkServer:
    """A process that has imported PyTorch and this package, and forks workers from that, on Linux.

    A worker starts in milliseconds then, not in seconds. The server itself runs nothing, so it has no threads.
    """

    _running: ForkServer | None = None

    def __init__(self) -> None:
        ours, theirs = _socketpair()
        self._lock = threading.Lock()
        self._owner, self._socket, self._answers = os.getpid(), ours, ours.makefile("r")
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", MODULE, str(theirs.fileno())], pass_fds=[theirs.fileno()], env=_environment(),
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        atexit.register(self.close)

    @classmethod
    def running(cls) -> ForkServer:
        """Return the server of this process, which is started when it is first needed."""
        with _STARTING:
            server = cls._running
            if server is None or server._owner != os.getpid() or server._process.poll() is not None:
                server = cls._running = cls()
            return server

    def fork(self, scratch: Path, log: IO[bytes], connection: socket.socket) -> int:
        """Start a worker that answers on ``connection``, and return the number of its process.

        It imports what the caller can import now, which may be more than when the server started.
        """
        where = {"scratch": str(scratch), "path": list(_absolute(sys.path))}
        return self._exchange(_line("fork", where), [connection.fileno(), log.fileno()])

    def wait(self, pid: int) -> int:
        """Return how a process has ended, as ``subprocess`` does."""
        return self._exchange(_line("wait", pid), [])

    def _exchange(self, message: bytes, files: list[int]) -> int:
        """Send a message with open files, and return the answer; a server that has none is ended."""
        try:
            with self._lock:
                sent = socket.send_fds(self._socket, [message], files)
                self._socket.sendall(message[sent:])
                return int(self._answers.readline())
        except (OSError, ValueError) as error:
            self.close()
            raise WorkerError("the process that starts workers has ended") from error
        except BaseException:  # an interrupt: its next answer would be that to this message
            self.close()
            raise

    def close(self) -> None:
        """End the server; workers end with their connections."""
        for file in (self._answers, self._socket):
            with suppress(OSError):
                file.close()
        if self._owner == os.getpid():
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:  # it is still importing
                self._process.kill()
                self._process.wait()


class Worker:
    """A process for one target, see ``unbranch.runtimes.worker``.

    Args:
        target: the target.
        scratch: working directory of the process.
    """

    def __init__(self, target: Target, scratch: Path) -> None:
        self.target = f"{type(target).__module__}:{type(target).__qualname__}"
        self._log: IO[bytes] = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115  # closed by `close`
        self._process: subprocess.Popen[str] | None = None
        self._ended = False  # its number may be that of another process then
        if FORKS:
            ours, theirs = _socketpair()
            with theirs:
                self._pid = ForkServer.running().fork(scratch, self._log, theirs)
            self._requests: IO[str] = ours.makefile("w")
            self._answers: IO[str] = ours.makefile("r")
            ours.close()
            return
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE], cwd=scratch, env=_environment(scratch), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self._log, text=True,
        )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._pid = self._process.pid
        self._requests, self._answers = self._process.stdin, self._process.stdout

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Send a request and return the answer.

        Raises:
            WorkerError: if the target raised, or the process ended.
        """
        try:
            self._requests.write(json.dumps({"do": do, "target": self.target, **plain(request)}) + "\n")
            self._requests.flush()
            line = self._answers.readline()
        except (BrokenPipeError, ConnectionResetError):
            line = ""
        if not line.endswith("\n"):  # nothing, or half of an answer
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
        """End the process, and programs that it has started."""
        if self._process is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid, signal.SIGKILL)
            if not self._ended:  # one that has just started has no group of its own yet
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(self._pid, signal.SIGKILL)
            with suppress(WorkerError):
                ForkServer.running().wait(self._pid)
        else:
            self._process.kill()
            self._process.wait()
        for file in (self._requests, self._answers, self._log):
            with suppress(OSError):
                file.close()

    def _death(self) -> str:
        code = ForkServer.running().wait(self._pid) if self._process is None else self._process.wait()
        self._ended = True
        self._log.seek(0)
        text = self._log.read().decode(errors="replace")
        last = [line.strip() for line in text.splitlines() if line.strip()][-LAST_LINES:]
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"its process ended with {how}{': ' if last else ''}{' / '.join(last)}"


@contextmanager
def worker(target: Target, scratch: Path) -> Iterator[Worker]:
    """Context of a worker process, which is ended in any case."""
    try:
        process = Worker(target, scratch)
    except OSError as error:
        raise WorkerError(f"its process can't be started: {error.strerror or error}") from error
    try:
        yield process
    finally:
        process.close()


def _environment(scratch: Path | None = None) -> dict[str, str]:
    """Return the environment of workers, which import what the caller can import, and nothing else.

    Paths are absolute, since workers have another working directory. Without the safe path, Python would put the
    working directory before all of them, so that a file ``random.py`` in it would break the worker.
    """
    own = {"PYTHONPATH": os.pathsep.join(_absolute(sys.path)), "PYTHONWARNINGS": "ignore", "PYTHONSAFEPATH": "1"}
    return {**os.environ, **own, **({} if scratch is None else {"TMPDIR": str(scratch)})}


def _absolute(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        if isinstance(path, str):  # as imports ignore all others
            with suppress(OSError):  # the working directory may have been removed
                yield os.path.abspath(path)


def _socketpair() -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets whose numbers aren't those of standard streams, which may be closed."""
    low = []
    try:
        while True:
            pair = socket.socketpair()
            if min(pair[0].fileno(), pair[1].fileno()) > STANDARD:
                return pair
            low.append(pair)
    finally:
        for first, second in low:
            first.close()
            second.close()


def _line(*values: Any) -> bytes:
    return (json.dumps(values) + "\n").encode()
