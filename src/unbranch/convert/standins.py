"""Arguments without numbers, for inputs of two sizes, of every part of a network."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from ..graph.guarded import untouched
from ..graph.probe import Arguments
from ..graph.shadow import shadow_of
from .trace import Given

_APART = 32  # sizes are multiplied by this, so that they stay unlike behind every stride


@dataclass(eq=False)
class StandIns:
    """What the parts of a network are given, found when it is first asked for.

    Args:
        network: a copy that may be run.
        pair: two inputs of different sizes.
    """

    network: nn.Module
    pair: tuple[Arguments, Arguments] | None
    _mode: FakeTensorMode = field(default_factory=lambda: FakeTensorMode(allow_non_fake_inputs=True))
    _found: list[dict[str, tuple[Any, ...]]] | None = None

    def of(self, path: str) -> Given | None:
        """The arguments of the part at a path, if the network comes to it with positional arguments."""
        if self.pair is None:
            return None
        if self._found is None:
            first, second = _apart(*self.pair)
            with untouched(self.network), _caches_cleared():
                self._found = [self._observed(first), self._observed(second)]
        a, b = (found.get(path) for found in self._found)
        return None if a is None or b is None or len(a) != len(b) else Given(self._mode, (a, b))

    def _observed(self, given: Arguments) -> dict[str, tuple[Any, ...]]:
        own = shadow_of(self.network)
        found: dict[str, tuple[Any, ...]] = {}

        def watch(path: str) -> Any:
            def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
                if path not in found and not kwargs:
                    found[path] = args

            return hook

        for path, module in own.named_modules():
            with contextlib.suppress(RuntimeError):  # ScriptModules take no such hooks
                module.register_forward_pre_hook(watch(path), with_kwargs=True)
        with torch.inference_mode(False), torch.no_grad(), self._mode, contextlib.suppress(Exception):
            own(*tree_map(self._stand_in, given.args))
        return found

    @functools.cached_property
    def _device(self) -> torch.device:
        return next((t.device for t in self.network.parameters()), torch.device("cpu"))

    def _stand_in(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        device = self._device if value.is_meta else value.device
        return torch.empty(value.shape, dtype=value.dtype, device=device)


def _apart(first: Arguments, second: Arguments) -> tuple[Arguments, Arguments]:
    """The same with sizes multiplied where they differ."""

    def larger(value: Any, other: Any) -> Any:
        if not isinstance(value, Tensor) or not isinstance(other, Tensor) or value.dim() != other.dim():
            return value
        shape = [n if n == m else n * _APART for n, m in zip(value.shape, other.shape, strict=True)]
        return torch.empty(shape, dtype=value.dtype, device="meta")

    def paired(a: Arguments, b: Arguments) -> Arguments:
        return Arguments(tuple(map(larger, a.args, b.args)))

    return paired(first, second), paired(second, first)


@contextlib.contextmanager
def _caches_cleared() -> Iterator[None]:
    """Empty the caches of functions that stand-ins got into."""
    wrappers = [o for o in gc.get_objects() if type(o) is functools._lru_cache_wrapper]
    before = [w.cache_info() for w in wrappers]
    try:
        yield
    finally:
        for wrapper, info in zip(wrappers, before, strict=True):
            users = not (getattr(wrapper, "__module__", "") or "").startswith(("torch.", "sympy."))
            if users and wrapper.cache_info().misses != info.misses:
                wrapper.cache_clear()
