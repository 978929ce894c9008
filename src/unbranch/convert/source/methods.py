"""What the methods of a class besides ``forward`` run: parts whose outputs they show to whoever calls them.

``forward_features``, ``forward_intermediates`` and their kin return what lies inside a network, so a merge that moves a
layer from one of the parts that they run into another would change what they return. Decided is by what can be called
today, not by a method's name: a ``forward_fuse`` for the time after a conversion reads attributes that don't exist, and
``get_equivalent_kernel_bias`` runs nothing.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterator
from typing import Any

from torch import nn

from unbranch.convert.source.self_calls import Pattern, deleted_by, passed_on_by, read_by, stored_by

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def entry_points(module: nn.Module) -> list[str]:
    """Methods of a module's class, besides ``forward``, that run children of it and can be called as it is now.

    Helpers of the forward, which it calls with more than it is given itself, don't count, and neither do forwards for
    the time after a conversion of the class's own.
    """
    found = [name for name, runs in _methods(module) if any(_exists(module, pattern) for pattern in runs)]
    return [name for name in found if not _is_helper(module, name) and not _is_for_later(module, name)]


def _is_for_later(module: nn.Module, name: str) -> bool:
    """Whether a method runs a part that another method puts in place when it deletes what the forward runs."""
    forward = inspect.unwrap(type(module).forward)
    now = {p[0] for p in read_by(forward)[0]} if inspect.isfunction(forward) else set()
    runs = {p[0] for found, patterns in _methods(module) for p in patterns if found == name}
    for other in {n for base in type(module).__mro__ for n in vars(base)} - {"__init__", "forward", name}:
        method = inspect.getattr_static(type(module), other, None)
        if inspect.isfunction(method) and not method.__module__.startswith("torch."):
            method = inspect.unwrap(method)
            if now & deleted_by(method) and runs & stored_by(method):
                return True
    return False


def _is_helper(module: nn.Module, name: str) -> bool:
    forward, method = type(module).forward, inspect.getattr_static(type(module), name, None)
    code = getattr(forward, "__code__", None)
    if code is None or name not in code.co_names or not inspect.isfunction(method):
        return False
    return _needed(method) > max(_needed(forward), 2)


def _needed(method: Any) -> int:
    """How many arguments a method needs, itself included."""
    return sum(p.default is p.empty and p.kind in _POSITIONAL for p in inspect.signature(method).parameters.values())


def methods_running(module: nn.Module, path: str) -> list[str]:
    """Methods of a module's class, besides ``forward``, that run the part at a path from it."""
    steps = tuple(path.split("."))
    return [name for name, runs in _methods(module) if any(_fits(steps, pattern) for pattern in runs)]


def methods_running_all(module: nn.Module, paths: set[str]) -> set[str]:
    """Methods that run all the parts at paths, each by its name; what a loop runs may be shown one by one."""
    runs = dict(_methods(module))
    return {name for name, found in runs.items() if all(tuple(path.split(".")) in found for path in paths)}


def methods_iterating_over(module: nn.Module, paths: set[str]) -> set[str]:
    """Methods that run all the parts at paths, in loops too."""
    steps = [tuple(path.split(".")) for path in paths]
    return {name for name, runs in _methods(module) if all(any(_fits(s, p) for p in runs) for s in steps)}


def calls_method_of(module: nn.Module, path: str, name: str) -> bool:
    """Whether a method of a module's class, besides ``forward``, calls a method of the part at a path from it."""
    steps = (*path.split("."), name)
    return any(_fits(steps, pattern) for _, runs in _methods(module) for pattern in runs)


def methods_reaching_into(module: nn.Module, path: str) -> list[str]:
    """Methods of a module's class, besides ``forward``, that run something inside the part at a path from it."""
    steps = tuple(path.split("."))
    return [
        name
        for name, runs in _methods(module)
        if any(len(p) > len(steps) and _fits(steps, p[: len(steps)]) and _exists(module, p) for p in runs)
    ]


@functools.lru_cache(maxsize=4096)
def attributes_set_by(owner: Any) -> frozenset[str]:
    """Names of the attributes that the methods of a class set."""
    found: set[str] = set()
    for base in owner.__mro__:
        found |= set(vars(base)) | set(getattr(base, "__annotations__", ()))
        if base.__module__.split(".")[0] not in ("builtins", "torch") or base.__module__.startswith(
            "torch.nn.modules."
        ):
            for method in vars(base).values():
                found |= stored_by(method) if inspect.isfunction(method) else set()
    return frozenset(found)


def _methods(module: nn.Module) -> Iterator[tuple[str, frozenset[Pattern]]]:
    """Methods that can be called, with what they run."""
    own = {name: value.__func__ for name, value in vars(module).items() if isinstance(value, types.MethodType)}
    bases = [base for base in type(module).__mro__ if not base.__module__.startswith(("torch.", "builtins"))]
    for name in sorted({*own, *(name for base in bases for name in vars(base))}):
        method = own.get(name) or inspect.getattr_static(type(module), name, None)
        if name.startswith("__") or name == "forward" or not inspect.isfunction(method):
            continue
        if (method.__module__ or "").startswith("torch."):
            continue
        runs, reads = read_by(method)
        if runs and all(hasattr(module, attribute) for attribute in reads):
            yield name, runs


def parts_run_by_forward(module: nn.Module) -> list[nn.Module]:
    """Parts of parts that the forward of a module's class calls, past those that they lie in."""
    forward = getattr(type(module).forward, "__wrapped__", type(module).forward)
    runs, _ = read_by(forward) if inspect.isfunction(forward) else (frozenset(), None)
    return [part for pattern in sorted(runs) if len(pattern) > 1 for part in _parts(module, pattern)]


def forward_runs(module: nn.Module, path: str, *, inside: bool = False) -> bool:
    """Whether the forward of a module's class itself runs the part at a path from it, or something inside that.

    With ``inside`` only what is inside counts.
    """
    steps = tuple(path.split("."))
    forward = inspect.unwrap(type(module).forward)
    runs, _ = read_by(forward) if inspect.isfunction(forward) else (frozenset(), None)
    return any(len(p) >= len(steps) + inside and _fits(steps, p[: len(steps)]) for p in runs)


def forward_passes_on(module: nn.Module, path: str) -> bool:
    """Whether the forward of a module's class gives what the part at a path lies in to a function that it is given."""
    steps = tuple(path.split("."))
    forward = inspect.unwrap(type(module).forward)
    given = passed_on_by(forward) if inspect.isfunction(forward) else frozenset()
    return any(_fits(steps[: len(p)], p) for p in given)


def _exists(module: nn.Module, pattern: Pattern) -> bool:
    """Whether a pattern leads to a part."""
    return bool(_parts(module, pattern))


def _parts(module: nn.Module, pattern: Pattern) -> list[nn.Module]:
    found = [module]
    for step in pattern:
        found = [c for m in found for name, c in m._modules.items() if c is not None and step in ("*", name)]
    return found


def _fits(steps: Pattern, pattern: Pattern) -> bool:
    return len(steps) == len(pattern) and all(p in ("*", s) for s, p in zip(steps, pattern, strict=True))
