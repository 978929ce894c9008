"""Let the modules of a private copy record their calls, and restore them afterwards."""

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
from unbranch.graph.eval_view import MODULE_ATTRIBUTES
from unbranch.graph.outside import restore_outside


class Recorder(Protocol):
    """The interface of a tracer that records calls."""

    def tensor(self, path: str) -> fx.Proxy:
        """Return the proxy of a parameter or buffer."""

    def enter_module(self, m: nn.Module, forward: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run in place of a module's forward."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is traced as a single operation."""


class _Tensors(dict[str, Any]):
    """A module's parameters or buffers, returned as proxies."""

    def __init__(self, tensors: dict[str, Any], tracer: Recorder, prefix: str) -> None:
        super().__init__(tensors)
        self._tracer, self._prefix = tracer, prefix

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        return value if value is None else self._tracer.tensor(self._prefix + name)


@contextlib.contextmanager
def recording(tracer: Recorder, root: nn.Module) -> Iterator[None]:
    """Let the modules of a private copy record their calls and return proxies for their tensors."""
    kept = States(root)
    for path, module in root.named_modules():
        state, prefix = vars(module), f"{path}." if path else ""
        if isinstance(module, torch.jit.ScriptModule):
            continue
        if module is not root:
            state["forward"] = functools.partial(tracer.enter_module, module, module.forward)
        if tracer.is_leaf_module(module, path):
            state["_forward_pre_hooks"] = OrderedDict()  # hooks of weight norm, which the layer's rule accounts for
        state["_parameters"] = _Tensors(state["_parameters"], tracer, prefix)
        state["_buffers"] = _Tensors(state["_buffers"], tracer, prefix)
    try:
        yield
    finally:
        kept.restore()  # values that a forward stored may hold proxies


class States:
    """A snapshot of the attributes of a module and its parts, including the contents of lists and dictionaries."""

    def __init__(self, root: nn.Module) -> None:
        self._states = [(vars(m), dict(vars(m))) for m in root.modules()]
        self._contents = Contents(
            value
            for state, _ in self._states
            for name, value in state.items()
            if name not in MODULE_ATTRIBUTES and isinstance(value, list | dict | set | tuple)
        )

    def restore(self) -> None:
        """Restore everything but tensors that a forward created."""
        for state, before in self._states:
            made = {name: value for name, value in state.items() if name.startswith(MADE)}
            state.clear()
            state.update(before | made)
        self._contents.restore()
        restore_outside()


def states_of(module: nn.Module) -> list[Any]:
    """Return the attributes of a module and its parts in a form to compare, including the contents of containers."""
    return [
        (name, _content(value))
        for part in module.modules()
        for name, value in vars(part).items()
        if not name.startswith(MADE) and not is_traceable_copy(value)
    ]


def _content(value: Any) -> Any:
    """Return a mark that is equal as long as a value is, or contains, the same objects."""
    if isinstance(value, list | tuple):
        return tuple(map(_content, value))
    if isinstance(value, dict):
        return tuple((key, _content(part)) for key, part in value.items())
    return id(value)
