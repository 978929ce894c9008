"""Modules of a private copy that record their calls, and what they are to be again afterwards."""

from __future__ import annotations

import contextlib
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import fx, nn

from unbranch.convert.trace.casts import is_traceable_copy
from unbranch.convert.trace.trace import MADE
from unbranch.graph.contents import Contents
from unbranch.graph.outside import restore_outside
from unbranch.graph.shadow import MODULE_ATTRIBUTES


class Recorder(Protocol):
    """What records: a tracer."""

    def tensor(self, path: str) -> fx.Proxy:
        """The proxy of a parameter or buffer."""

    def enter_module(self, m: nn.Module, forward: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """What stands for a module's forward."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one operation."""


class _Tensors(dict[str, Any]):
    """A module's parameters or buffers, read as proxies."""

    def __init__(self, tensors: dict[str, Any], tracer: Recorder, prefix: str) -> None:
        super().__init__(tensors)
        self._tracer, self._prefix = tracer, prefix

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        return value if value is None else self._tracer.tensor(self._prefix + name)


@contextlib.contextmanager
def recording(tracer: Recorder, root: nn.Module) -> Iterator[None]:
    """Let the modules of a private copy record their calls and give proxies for their tensors."""
    kept = States(root)
    for path, module in root.named_modules():
        state, prefix = vars(module), f"{path}." if path else ""
        if isinstance(module, torch.jit.ScriptModule):
            continue
        if module is not root:
            state["forward"] = functools.partial(tracer.enter_module, module, module.forward)
        if tracer.is_leaf_module(module, path):
            state["_forward_pre_hooks"] = OrderedDict()  # of weight norm, which the layer's rule reads through
        state["_parameters"] = _Tensors(state["_parameters"], tracer, prefix)
        state["_buffers"] = _Tensors(state["_buffers"], tracer, prefix)
    try:
        yield
    finally:
        kept.restore()  # what a forward keeps would hold proxies


class States:
    """Attributes of a module and its parts, with what lists and dictionaries among them hold."""

    def __init__(self, root: nn.Module) -> None:
        self._states = [(vars(m), dict(vars(m))) for m in root.modules()]
        self._contents = Contents(
            value
            for state, _ in self._states
            for name, value in state.items()
            if name not in MODULE_ATTRIBUTES and isinstance(value, list | dict | set | tuple)
        )

    def restore(self) -> None:
        """Put back what has changed since, but for tensors that a forward makes anew."""
        for state, before in self._states:
            made = {name: value for name, value in state.items() if name.startswith(MADE)}
            state.clear()
            state.update(before | made)
        self._contents.restore()
        restore_outside()


def states_of(module: nn.Module) -> list[Any]:
    """Attributes of a module and its parts, to be compared: what lists and dictionaries hold counts."""
    return [
        (name, _content(value))
        for part in module.modules()
        for name, value in vars(part).items()
        if not name.startswith(MADE) and not is_traceable_copy(value)
    ]


def _content(value: Any) -> Any:
    """Something that is equal as long as a value is the same, or holds the same."""
    if isinstance(value, list | tuple):
        return tuple(map(_content, value))
    if isinstance(value, dict):
        return tuple((key, _content(part)) for key, part in value.items())
    return id(value)
