"""Restore what running a network changes besides tensors: random generators, dtypes, and what its code keeps."""

from __future__ import annotations

import contextlib
import logging
import random
import sys
import threading
from collections.abc import Iterator

import torch
from torch import nn

from unbranch.graph.outside import restoring_outside


@contextlib.contextmanager
def without_side_effects(network: nn.Module) -> Iterator[None]:
    """Run a network without lasting effects: see ``restoring_outside``, ``untouched`` and ``quiet``.

    Inference mode and a default device of ``meta`` are suspended meanwhile.
    """
    numbers = all(not t.is_meta for t in network.parameters())
    device = torch.device("cpu") if numbers and torch.get_default_device().type == "meta" else contextlib.nullcontext()
    mode = torch.inference_mode(False) if torch.is_inference_mode_enabled() else contextlib.nullcontext()
    with restoring_outside(network), restoring_global_state(), quiet(), mode, device:
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress PyTorch's log messages, in this thread, about operations that don't accept fake tensors."""
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
def restoring_global_state() -> Iterator[None]:
    """Restore random generators and the default dtype on exit."""
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
