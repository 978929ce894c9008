"""Workers end with whoever started them, import what it can import, and can be started in any environment."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.deploy import targets
from unbranch.deploy import TARGETS
from unbranch.errors import InputError
from unbranch.runtimes.process import FORKS, WorkerError, worker
from unbranch.runtimes.targets import find_targets
from unbranch.runtimes.targets.pytorch import TorchTarget

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not FORKS, reason="workers are forked on Linux only")]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]


def ended(pids: list[int], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(map(alive, pids)):
            return True
        time.sleep(0.05)
    return False


BUSY = """
import os, sys, threading, time
from pathlib import Path
from tests.deploy.targets import Sleeps
from unbranch.runtimes.process import ForkServer, Worker
process = Worker(Sleeps(), Path(sys.argv[1]))
print(process._pid, ForkServer.running()._process.pid, flush=True)
process.ask("load", directory=sys.argv[1], inputs="none", threads=1, setting="default")
"""


def test_workers_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", BUSY, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        child = tmp_path / "child"
        while not (child.exists() and child.read_text()):
            time.sleep(0.05)
        pids.append(int(child.read_text()))
        assert all(map(alive, pids))
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
    assert ended(pids)
    assert "Traceback" not in errors


AROUND = """
import sys
from pathlib import Path
from tests.deploy.targets import Good
from unbranch.runtimes.process import WorkerError, worker
with worker(Good(), Path(sys.argv[1])) as process:
    try:
        process.ask("load", directory="", inputs="missing", threads=1, setting="default")
    except WorkerError as error:
        Path(sys.argv[1], "answer").write_text(str(error))
"""


def test_worker_starts_in_any_environment(tmp_path: Path) -> None:
    paths = os.pathsep.join(str(Path(path).absolute()) for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths, "TMPDIR": "/no/such/directory"}
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "script.py").write_text(AROUND)
    for name in ("random.py", "json.py", "torch.py"):  # as modules that workers import
        (folder / name).write_text("raise SystemExit(9)\n")
    command = f'"{sys.executable}" ../script.py "{folder}" <&- >&- 2>&-'
    subprocess.run(["bash", "-c", command], cwd=folder, env=environment, check=False)
    assert "FileNotFoundError" in (folder / "answer").read_text()  # the worker's answer


def test_worker_that_can_not_start_is_the_targets_failure(tmp_path: Path) -> None:
    with pytest.raises(WorkerError), worker(targets.Good(), tmp_path / "missing"):
        pass


@pytest.mark.parametrize("others", [0, 2000], ids=["short path", "long path"])
def test_worker_imports_from_a_folder_that_the_caller_has_added(
    tmp_path: Path, others: int, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    with worker(targets.Good(), tmp_path):  # the server runs
        pass
    name, folder = f"written_later_{others}", tmp_path / "own"
    folder.mkdir()
    (folder / f"{name}.py").write_text("from tests.deploy.targets import Good\n\nclass Later(Good):\n    pass\n")
    path = [*sys.path, *(str(tmp_path / f"{'long' * 10}-{number}") for number in range(others)), str(folder), 3]
    monkeypatch.setattr(sys, "path", path)
    later = importlib.import_module(name).Later()
    with worker(later, tmp_path) as process, pytest.raises(WorkerError) as error:
        process.ask("load", directory="", inputs="missing", threads=1, setting="default")
    assert "FileNotFoundError" in str(error.value)  # of the inputs: the target was found


class Outside(TorchTarget):
    """Registered under another name, or with an unusable one."""

    name = "outside"


def local() -> type[TorchTarget]:
    class Local(TorchTarget):
        name = "local"

    return Local


REGISTERED = {
    "other name": ("inside", Outside), "local class": ("local", local()),
    "path": ("a/b", type("Outside", (Outside,), {"name": "a/b"})), "instance": ("outside", Outside()),
    "text": ("t", "t"),
}  # fmt: skip


@pytest.mark.parametrize("how", REGISTERED)
def test_target_that_can_not_work_is_one_error(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, target = REGISTERED[how]
    monkeypatch.setitem(TARGETS, name, target)  # type: ignore[arg-type]
    with pytest.raises(InputError):
        find_targets(name)


@pytest.mark.parametrize("names", [None, 3, [TorchTarget], ["torch", 3]])
def test_names_that_are_no_text_are_one_error(names: object) -> None:
    with pytest.raises(InputError):
        find_targets(names)  # type: ignore[arg-type]


@pytest.mark.parametrize("names", [" Torch ", "TORCH,torch", ["torch", "Torch"]])
def test_names_in_any_case_are_one_target(names: str | list[str]) -> None:
    assert [target.name for target in find_targets(names)] == ["torch"]
