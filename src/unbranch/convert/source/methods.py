"""Find which parts of a module its methods besides ``forward`` run.

``forward_features``, ``forward_intermediates`` and similar methods return intermediate values of a network. A merge
that moves a layer from one of the parts that they run into another would change their results. Only methods that can be
called now count, whatever their names: ``forward_fuse`` of a class that deploys itself reads attributes that don't
exist yet, and ``get_equivalent_kernel_bias`` runs nothing.
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
    """Return methods of a module's class, besides ``forward``, that run children of it and can be called now.

    Helpers that the forward calls with more arguments than it receives itself don't count, and neither do forwards for
    the time after a conversion by the class itself.
    """
    found = [name for name, runs in _methods(module) if any(_exists(module, pattern) for pattern in runs)]
    return [name for name in found if not _is_helper(module, name) and not _is_for_later(module, name)]


def _is_for_later(module: nn.Module, name: str) -> bool:
    """Whether a method runs a part that another method creates while it deletes what the forward runs."""
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
    """Return how many arguments a method requires, including ``self``."""
    return sum(p.default is p.empty and p.kind in _POSITIONAL for p in inspect.signature(method).parameters.values())


def methods_running(module: nn.Module, path: str) -> list[str]:
    """Return methods of a module's class, besides ``forward``, that run the part at a path from it."""
    steps = tuple(path.split("."))
    return [name for name, runs in _methods(module) if any(_fits(steps, pattern) for pattern in runs)]


def methods_running_all(module: nn.Module, paths: set[str]) -> set[str]:
    """Return methods that run each of several parts by its own path; parts run in a loop don't count."""
    runs = dict(_methods(module))
    return {name for name, found in runs.items() if all(tuple(path.split(".")) in found for path in paths)}


def methods_iterating_over(module: nn.Module, paths: set[str]) -> set[str]:
    """Return methods that run each of several parts, also in loops."""
    steps = [tuple(path.split(".")) for path in paths]
    return {name for name, runs in _methods(module) if all(any(_fits(s, p) for p in runs) for s in steps)}


def calls_method_of(module: nn.Module, path: str, name: str) -> bool:
    """Whether a method of a module's class, besides ``forward``, calls a given method of the part at a path."""
    steps = (*path.split("."), name)
    return any(_fits(steps, pattern) for _, runs in _methods(module) for pattern in runs)


def methods_reaching_into(module: nn.Module, path: str) -> list[str]:
    """Return methods of a module's class, besides ``forward``, that run something inside the part at a path from it."""
    steps = tuple(path.split("."))
    return [
        name
        for name, runs in _methods(module)
        if any(len(p) > len(steps) and _fits(steps, p[: len(steps)]) and _exists(module, p) for p in runs)
    ]


@functools.lru_cache(maxsize=4096)
def attributes_set_by(owner: Any) -> frozenset[str]:
    """Return the names of the attributes that the methods of a class set."""
    found: set[str] = set()
    for base in owner.__mro__:
        found |= set(vars(base)) | set(getattr(base, "__annotations__", ()))
        if base.__module__.split(".")[0] not in ("builtins", "torch") or base.__module__.startswith(
            "torch.nn.modules."
        ):
            for method in vars(base).values():
                found |= stored_by(method) if inspect.isfunction(method) else frozenset()
    return frozenset(found)


def _methods(module: nn.Module) -> Iterator[tuple[str, frozenset[Pattern]]]:
    """Yield the names of methods that can be called, with the parts that they run."""
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
    """Return nested parts that the forward of a module's class calls directly, past the modules that hold them."""
    forward = getattr(type(module).forward, "__wrapped__", type(module).forward)
    runs, _ = read_by(forward) if inspect.isfunction(forward) else (frozenset(), None)
    return [part for pattern in sorted(runs) if len(pattern) > 1 for part in _parts(module, pattern)]


def forward_runs(module: nn.Module, path: str, *, inside: bool = False) -> bool:
    """Whether the forward of a module's class calls the part at a path from it, or something inside that part.

    With ``inside`` only what is inside counts.
    """
    steps = tuple(path.split("."))
    forward = inspect.unwrap(type(module).forward)
    runs, _ = read_by(forward) if inspect.isfunction(forward) else (frozenset(), None)
    return any(len(p) >= len(steps) + inside and _fits(steps, p[: len(steps)]) for p in runs)


def forward_passes_on(module: nn.Module, path: str) -> bool:
    """Whether the forward of a module's class passes a module that holds the part to a function it was given."""
    steps = tuple(path.split("."))
    forward = inspect.unwrap(type(module).forward)
    given = passed_on_by(forward) if inspect.isfunction(forward) else frozenset()
    return any(_fits(steps[: len(p)], p) for p in given)


def _exists(module: nn.Module, pattern: Pattern) -> bool:
    """Whether a pattern matches a part."""
    return bool(_parts(module, pattern))


def _parts(module: nn.Module, pattern: Pattern) -> list[nn.Module]:
    found = [module]
    for step in pattern:
        found = [c for m in found for name, c in m._modules.items() if c is not None and step in ("*", name)]
    return found


def _fits(steps: Pattern, pattern: Pattern) -> bool:
    return len(steps) == len(pattern) and all(p in ("*", s) for s, p in zip(steps, pattern, strict=True))
