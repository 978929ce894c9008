"""A process that exports, loads, runs and times artifacts of one target, one request at a time.

A process of its own keeps what converters print, write and break away from the caller, and thread pools of runtimes
away from each other. Requests and answers are lines of JSON on stdin and on what was stdout at the start; everything
else that is written to stdout or stderr goes to stderr.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO

from unbranch.runtimes.arrays import read_arrays, write_arrays
from unbranch.runtimes.exporting import first_lines
from unbranch.runtimes.layer_timing import time_layers
from unbranch.runtimes.layers import Layer
from unbranch.runtimes.signature import Signature
from unbranch.runtimes.targets.base import Quantization, Runner, Source, Target

Request = dict[str, Any]
PRELOADED = (
    "numpy",
    "torch._export.serde.serialize",
    "torch.export.pt2_archive._package",
)  # what torch.export.load needs
LARGEST_READ = 1 << 16  # bytes at once
STANDARD = 2  # the largest number of a standard stream
LINES, CHARACTERS = 4, 300  # of an error that are kept


class Server:
    """Answers requests; it holds at most one loaded artifact."""

    def __init__(self) -> None:
        self.runner: Runner | None = None
        self.inputs: dict[str, list[list[Any]]] = {}

    def export(self, request: Request) -> Request:
        """Convert a source into an empty directory."""
        target = _target(request)
        target.export(_source(request["source"]), Path(request["directory"]))
        return {}

    def limit(self, request: Request) -> Request:
        """Return the target's limit for the error of an artifact."""
        limit, kind = _target(request).limit(_source(request["source"]))
        return {"limit": limit, "kind": kind}

    def load(self, request: Request) -> Request:
        """Load an artifact and run it once; return milliseconds and the memory that this took, in MiB."""
        target = _target(request)
        for module in target.runtime:  # whose import isn't part of a cold start
            importlib.import_module(module)
        (inputs,) = read_arrays(request["inputs"])[:1]
        _reset_peak()
        before, start = _memory("VmRSS"), time.perf_counter()
        self.runner = target.load(Path(request["directory"]), threads=request["threads"], setting=request["setting"])
        self.runner.run(inputs)
        elapsed = (time.perf_counter() - start) * 1e3
        peak = _memory("VmHWM")
        used = None if before is None or peak is None else max(0.0, peak - before)
        return {"cold_start_ms": elapsed, "memory_mib": used, "operations": self.runner.operations}

    def run(self, request: Request) -> Request:
        """Run calls on the arrays of one file, and write the outputs to another."""
        assert self.runner is not None
        write_arrays(request["outputs"], [self.runner.run(call) for call in read_arrays(request["inputs"])])
        return {}

    def time(self, request: Request) -> Request:
        """Time calls on the first arrays of a file, in milliseconds."""
        assert self.runner is not None
        path = request["inputs"]
        if path not in self.inputs:
            self.inputs[path] = read_arrays(path)
        call, elapsed = self.inputs[path][0], []
        for _ in range(request["calls"]):
            start = time.perf_counter()
            self.runner.run(call)
            elapsed.append((time.perf_counter() - start) * 1e3)
        return {"ms": elapsed}

    def layers(self, request: Request) -> Request:
        """Time single layers, in milliseconds; a layer that fails has a sentence instead."""
        layers = [Layer.from_dict(values) for values in request["layers"]]
        found = time_layers(_target(request), layers, threads=request["threads"], setting=request["setting"])
        return {"ms": [_sentence(value) if isinstance(value, Exception) else value for value in found]}


def _target(request: Request) -> Target:
    module, _, name = request["target"].partition(":")
    try:
        target: Target = getattr(importlib.import_module(module), name)()
    except (ImportError, AttributeError) as error:
        raise LookupError(
            f"worker processes can't import {name} from {module}: define the target on the top level of a module"
        ) from error
    return target


def _source(values: Request) -> Source:
    paths: dict[str, Any] = {key: Path(values[key]) for key in ("program", "static_program", "onnx", "static_onnx")}
    how = values["quantization"]
    rest = {key: values[key] for key in ("precision", "onnx_problem")}
    signature = Signature.from_dict(values["signature"])
    return Source(**paths, **rest, signature=signature, quantization=None if how is None else Quantization(**how))


def _reset_peak() -> None:
    """Set the peak of this process's memory to what it is now, so that imports don't count; Linux only."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _memory(field: str) -> float | None:
    """Return a field of this process's status in MiB; None where there is no such file."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    line = next((line for line in status.splitlines() if line.startswith(f"{field}:")), None)
    return None if line is None else int(line.split()[1]) / 1024


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer requests until there are no more."""
    server = Server()
    methods: dict[str, Callable[[Request], Request]] = {
        name: getattr(server, name) for name in ("export", "layers", "limit", "load", "run", "time")
    }
    for line in requests:
        request = json.loads(line)
        try:
            answer = {"ok": True, **methods[request["do"]](request)}
        except Exception as error:  # a converter or a runtime raises anything
            answer = {"ok": False, "error": _sentence(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _sentence(error: BaseException) -> str:
    """Return the type and the first lines of an error: where runtimes say where it was, what it was comes next."""
    text = first_lines(error, LINES)
    return f"{type(error).__name__}: {text[:CHARACTERS]}" if text else type(error).__name__


def disable_telemetry() -> None:
    """Keep OpenVINO and NNCF from sending usage statistics: they find that the package for it isn't installed."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]


def serve_forks(connection: socket.socket) -> None:
    """Start a worker for each request of ``ForkServer``, and wait for those that it asks about."""
    running: set[int] = set()
    ended: dict[int, int] = {}
    try:
        while True:
            message, received, _, _ = socket.recv_fds(connection, LARGEST_READ, 2)
            while message and not message.endswith(b"\n"):
                message += connection.recv(LARGEST_READ) or b"\n"
            if not message:
                return
            do, value = json.loads(message)
            if do == "wait":
                if value not in ended:
                    ended[value] = _exit_code(value)
                    running.discard(value)
                connection.sendall(f"{ended[value]}\n".encode())
                continue
            running.add(pid := _forked(connection, received, value))
            connection.sendall(f"{pid}\n".encode())
    except (BrokenPipeError, ConnectionResetError):  # the caller was interrupted or has been killed
        return
    finally:
        for pid in running:  # a worker that converts doesn't see that nobody waits for it
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # that has no group of its own yet


def _exit_code(pid: int) -> int:
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:  # of an earlier server
        return -signal.SIGKILL


def _forked(connection: socket.socket, received: list[int], where: dict[str, Any]) -> int:
    """Fork a worker, with its connection and its log, and return the number of its process.

    Args:
        connection: to the process that has asked for it.
        received: numbers of the worker's connection and its log.
        where: its working directory as ``scratch``, and where it finds modules as ``path``.
    """
    answers, log = received
    pid = os.fork()
    if pid == 0:
        connection.close()
        _work(answers, log, **where)
    os.close(answers)
    os.close(log)
    return pid


def _work(connection: int, log: int, scratch: str, path: list[str]) -> NoReturn:
    """Serve in a forked process, and end it."""
    code = 1
    try:
        os.setsid()
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(scratch)
        sys.path[:] = path
        importlib.invalidate_caches()
        os.environ["TMPDIR"], tempfile.tempdir = scratch, None  # what is left there is removed with it
        with socket.socket(fileno=connection) as both, both.makefile("r") as requests, both.makefile("w") as answers:
            serve(requests, answers)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _open_standard_streams() -> None:
    """Open those that the caller has closed, so that no other file gets their numbers."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= STANDARD:
        pass
    os.close(number)


def main() -> None:
    """Serve on stdin and stdout, or fork workers for a socket whose number is the argument."""
    _open_standard_streams()
    disable_telemetry()
    if len(sys.argv) > 1:
        for module in PRELOADED:
            with suppress(ImportError):
                importlib.import_module(module)
        with socket.socket(fileno=int(sys.argv[1])) as connection:
            serve_forks(connection)
        return
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
