"""Latency of artifacts: one process for each, which take turns."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from unbranch.runtimes.arrays import write_arrays
from unbranch.runtimes.process import Worker, WorkerError, worker
from unbranch.runtimes.signature import Signature
from unbranch.runtimes.targets import Target

OnProgress: TypeAlias = Callable[[str, int, int], None]  # what is done, steps done, steps in total
TURN_MS = 200.0  # roughly how long a turn of one process takes
MOST_CALLS = 20  # in one turn


@dataclass(frozen=True)
class Timing:
    """Latency of an artifact.

    Args:
        setting: of the target.
        threads, batch: of the calls.
        median_ms, p90_ms: of a call, milliseconds.
        calls: number of timed calls.
        cold_start_ms: time to load the file and run it once, with the runtime imported.
        memory_mib: what that took at its peak, MiB beyond the process with the runtime imported; None if unknown.
        uncertainty_ms: standard error of the median, from its differences between turns; None if unknown.
    """

    setting: str
    threads: int
    batch: int
    median_ms: float
    p90_ms: float
    calls: int
    cold_start_ms: float
    memory_mib: float | None
    uncertainty_ms: float | None = None


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
class Outcome:
    """Timings of an entry, milliseconds of the fastest call in each turn, and why there are no more."""

    timings: list[Timing] = field(default_factory=list)
    turns: list[float] = field(default_factory=list)
    problem: str = ""


@dataclass
class _Turn:
    """A process with its loaded artifact, and the times of the current batch size."""

    entry: Entry
    outcome: Outcome
    process: Worker
    loaded: dict[str, Any]
    calls: int = 1
    times: list[float] = field(default_factory=list)
    medians: list[float] = field(default_factory=list)  # of the turns

    def time(self, inputs: Path, calls: int) -> list[float]:
        """Return milliseconds of some calls after one that isn't counted; none if it fails, with the problem noted."""
        try:
            times: list[float] = self.process.ask("time", inputs=inputs, calls=calls + 1)["ms"]
        except WorkerError as error:
            self.outcome.problem = str(error)
            return []
        return times[1:]


def measure(
    entries: Sequence[Entry],
    signature: Signature,
    scratch: Path,
    *,
    threads: int,
    batches: Sequence[int],
    rounds: int = 10,
    on_progress: OnProgress = lambda *_: None,
) -> list[Outcome]:
    """Time artifacts in turns, so that drift and background load affect all of them alike.

    In each round, each process makes one call that isn't counted and some that are, while all others wait: thread
    pools of several runtimes that run at the same time, and spin, would slow each other down.

    Args:
        entries: what to time.
        signature: of the network, for random inputs.
        scratch: directory for temporary files.
        threads: for each runtime.
        batches: sizes of batches; artifacts for a batch of one are timed with one image only.
        rounds: number of turns of each process, for each batch size.
        on_progress: called with the name, and steps done and in total.
    """
    outcomes = [Outcome() for _ in entries]
    steps = len(entries) * (1 + rounds * len(batches))
    first = _inputs(signature, scratch, 1)
    with ExitStack() as stack:
        turns = []
        for number, (entry, outcome) in enumerate(zip(entries, outcomes, strict=True)):
            on_progress(f"loading {entry.name}", number, steps)
            try:
                process = stack.enter_context(worker(entry.target, scratch))
                loaded = process.load(entry.directory, first, threads=threads, setting=entry.setting)
            except WorkerError as error:
                outcome.problem = str(error)
                continue
            turns.append(_Turn(entry, outcome, process, loaded))
        done = len(entries)
        for batch in dict.fromkeys(batches):
            _rounds(turns, signature, scratch, batch, rounds, functools.partial(_shifted, on_progress, done, steps))
            done += rounds * len(entries)
            for turn in turns:
                if turn.times:
                    turn.outcome.timings.append(_timing(turn, threads, batch))
                    turn.times, turn.medians = [], []
    return outcomes


def _shifted(on_progress: OnProgress, start: int, steps: int, name: str, number: int) -> None:
    on_progress(name, start + number, steps)


def _rounds(
    turns: Sequence[_Turn], signature: Signature, scratch: Path, batch: int, rounds: int,
    on_progress: Callable[[str, int], None],
) -> None:  # fmt: skip
    """Let the processes that take such batches take turns."""
    dynamic = any(0 in spec.dynamic for spec in signature.inputs)
    taking = [turn for turn in turns if batch == 1 or (dynamic and not turn.entry.target.static_batch)]
    try:
        inputs = _inputs(signature, scratch, batch)
    except (MemoryError, RuntimeError):  # from NumPy and PyTorch
        for turn in taking:
            turn.outcome.problem = f"a batch of {batch} doesn't fit into memory"
        return
    for turn in taking:
        trial = turn.time(inputs, 1)
        turn.calls = max(1, min(MOST_CALLS, round(TURN_MS / max(trial[0], 1e-3)))) if trial else 0
    for number in range(rounds):
        for place, turn in enumerate(taking):
            on_progress(f"timing {turn.entry.name}, batch {batch}", number * len(turns) + place)
            if not turn.outcome.problem and (times := turn.time(inputs, turn.calls)):
                turn.times += times
                turn.medians.append(statistics.median(times))
                turn.outcome.turns.append(min(times))


def _inputs(signature: Signature, scratch: Path, batch: int) -> Path:
    path = scratch / f"timing-{batch}.npz"
    values = [spec.random(batch if 0 in spec.dynamic else None).numpy() for spec in signature.inputs]
    write_arrays(path, [values])
    return path


def _timing(turn: _Turn, threads: int, batch: int) -> Timing:
    times = sorted(turn.times)
    p90 = times[math.ceil(0.9 * len(times)) - 1]
    return Timing(
        turn.entry.setting, threads, batch, statistics.median(times), p90, len(times),
        turn.loaded["cold_start_ms"], turn.loaded["memory_mib"], _uncertainty(turn.medians),
    )  # fmt: skip


def _uncertainty(medians: Sequence[float]) -> float | None:
    """Return the standard error of the median of turns: calls of one turn aren't independent; None for one turn."""
    if len(medians) < 2:
        return None
    return 1.25 * statistics.stdev(medians) / math.sqrt(len(medians))
