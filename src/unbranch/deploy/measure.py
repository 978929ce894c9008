"""Latency of artifacts: one process for each, which take turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from unbranch.deploy.arrays import write_arrays
from unbranch.deploy.artifact import Timing
from unbranch.deploy.process import Worker, WorkerError, worker
from unbranch.deploy.signature import Signature
from unbranch.deploy.targets import Target

OnProgress: TypeAlias = Callable[[str, int, int], None]  # what is done, steps done, steps in total
TURN_MS = 200.0  # how long a turn of one process takes, roughly
MOST_CALLS = 20  # in one turn


@dataclass(frozen=True)
class Entry:
    """An artifact to time, with a setting of its target."""

    target: Target
    directory: Path
    setting: str

    @property
    def name(self) -> str:
        """The target and the setting."""
        return self.target.name if self.setting == "default" else f"{self.target.name} {self.setting}"


@dataclass
class _Runner:
    worker: Worker
    loaded: dict[str, float | None]
    calls: int = 1
    times: tuple[float, ...] = ()


def measure(
    entries: Sequence[Entry],
    signature: Signature,
    scratch: Path,
    *,
    threads: int,
    batch: int,
    rounds: int = 10,
    on_progress: OnProgress = lambda *_: None,
) -> list[Timing | str]:
    """Time artifacts in turns, so that drift and background load affect all of them alike.

    In each round, each process makes one call that isn't counted and some that are; all others wait.

    Args:
        entries: what to time.
        signature: of the network, for random inputs.
        scratch: directory for temporary files.
        threads: for each runtime.
        batch: images in a call.
        rounds: number of turns of each process.
        on_progress: called with the name, and steps done and in total.

    Returns:
        For each entry a timing, or the reason why there is none.
    """
    inputs = scratch / f"timing-{batch}.npz"
    write_arrays(inputs, [[spec.random(batch if 0 in spec.dynamic else None).numpy() for spec in signature.inputs]])
    results: list[Timing | str] = [""] * len(entries)
    running: dict[int, _Runner] = {}
    steps, done = len(entries) * (rounds + 1), 0
    with ExitStack() as stack:
        for index, entry in enumerate(entries):
            on_progress(f"loading {entry.name}", done, steps)
            done += 1
            process = stack.enter_context(worker(entry.target, scratch, threads=threads))
            try:
                loaded = process.load(entry.directory, inputs, threads=threads, setting=entry.setting)
                warm = process.ask("time", inputs=inputs, calls=2)["ms"][-1]
                running[index] = _Runner(process, loaded, max(1, min(MOST_CALLS, round(TURN_MS / max(warm, 1e-3)))))
            except WorkerError as error:
                results[index] = str(error)
        for number in range(rounds):
            for index in list(running):
                on_progress(f"timing {entries[index].name}", len(entries) + number * len(entries) + index, steps)
                runner = running[index]
                try:
                    times = runner.worker.ask("time", inputs=inputs, calls=runner.calls + 1)["ms"]
                except WorkerError as error:
                    results[index] = str(error)
                    del running[index]
                    continue
                runner.times = (*runner.times, *times[1:])
    for index, runner in running.items():
        results[index] = _timing(entries[index].setting, threads, batch, runner)
    return results


def _timing(setting: str, threads: int, batch: int, runner: _Runner) -> Timing:
    times = sorted(runner.times)
    p90 = times[min(len(times) - 1, int(0.9 * len(times)))]
    return Timing(
        setting, threads, batch, statistics.median(times), p90, len(times),
        runner.loaded["cold_start_ms"] or 0.0, runner.loaded["memory_mib"],
    )  # fmt: skip
