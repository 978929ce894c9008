"""Old public names: they keep working for one minor version, with a DeprecationWarning that names the new one."""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def renamed_names(
    module: str, names: Mapping[str, str], otherwise: Callable[[str], Any] | None = None
) -> Callable[[str], Any]:
    """Return a module's ``__getattr__`` that resolves old names.

    Args:
        module: ``__name__`` of the module.
        names: new name by old one; a new name with dots is looked up from the package's root.
        otherwise: the module's ``__getattr__`` for other names, if it has one.

    Example:
        >>> find = renamed_names("unbranch.errors", {"BadInput": "InputError"})
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     find("BadInput").__name__, str(caught[0].message)
        ('InputError', '`unbranch.errors.BadInput` is deprecated, use `unbranch.errors.InputError`')
    """

    def find(name: str) -> Any:
        if name not in names:
            if otherwise is not None:
                return otherwise(name)
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        where, _, last = names[name].rpartition(".")
        where = where or module
        if sys._getframe(1).f_code.co_name != "_handle_fromlist":  # ``from module import name`` asks twice
            warn_deprecated(f"`{module}.{name}` is deprecated, use `{where}.{last}`")
        return getattr(importlib.import_module(where), last)

    return find


def renamed_arguments(**names: str) -> Callable[[Function], Function]:
    """Accept old keyword arguments of a function under their new names.

    Args:
        names: new name by old one.

    Raises:
        TypeError: by the decorated function, if both names of one argument are given.

    Example:
        >>> @renamed_arguments(colour="color")
        ... def paint(color: str) -> str:
        ...     return color
        >>> paint(color="red")
        'red'
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for old in names.keys() & kwargs.keys():
                new = names[old]
                if new in kwargs:
                    raise TypeError(f"{function.__name__}() got `{old}` and `{new}`, which are the same argument")
                warn_deprecated(f"the argument `{old}` of {function.__name__}() is deprecated, use `{new}`")
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call  # type: ignore[return-value]

    return decorate


class RenamedAttribute:
    """An attribute or a method under its old name: ``left = RenamedAttribute("skipped")``.

    Args:
        new: name of the attribute that is read.
        convert: makes the old value of the new one, where they differ.
    """

    def __init__(self, new: str, convert: Callable[[Any], Any] = lambda value: value) -> None:
        self._new, self._convert = new, convert

    def __set_name__(self, owner: type, name: str) -> None:
        self._old = f"{owner.__name__}.{name}"

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        warn_deprecated(f"`{self._old}` is deprecated, use `{self._new}`")
        return self._convert(getattr(instance, self._new))


def warn_deprecated(message: str, *, frames: int = 1) -> None:
    """Warn at the line that called the function with the deprecated use, ``frames`` above the caller of this."""
    warnings.warn(message, DeprecationWarning, stacklevel=2 + frames)
