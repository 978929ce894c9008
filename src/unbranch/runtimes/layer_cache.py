"""Times of layers that were measured before, in memory and in a file."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path

from unbranch.errors import InputError
from unbranch.files import all_or_nothing
from unbranch.runtimes.environment import environment
from unbranch.runtimes.layers import Layer
from unbranch.runtimes.targets import Target


class LayerCache:
    """Milliseconds by layer and setting, for one runtime, CPU and number of threads.

    Args:
        target: the runtime.
        threads: for it.
        directory: of the file; None for no file. A file that can't be read or written is ignored.
    """

    def __init__(self, target: Target, threads: int, directory: str | Path | None) -> None:
        self.times: dict[str, float] = {}
        self.path: Path | None = None
        self._saved = 0
        if directory is None:
            return
        name = hashlib.sha256(json.dumps(_identity(target, threads)).encode()).hexdigest()[:16]
        self.path = Path(directory) / f"{target.name}-{name}.json"
        with suppress(OSError, ValueError, AttributeError):
            values = json.loads(self.path.read_text())
            self.times = {key: ms for key, ms in values.items() if isinstance(ms, float) and ms >= 0}
        self._saved = len(self.times)

    def get(self, layer: Layer, setting: str) -> float | None:
        """Return milliseconds, None if the layer wasn't measured."""
        return self.times.get(_key(layer, setting))

    def put(self, layer: Layer, setting: str, ms: float) -> None:
        """Store milliseconds."""
        self.times[_key(layer, setting)] = ms

    def save(self) -> None:
        """Write the file if there is something new."""
        if self.path is None or len(self.times) == self._saved:
            return
        with suppress(OSError, InputError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with all_or_nothing(self.path) as (temporary,):
                temporary.write_text(json.dumps(self.times))
            self._saved = len(self.times)


def _key(layer: Layer, setting: str) -> str:
    return f"{setting} {astuple(layer)}"


def _identity(target: Target, threads: int) -> dict[str, object]:
    """What times depend on: any version may change them."""
    facts = environment()
    return {"target": target.name, "threads": threads, **{key: facts[key] for key in ("cpu", "cores", "libraries")}}
