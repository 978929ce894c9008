"""Names that are bound to values outside of modules."""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Any

MISSING = object()


@dataclass(frozen=True, eq=False)
class Binding:
    """A place that holds a value: a dictionary entry, an attribute of a class or object, or the cell of a closure."""

    owner: Any
    name: str

    def value(self) -> Any:
        """Return the value, or ``MISSING``."""
        if isinstance(self.owner, types.CellType):
            try:
                return self.owner.cell_contents
            except ValueError:  # empty
                return MISSING
        if isinstance(self.owner, dict):
            return dict.get(self.owner, self.name, MISSING)
        if isinstance(self.owner, type):
            return type.__getattribute__(self.owner, "__dict__").get(self.name, MISSING)
        return slot_of(self.owner, self.name)

    def bind(self, value: Any) -> None:
        """Bind a value, or unbind with ``MISSING``."""
        if isinstance(self.owner, types.CellType):
            if value is not MISSING:
                self.owner.cell_contents = value
            else:
                del self.owner.cell_contents
        elif isinstance(self.owner, dict):
            if value is not MISSING:
                dict.__setitem__(self.owner, self.name, value)
            else:
                dict.__delitem__(self.owner, self.name)
        else:
            kind: Any = type if isinstance(self.owner, type) else object  # bypasses methods of the class itself
            if value is not MISSING:
                kind.__setattr__(self.owner, self.name, value)
            else:
                kind.__delattr__(self.owner, self.name)


def slot_of(owner: Any, name: str) -> Any:
    """Return an attribute of an object, bypassing methods of its class."""
    try:
        return object.__getattribute__(owner, name)
    except AttributeError:
        return MISSING


def vars_of(owner: Any) -> Any:
    """Return the namespace of a dictionary or class."""
    return owner if isinstance(owner, dict) else type.__getattribute__(owner, "__dict__")
