"""A module with a new forward that keeps the class, methods and attributes of the original for other code."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

from torch import fx, nn


class Rebuilt(fx.GraphModule):
    """A module whose forward is a graph and which keeps the original's other methods and attributes.

    ``isinstance`` sees the original's class, and attributes that aren't found are looked up there. Copies and pickles
    keep attributes that other code has set, which those of ``torch.fx.GraphModule`` lose.

    Args:
        parts: modules and tensors that the graph uses, by path.
        graph: the graph of the forward.
        original: the class of the original.
    """

    def __init__(self, parts: Any, graph: fx.Graph, original: type | None = None) -> None:
        super().__init__(parts, graph)
        if original is not None:
            self.__dict__["_original"] = original

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return self.__dict__.get("_original") or type(self)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            original = self.__dict__.get("_original")
            value = inspect.getattr_static(original, name, ...) if original is not None else ...
            if value is ...:
                raise
            return value.__get__(self, original) if hasattr(value, "__get__") else value

    def recompile(self) -> Any:
        """Compile the graph as ``torch.fx`` does, without its ``__call__``, which prints the code when a call fails."""
        code = super().recompile()
        type(self).__call__ = nn.Module.__call__  # type: ignore[method-assign]
        return code

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = super().__deepcopy__(memo)
        for name, value in self.__dict__.items():
            if name not in copied.__dict__:
                copied.__dict__[name] = copy.deepcopy(value, memo)
        _add_unread(copied, copy.deepcopy(self._unread(), memo))
        return copied

    def _unread(self) -> dict[str, dict[str, Any]]:
        """Return children, parameters and buffers that the graph doesn't use, which ``torch.fx`` doesn't copy."""
        used = {str(n.target).split(".")[0] for n in self.graph.nodes if n.op in ("get_attr", "call_module")}
        return {
            table: {name: value for name, value in self.__dict__[table].items() if name not in used}
            for table in ("_modules", "_parameters", "_buffers")
        }

    def __reduce__(self) -> tuple[Any, ...]:
        state = {name: value for name, value in self.__dict__.items() if _is_added(name, value)}
        make, arguments = super().__reduce__()
        arguments[0].pop("_original", None)
        persistent = self._non_persistent_buffers_set
        return _restored, (make, arguments, self.__dict__.get("_original"), state, self._unread(), persistent)


def _is_added(name: str, value: Any) -> bool:
    return not name.startswith("_") and not isinstance(value, nn.Module | fx.Graph)


def _add_unread(module: nn.Module, unread: dict[str, dict[str, Any]]) -> None:
    for table, values in unread.items():
        for name, value in values.items():
            module.__dict__[table].setdefault(name, value)


def _restored(
    make: Callable[..., Any], arguments: Any, original: type | None, state: dict[str, Any],
    unread: dict[str, dict[str, Any]] | None = None, not_persistent: set[str] | None = None,
) -> Rebuilt:  # fmt: skip
    module = make(*arguments)
    restored = Rebuilt(module, module.graph, original)
    for name, value in state.items():
        restored.__dict__.setdefault(name, value)
    _add_unread(restored, unread or {})
    restored._non_persistent_buffers_set |= not_persistent or set()
    restored.training = module.training
    return restored
