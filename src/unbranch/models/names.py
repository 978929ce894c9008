"""A network from its name: one of the zoo, ``timm:NAME``, ``torchvision:NAME`` or ``package.module:factory``."""

from __future__ import annotations

import copy
import importlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unbranch.errors import InputError, nearest
from unbranch.extras import library
from unbranch.models.registry import NETWORKS, SOURCES, list_models, resolve
from unbranch.provenance import provenance_of, set_provenance

Builder = Callable[..., Any]
# Where weights come from and how layers are compiled, which says nothing about the network.
ASIDE = re.compile(
    r"pretrained(_cfg.*|_strict|_custom_load)?|checkpoint_path|weights.*|cache_dir|progress|scriptable|exportable|no_jit"
)


def create(name: str, /, **options: Any) -> nn.Module:
    """Build the network called ``name`` with random weights, handing ``options`` to its factory.

    Raises InputError for a name that doesn't exist, a library that isn't installed or an option that doesn't fit.
    """
    name = resolve(name) or name
    builder = _builder(name)
    network = _built(name, builder, options)
    described = {key: value for key, value in options.items() if not ASIDE.fullmatch(key)}
    if name in NETWORKS:  # which take either
        described = _with_lists(described)
    history = provenance_of(network)  # a factory may have named it by what it was made from
    if history.network is None and _is_json(described):  # if not, a file can't tell how to make it
        set_provenance(network, replace(history, network=name, arguments=described))
    return network


def _builder(name: str) -> Builder:
    source, colon, rest = name.partition(":")
    if not colon and name in NETWORKS:
        return NETWORKS[name]
    if not source or not rest:
        raise InputError(
            f"{name!r} names no network: write timm:NAME, torchvision:NAME, package.module:factory or one of ours, "
            f"which `unbranch models` lists, for example repvgg_a0{_elsewhere(name) or nearest(name, NETWORKS)}"
        )
    find = {"timm": _timm, "torchvision": _torchvision}.get(source)
    return find(rest) if find else _factory(source, rest)


def _elsewhere(name: str) -> str:
    """The end of a sentence that tells which library has a network of this name, or nothing."""
    found = []
    for source in SOURCES if name.isidentifier() else ():
        with suppress(InputError):  # the library isn't installed
            found += list_models(f"{source}:{name}")
    return f"; there is {' and '.join(found)}" if found else ""


def _with_lists(value: Any) -> Any:
    """A value with its tuples, which JSON doesn't know, as lists."""
    if isinstance(value, dict):
        return {key: _with_lists(inner) for key, inner in value.items()}
    return [_with_lists(inner) for inner in value] if isinstance(value, list | tuple) else value


def _is_json(options: dict[str, Any]) -> bool:
    """Whether JSON gives the very same values back."""
    try:
        return bool(json.loads(json.dumps(options, allow_nan=False)) == options)
    except (TypeError, ValueError, RecursionError):
        return False


def example_input(
    network: nn.Module, size: tuple[int, ...] | None = None, batch: int = 1
) -> Tensor | tuple[list[Tensor]]:
    """Random images as the network takes them, of ``size`` (channels, height, width), else of its own usual size.

    ``(batch, channels, height, width)``, or a list of images for a detector of torchvision. Raises InputError if
    the network can't take them.
    """
    shape = size or input_size(network)
    generator = torch.Generator().manual_seed(0)
    images: Tensor | tuple[list[Tensor]] = torch.randn((batch, *shape), generator=generator)
    if type(network).__module__.startswith("torchvision.models.detection"):
        images = (list(torch.rand((batch, *shape), generator=generator)),)
    try:
        with torch.inference_mode():
            copy.deepcopy(network).eval()(*(images if isinstance(images, tuple) else (images,)))
    except Exception as error:  # whatever stops a forward
        raise InputError(f"the network doesn't take an input of size {shape}: {error}; see --input-size") from error
    return images


def input_size(network: nn.Module) -> tuple[int, ...]:
    """What is known of the network, ``(channels, height, width)``; ``(3, 224, 224)`` where nothing is."""
    return known_input_size(network) or (3, 224, 224)


def known_input_size(network: nn.Module) -> tuple[int, ...] | None:
    """Input size by the network's history, or by what it says of itself; None if neither tells."""
    configurations = [getattr(network, field, None) or {} for field in ("pretrained_cfg", "default_cfg")]
    told = [provenance_of(network).input_size, *(known.get("input_size") for known in configurations)]
    return next((tuple(size) for size in told if size), None)


def _timm(name: str) -> Builder:
    timm = library("timm")
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise InputError(f"timm has no network {name!r}{nearest(architecture, timm.list_models())}")
    return lambda **options: timm.create_model(name if tag else architecture, **options)


def _torchvision(name: str) -> Builder:
    models = library("torchvision").models
    if name not in models.list_models():
        raise InputError(f"torchvision has no network {name!r}{nearest(name, models.list_models())}")
    # A detector would fetch the weights of its backbone unless told not to.
    known = inspect.signature(models.get_model_builder(name)).parameters
    quiet = {key: None for key in ("weights", "weights_backbone") if key in known}
    return lambda **options: models.get_model(name, **{**quiet, **options})


def _factory(module_name: str, attribute: str) -> Builder:
    with _working_folder_importable():
        try:
            module: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            missing = error.name or module_name
            what = "" if f"{module_name}.".startswith(f"{missing}.") else f", which {module_name} imports"
            raise InputError(f"no module {missing!r}{what}: is it installed, or in this folder?") from error
        except Exception as error:
            raise InputError(f"importing {module_name!r} failed: {type(error).__name__}: {error}") from error
        for part in attribute.split("."):
            if not hasattr(module, part):
                raise InputError(f"{module_name!r} has no {attribute!r}{nearest(part, dir(module))}")
            module = getattr(module, part)
    if isinstance(module, nn.Module):
        raise InputError(f"{module_name}:{attribute} is a network, not a factory; name what makes it")
    if not callable(module):
        raise InputError(f"{module_name}:{attribute} is {type(module).__name__}, not a factory")
    builder: Builder = module
    return builder


def _built(name: str, builder: Builder, options: dict[str, Any]) -> nn.Module:
    with _working_folder_importable():
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


@contextmanager
def _working_folder_importable() -> Iterator[None]:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
