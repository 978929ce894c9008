"""``create_model``: a network by name, with random or pretrained weights."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from unbranch.errors import InputError
from unbranch.extras import library
from unbranch.models.build import build_model
from unbranch.models.registry import MODELS, resolve
from unbranch.models.units import Block
from unbranch.weights.formats import SUFFIXES, PathLike, Source, read_checkpoint
from unbranch.weights.pipeline import load_stripped, widths_in
from unbranch.weights.strip import strip

HUB = "hf-hub:"
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)  # owner/name; names such as timm's have points in them
HUB_FILES = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin")
LIBRARY_WEIGHTS: dict[str, dict[str, Any]] = {"timm": {"pretrained": True}, "torchvision": {"weights": "DEFAULT"}}


def create_model(
    name: str,
    *args: Any,
    pretrained: PathLike | bool | None = None,
    num_classes: int | None = None,
    in_channels: int = 3,
    block: Block = None,
    **options: Any,
) -> nn.Module:
    """Return the network called ``name``, in training mode.

    Args:
        name: one of ``list_models()``, in any spelling (``repvgg_a0``, ``RepVGG-A0``); or ``timm:NAME``,
            ``torchvision:NAME``, ``package.module:factory``.
        args: ``pretrained`` or ``num_classes``, which differ in type.
        pretrained: ``"timm"`` for timm's weights of the same network, an id on the Hugging Face hub (``owner/name``),
            or a file; ``True`` for the weights of the network's own library, which for ours is timm. For weights of a
            pruned network, the network is made as narrow as they are. timm's ``checkpoint_path`` is accepted, too.
        num_classes: logits, 0 for features alone; by default 1000, or 10 for CIFAR's networks.
        in_channels: of the images; timm's ``in_chans`` is accepted, too.
        block: what replaces the convolutions of a plain network: ``"acb"``, ``"dbb"``, ``"repvgg"``, … or anything
            with nn.Conv2d's signature; ``"compactor"`` puts compactors behind the layers that ResRep prunes.
        options: ``features_only=True`` for a feature extractor with ``out_indices``, ``drop_rate``,
            ``drop_path_rate``, ``block_options`` for the block, ``pruned_widths`` of a pruned network, and what else
            the family has.

    Raises:
        InputError: for an unknown name, an option that the network doesn't have, or weights that can't be had.

    Example:
        >>> import torch, unbranch as ub
        >>> ub.create_model("cifar_quick", block="acb")(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
        >>> backbone = ub.create_model("resnet56_cifar", features_only=True)
        >>> [tuple(y.shape[1:]) for y in backbone(torch.zeros(1, 3, 32, 32))]
        [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    """
    first, *more = args or (None,)
    if isinstance(first, int) and not isinstance(first, bool):
        num_classes = first
    elif first is not None:
        pretrained = first
    if more:
        warnings.warn("name the arguments: num_classes=, in_channels=, block=, pretrained=", DeprecationWarning, 2)
        in_channels, block, pretrained = (*more, *(in_channels, block, pretrained)[len(more) :])[:3]
    in_channels = options.pop("in_chans", in_channels)
    known = resolve(name) if isinstance(name, str) else None
    if known is None:
        return _other_library(str(name), num_classes, in_channels, block, pretrained, options)
    pretrained = options.pop("checkpoint_path", None) or pretrained
    _warn_of_old_names(known, options)
    options |= {} if num_classes is None else {"num_classes": num_classes}
    options |= {"in_channels": in_channels} if in_channels != 3 else {}
    options |= {} if block is None else {"block": block}
    source = None if pretrained in (None, False) else _source(known, MODELS[known].timm, pretrained)
    return _with_weights(known, MODELS[known].current_options(options), source)


def _warn_of_old_names(name: str, options: Mapping[str, Any]) -> None:
    for old, new in MODELS[name].renamed_options.items():
        if old in options:
            warnings.warn(f"the option `{old}` of {name} is deprecated, use `{new}`", DeprecationWarning, stacklevel=3)


def _with_weights(name: str, options: dict[str, Any], source: Source | None) -> nn.Module:
    """Build a network of the zoo, as narrow as its weights, and load them."""
    model = build_model(name, **options)
    if source is None:
        return model
    checkpoint = strip(read_checkpoint(source))
    if options.get("pruned_widths") is None and (widths := widths_in(model, checkpoint)):
        model = build_model(name, **{**options, "pruned_widths": widths})
    load_stripped(model, checkpoint)
    return model


def _other_library(
    name: str, num_classes: int | None, in_channels: int, block: Block, pretrained: Any, options: dict[str, Any]
) -> nn.Module:
    """Build a network of timm, torchvision or the user's own code, which have their own names of the arguments."""
    library_name = name.partition(":")[0]
    if block is not None and library_name in LIBRARY_WEIGHTS:
        raise InputError(f"`block` must be None for {name}, got {block!r}; put blocks into it with unbranch.expand")
    given: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    given |= {} if block is None else {"block": block}
    if in_channels != 3:
        if library_name == "torchvision":
            raise InputError(f"torchvision's networks take 3 channels, got in_channels={in_channels}")
        given["in_chans" if library_name == "timm" else "in_channels"] = in_channels
    own = pretrained is True or (pretrained == "timm" and library_name == "timm")
    if own:
        if library_name not in LIBRARY_WEIGHTS:
            raise InputError(f"{name} has no weights of its own: name a file or an id on the Hugging Face hub")
        given |= LIBRARY_WEIGHTS[library_name]
    model = build_model(name, **given, **options)
    if not own and pretrained not in (None, False):
        load_stripped(model, strip(read_checkpoint(_source(name, None, pretrained))))
    return model


# --- where weights come from


def _source(name: str, timm_name: str | None, pretrained: Any) -> Source:
    """Return the file, or the state dict, that ``pretrained`` means."""
    if pretrained is True or pretrained == "timm":
        if timm_name is None:
            raise InputError(f"timm has no weights for {name}: name a file or an id on the Hugging Face hub")
        return _timm_weights(timm_name)
    if not isinstance(pretrained, str | os.PathLike):
        raise InputError(f"`pretrained` must be 'timm', an id on the Hugging Face hub or a file, got {pretrained!r}")
    return _hub_file(str(pretrained)) if _is_hub_id(pretrained) else pretrained


def _is_hub_id(source: PathLike) -> bool:
    if not isinstance(source, str) or Path(source).exists():
        return False
    return source.startswith(HUB) or (HUB_ID.fullmatch(source) is not None and Path(source).suffix not in SUFFIXES)


def _timm_weights(name: str) -> dict[str, Any]:
    try:
        state: dict[str, Any] = library("timm").create_model(name, pretrained=True).state_dict()
    except InputError:
        raise
    except Exception as error:  # whatever stops a download
        raise InputError(f"timm's weights of {name} can't be had: {type(error).__name__}: {error}") from error
    return state


def _hub_file(source: str) -> Path:
    """Return the file with weights of a repository on the hub, from the cache if it is there."""
    repository = source.removeprefix(HUB)
    hub = library("huggingface_hub")
    problem: Exception | None = None
    for file in HUB_FILES:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return Path(hub.hf_hub_download(repository, file))
        except hub.errors.EntryNotFoundError as error:
            problem = error
        except Exception as error:  # no connection, no such repository, no permission
            raise InputError(f"{repository} can't be had from the hub: {type(error).__name__}: {error}") from error
    raise InputError(f"{repository} has none of {', '.join(HUB_FILES)} on the hub") from problem
