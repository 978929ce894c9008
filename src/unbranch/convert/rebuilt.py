"""A part with a new forward that stays what it was for everything else: its class, methods and attributes."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

from torch import fx, nn


class Rebuilt(fx.GraphModule):
    """A part whose forward is a graph, and whose class's other methods and attributes stay.

    ``isinstance`` sees the original's class, and attributes that aren't found are looked up there. Copies and pickles
    keep what outer code hung on it, which those of ``torch.fx.GraphModule`` lose.

    Args:
        parts: modules and tensors that the graph reads, by path.
        original: the class of the part.
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
        """As in ``torch.fx``, whose own ``__call__`` prints the code to the terminal where a call fails."""
        code = super().recompile()
        type(self).__call__ = nn.Module.__call__  # type: ignore[method-assign]
        return code

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = super().__deepcopy__(memo)
        for name, value in self.__dict__.items():
            if name not in copied.__dict__:
                copied.__dict__[name] = copy.deepcopy(value, memo)
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        state = {name: value for name, value in self.__dict__.items() if _is_added(name, value)}
        make, arguments = super().__reduce__()
        arguments[0].pop("_original", None)
        return _restored, (make, arguments, self.__dict__.get("_original"), state)


def _is_added(name: str, value: Any) -> bool:
    return not name.startswith("_") and not isinstance(value, nn.Module | fx.Graph)


def _restored(make: Callable[..., Any], arguments: Any, original: type | None, state: dict[str, Any]) -> Rebuilt:
    module = make(*arguments)
    restored = Rebuilt(module, module.graph, original)
    for name, value in state.items():
        restored.__dict__.setdefault(name, value)
    restored.training = module.training
    return restored
