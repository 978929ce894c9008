"""A network from its name: one of the zoo, ``timm:NAME``, ``torchvision:NAME`` or ``package.module:factory``."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from unbranch.errors import InputError, nearest
from unbranch.extras import library
from unbranch.models.registry import MODELS, SOURCES, list_models, resolve
from unbranch.provenance import provenance_of, set_provenance

Builder = Callable[..., Any]
# Options that say where weights come from and how layers are compiled, and nothing about the network.
SOURCE_OPTIONS = re.compile(
    r"pretrained(_cfg.*|_strict|_custom_load)?|checkpoint_path|weights.*|cache_dir|progress|scriptable|exportable|no_jit"
)


def build_model(name: str, /, **options: Any) -> nn.Module:
    """Build the network called ``name`` with random weights.

    ``create_model`` is this, and pretrained weights. The history of the network says its name and options.

    Args:
        name: of the zoo, in any spelling, or ``timm:NAME``, ``torchvision:NAME``, ``package.module:factory``.
        options: arguments of its factory; old names of options of the zoo are accepted, as files may have them.

    Raises:
        InputError: for an unknown name, or an option that doesn't fit.
        MissingPackageError: if its library isn't installed.
    """
    name = resolve(name) or name
    if name in MODELS:
        options = _with_lists(MODELS[name].current_options(options))
    network = _built(name, _builder(name), options)
    described = {key: value for key, value in options.items() if not SOURCE_OPTIONS.fullmatch(key)}
    history = provenance_of(network)  # a factory may have named it by what it was made from
    if history.network is None and _is_json(described):  # otherwise a file can't say how to make it
        set_provenance(network, replace(history, network=name, arguments=described))
    return network


def _builder(name: str) -> Builder:
    source, colon, rest = name.partition(":")
    if not colon and name in MODELS:
        return MODELS[name].make
    if not source or not rest:
        raise InputError(
            f"{name!r} names no network: write timm:NAME, torchvision:NAME, package.module:factory or a name that "
            f"`unbranch models` lists, for example repvgg_a0{_elsewhere(name) or nearest(name, MODELS)}"
        )
    find = {"timm": _timm, "torchvision": _torchvision}.get(source)
    return find(rest) if find else _factory(source, rest)


def _elsewhere(name: str) -> str:
    """Return the end of a sentence that says which library has a network of this name, or an empty string."""
    found = []
    for source in SOURCES if name.isidentifier() else ():
        with suppress(InputError):  # the library isn't installed
            found += list_models(f"{source}:{name}")
    return f"; there is {' and '.join(found)}" if found else ""


def _with_lists(value: Any) -> Any:
    """Return a value with its tuples, which JSON doesn't have, as lists."""
    if isinstance(value, dict):
        return {key: _with_lists(inner) for key, inner in value.items()}
    return [_with_lists(inner) for inner in value] if isinstance(value, list | tuple) else value


def _is_json(options: dict[str, Any]) -> bool:
    """Whether JSON gives the same values back."""
    try:
        return bool(json.loads(json.dumps(options, allow_nan=False)) == options)
    except (TypeError, ValueError, RecursionError):
        return False


def _timm(name: str) -> Builder:
    timm = library("timm")
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise InputError(f"timm has no network {name!r}{nearest(architecture, timm.list_models())}")
    return partial(timm.create_model, name if tag else architecture)


def _torchvision(name: str) -> Builder:
    models = library("torchvision").models
    if name not in models.list_models():
        raise InputError(f"torchvision has no network {name!r}{nearest(name, models.list_models())}")
    # A detector would download the weights of its backbone by default.
    known = inspect.signature(models.get_model_builder(name)).parameters
    quiet = {key: None for key in ("weights", "weights_backbone") if key in known}
    return partial(models.get_model, name, **quiet)


def _factory(module_name: str, attribute: str) -> Builder:
    try:
        module: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        what = "" if f"{module_name}.".startswith(f"{missing}.") else f", which {module_name} imports"
        raise InputError(f"no module {missing!r}{what}: is it installed, or on sys.path?") from error
    except Exception as error:
        raise InputError(f"importing {module_name!r} failed: {type(error).__name__}: {error}") from error
    for part in attribute.split("."):
        if not hasattr(module, part):
            raise InputError(f"{module_name!r} has no {attribute!r}{nearest(part, dir(module))}")
        module = getattr(module, part)
    if isinstance(module, nn.Module):
        raise InputError(
            f"{module_name}:{attribute} is a network, not a factory; name the function or class that makes it"
        )
    if not callable(module):
        raise InputError(f"{module_name}:{attribute} is {type(module).__name__}, not a factory")
    builder: Builder = module
    return builder


def _built(name: str, builder: Builder, options: dict[str, Any]) -> nn.Module:
    try:
        network = builder(**options)
    except InputError:
        raise
    except Exception as error:
        given = f" with {options}" if options else ""
        raise InputError(f"building {name}{given} failed: {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"{name} made a {type(network).__name__}, not a torch.nn.Module")
    return network
