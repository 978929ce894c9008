"""What running a network changes beside its tensors, put back: random generators, and what its code keeps."""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import random
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from .outside import kept_outside, restore_outside


class Caches:
    """What ``functools.cache`` and ``lru_cache`` keep in this process: no tensor of a conversion stays there."""

    def __init__(self) -> None:
        kind: Any = functools._lru_cache_wrapper
        found = [o for o in gc.get_referrers(kind) if type(o) is kind]  # an object refers to its type
        found = [c for c in found if not (c.__module__ or "").startswith(_THEIRS)]
        self._filled = {cache: cache.cache_info().misses for cache in found}

    def empty(self) -> None:
        """Empty those that hold tensors and were added to since this was made, or since it was last called.

        What code keeps in other places is put back, too.
        """
        restore_outside()
        for cache, filled in self._filled.items():
            if cache.cache_info().misses != filled and _holds_tensors(cache):
                cache.cache_clear()
                self._filled[cache] = 0


_THEIRS = ("torch.", "sympy.", "unbranch.graph.", "unbranch.convert.")  # they keep classes, functions and names


def _holds_tensors(cache: Any, depth: int = 6) -> bool:
    """Whether a tensor is among what a cache keeps, in containers or objects, up to a depth."""
    level, seen = [cache], {id(cache)}
    for _ in range(depth):
        level = [v for v in gc.get_referents(*level) if id(v) not in seen and not isinstance(v, _NOT_KEPT)]
        seen.update(map(id, level))
        if any(isinstance(v, torch.Tensor) for v in level):
            return True
    return False


_NOT_KEPT = (type, types.FunctionType, types.ModuleType, types.BuiltinFunctionType, types.CodeType, str)


@contextlib.contextmanager
def leaves_no_trace(network: nn.Module) -> Iterator[Caches]:
    """Run a network for a while as if it hadn't run: see ``kept_outside``, ``untouched``, ``Caches`` and ``quiet``.

    The caller's inference mode is left meanwhile, and so is a default device that holds no numbers.
    """
    caches = Caches()
    numbers = all(not t.is_meta for t in network.parameters())
    device = torch.device("cpu") if numbers and torch.get_default_device().type == "meta" else contextlib.nullcontext()
    mode = torch.inference_mode(False) if torch.is_inference_mode_enabled() else contextlib.nullcontext()
    with kept_outside(network), untouched(), quiet(), mode, device:
        try:
            yield caches
        finally:
            caches.empty()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep PyTorch from logging, for this thread, that an operation doesn't take the stand-ins it is tried on."""
    thread = threading.get_ident()

    def drop(record: logging.LogRecord) -> bool:
        return record.thread != thread

    logger = logging.getLogger("torch._subclasses.fake_tensor")
    logger.addFilter(drop)
    try:
        yield
    finally:
        logger.removeFilter(drop)


@contextlib.contextmanager
def untouched() -> Iterator[None]:
    """Restore random generators and the default dtype to what they were."""
    generators, dtype = (torch.get_rng_state(), random.getstate()), torch.get_default_dtype()
    arrays = sys.modules.get("numpy.random")
    numbers = None if arrays is None else arrays.get_state()
    try:
        yield
    finally:
        if not torch.equal(torch.get_rng_state(), generators[0]):
            torch.set_rng_state(generators[0])
        if random.getstate() != generators[1]:
            random.setstate(generators[1])
        if arrays is not None:
            arrays.set_state(numbers)
        if torch.get_default_dtype() is not dtype:
            torch.set_default_dtype(dtype)
