"""The latency of layers and of networks in a runtime, on this machine's CPU."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import weakref
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from unbranch.errors import InputError, nearest
from unbranch.runtimes.layer_cache import LayerCache
from unbranch.runtimes.layers import Layer
from unbranch.runtimes.measure import Entry, Outcome, measure
from unbranch.runtimes.process import WorkerError, worker
from unbranch.runtimes.signature import FlatNetwork, Signature
from unbranch.runtimes.source import write_source
from unbranch.runtimes.targets import TARGETS, Target
from unbranch.timing import compare_latency

CHUNK = 64  # layers in one request, which are lost if the process dies
EMPTY = Layer(1, 1)  # takes as long as a call
SMALLEST = 0.05  # of its measured time that a layer counts with at least, whatever a call takes
ROUNDS = 20  # turns of each network
STEPS = (32, 16, 8, 4)  # widths that may be faster than those below them, the largest first
PROBE = 64  # a multiple of all of them
PROBES = (((14, 14), (3, 3)), ((28, 28), (1, 1)), ((28, 28), (3, 3)))  # sizes and kernels
WORTH = 0.25  # a narrower layer must save so much of what its MACs save


class LatencySource(Protocol):
    """What pruning asks about a runtime. ``runtime_latency`` makes one; write your own for a device of your own.

    Attributes:
        name: of the runtime, for reports.
        notes: what was measured in another way than asked for, for reports.
    """

    @property
    def name(self) -> str: ...

    @property
    def notes(self) -> Sequence[str]: ...

    def layer_ms(self, layers: Sequence[Layer]) -> list[float]:
        """Return milliseconds of each layer."""

    def network_ms(self, networks: Sequence[nn.Module], inputs: tuple[Any, ...]) -> list[float]:
        """Return milliseconds of each network, timed in turns.

        Args:
            networks: in evaluation mode, on the CPU.
            inputs: arguments of their forward, for one example.
        """

    def step(self) -> int:
        """Return the number of channels of whose multiples the runtime makes best use."""


class RuntimeLatency:
    """Latency in one of ``unbranch.deploy.TARGETS``, measured in worker processes; made by ``runtime_latency``.

    Args:
        target: the runtime.
        threads: for it.
        cache: times of layers that were measured before.
    """

    def __init__(self, target: Target, threads: int, cache: LayerCache) -> None:
        self.target, self.threads, self.cache = target, threads, cache
        self._folder = Path(tempfile.mkdtemp(prefix="unbranch-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._artifacts: weakref.WeakKeyDictionary[nn.Module, tuple[Any, Path, Signature]] = weakref.WeakKeyDictionary()
        self._not_exported: list[str] = []
        self._failures: Counter[tuple[str, str]] = Counter()

    @property
    def name(self) -> str:
        """The target and the number of threads."""
        return f"{self.target.name}, {self.threads} thread{'s' if self.threads > 1 else ''}"

    @property
    def notes(self) -> list[str]:
        """What was measured in another way than asked for."""
        return [
            f"{number} of the layers fail{'s' if number == 1 else ''} alone in {self.target.name} and {instead}: {why}"
            for (instead, why), number in self._failures.items()
        ] + self._not_exported

    def layer_ms(self, layers: Sequence[Layer]) -> list[float]:
        """Return milliseconds of each layer beyond those of a call, in the faster setting of the runtime.

        Equal layers are measured once. A layer on which the runtime fails has PyTorch's time, and a note.
        """
        times = [self._in_setting(layers, setting) for setting in self.target.settings]
        return min(times, key=sum)

    def _in_setting(self, layers: Sequence[Layer], setting: str) -> list[float]:
        missing = [layer for layer in dict.fromkeys((EMPTY, *layers)) if self.cache.get(layer, setting) is None]
        for start in range(0, len(missing), CHUNK):
            chunk = missing[start : start + CHUNK]
            found = timed(self.target, chunk, self.threads, setting)
            failed = [layer for layer, ms in zip(chunk, found, strict=True) if isinstance(ms, str)]
            instead = dict(zip(failed, timed(TARGETS["torch"](), failed, self.threads, "contiguous"), strict=True))
            for layer, ms in zip(chunk, found, strict=True):
                self.cache.put(layer, setting, self._fallback(ms, instead[layer]) if isinstance(ms, str) else ms)
        self.cache.save()
        call = self.cache.get(EMPTY, setting) or 0.0
        return [max(SMALLEST * ms, ms - call) for ms in (self.cache.get(layer, setting) or 0.0 for layer in layers)]

    def _fallback(self, problem: str, in_torch: float | str) -> float:
        """Return PyTorch's time for a layer that the runtime can't compute alone, 0 if neither can."""
        works = isinstance(in_torch, float)
        self._failures["was timed in PyTorch" if works else "counts with the rest of the network", problem] += 1
        return in_torch if isinstance(in_torch, float) else 0.0

    def network_ms(self, networks: Sequence[nn.Module], inputs: tuple[Any, ...]) -> list[float]:
        """Return milliseconds of each network for one example, timed in turns, in the faster setting of the runtime.

        In PyTorch, networks that can't be exported are timed as they are, in this process, with a note.

        Raises:
            InputError: if a network can't be exported to the runtime, or doesn't run in it.
        """
        settings = self.target.settings
        try:
            places = [self._artifact(network, inputs) for network in networks]
        except InputError as error:
            if self.target.name != "torch":
                raise
            self._not_exported = [f"networks were timed without torch.export: {error}"]
            return _in_this_process(networks, inputs)
        entries = [Entry(self.target, place, setting) for place, _ in places for setting in settings]
        with tempfile.TemporaryDirectory() as folder:
            outcomes = measure(
                entries, places[0][1], Path(folder), threads=self.threads, batches=(1,), rounds=ROUNDS
            )  # fmt: skip
        many = len(settings)
        parts = [outcomes[start : start + many] for start in range(0, len(entries), many)]
        return _in_turns([self._fastest(part) for part in parts])

    def _fastest(self, outcomes: Sequence[Outcome]) -> list[float]:
        """Return the turns of a network in its faster setting."""
        complete = [outcome.turns for outcome in outcomes if not outcome.problem]
        if not complete:
            raise InputError(f"{self.target.name} can't run this network: {outcomes[0].problem}")
        return min(complete, key=statistics.median)

    def _artifact(self, network: nn.Module, inputs: tuple[Any, ...]) -> tuple[Path, Signature]:
        """Return the directory of a network's artifact, which is made once, and its signature."""
        shapes = tuple(tuple(value.shape) for value in network.state_dict().values())
        known = self._artifacts.get(network)
        if known is not None and known[0] == shapes:
            return known[1], known[2]
        place = Path(tempfile.mkdtemp(dir=self._folder))
        (place / "artifact").mkdir()
        source = write_source(FlatNetwork(network, inputs), place, targets=[self.target], dynamic_batch=False)
        if self.target.needs_onnx and source.onnx_problem:
            raise InputError(source.onnx_problem)
        try:
            with worker(self.target, place) as process:
                process.export(source, place / "artifact")
        except WorkerError as error:
            raise InputError(f"{self.target.name} can't convert this network: {error}") from error
        self._artifacts[network] = (shapes, place / "artifact", source.signature)
        return place / "artifact", source.signature

    def step(self) -> int:
        """Return the step of widths, measured on a few convolutions; 1 if the runtime has none.

        A step is accepted if a width of half a step less saves much less time than it saves multiply-accumulates.
        """
        widths = sorted({PROBE, *(PROBE - step // 2 for step in STEPS)})
        probes = [_probe(width, size, kernel) for width in widths for size, kernel in PROBES]
        times = self.layer_ms(probes)
        ms = {
            width: [times[i * len(PROBES) + j] for j in range(len(PROBES))] for i, width in enumerate(widths)
        }  # fmt: skip
        for step in STEPS:
            width = PROBE - step // 2
            saved = [1 - narrow / wide for narrow, wide in zip(ms[width], ms[PROBE], strict=True)]
            if sum(saved) / len(saved) < WORTH * (1 - (width / PROBE) ** 2):
                return step
        return 1


def _in_turns(turns: Sequence[Sequence[float]]) -> list[float]:
    """Return milliseconds of each network: the first one's median, and the others by their median ratio to it.

    Both networks of a ratio had their turns one after the other, so load that lasts for longer cancels.
    """
    first = statistics.median(turns[0])
    return [
        first * statistics.median(mine / its for mine, its in zip(turn, turns[0], strict=True)) for turn in turns
    ]  # fmt: skip


def _in_this_process(networks: Sequence[nn.Module], inputs: tuple[Any, ...]) -> list[float]:
    """Return milliseconds of networks in PyTorch, each in turns with the first one."""
    found = [compare_latency(networks[0], network, inputs) for network in networks]
    return [found[0].first_ms / latency.ratio for latency in found]


def _probe(width: int, size: tuple[int, ...], kernel: tuple[int, ...]) -> Layer:
    padding = tuple(k // 2 for k in kernel)
    return Layer(width, width, size, kernel, (1, 1), padding, (1, 1), activation="relu")


def timed(target: Target, layers: Sequence[Layer], threads: int, setting: str) -> list[float | str]:
    """Time layers in a worker process, or say why one fails; those that end the process are found by halving."""
    if not layers:
        return []
    try:
        with tempfile.TemporaryDirectory() as folder, worker(target, Path(folder)) as process:
            found: list[float | str] = process.ask("layers", layers=layers, threads=threads, setting=setting)["ms"]
            return found
    except WorkerError as error:
        if len(layers) == 1:
            return [str(error)]
        half = len(layers) // 2
        return [time for part in (layers[:half], layers[half:]) for time in timed(target, part, threads, setting)]


def runtime_latency(
    name: str = "torch", *, threads: int | None = None, cache: str | Path | None = None
) -> RuntimeLatency:  # fmt: skip
    """Return what measures latency in a runtime on this machine's CPU, for ``unbranch.prune.ResRep``.

    Args:
        name: of a target, see ``unbranch.deploy.TARGETS``.
        threads: for the runtime; those of PyTorch by default.
        cache: directory in which times of layers are kept for later runs, in a file for each runtime, its version, CPU
            and number of threads. By default they are kept in memory.

    Raises:
        InputError: if there is no such target, or it doesn't run on this machine.

    Example:
        >>> latency = runtime_latency("torch", threads=1)
        >>> latency.name
        'torch, 1 thread'
        >>> [ms > 0 for ms in latency.layer_ms([Layer(16, 8), Layer(8, 4)])]
        [True, True]
    """
    if name not in TARGETS:
        raise InputError(f"unknown runtime {name!r}{nearest(name, TARGETS)} There are {', '.join(TARGETS)}")
    target = TARGETS[name]()
    if (reason := target.unavailable() or target.unrunnable()) is not None:
        raise InputError(f"`runtime` must run on this machine to be timed, and {name} doesn't: {reason}")
    threads = threads or torch.get_num_threads()
    return RuntimeLatency(target, threads, LayerCache(target, threads, cache))
