"""``create_model``: a network by name, of ours or of other libraries, with random or published weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from torch import nn

from unbranch.errors import InputError
from unbranch.extras import library
from unbranch.models.load import load_checkpoint, widths_in
from unbranch.models.names import create
from unbranch.models.registry import ENTRIES, Entry, resolve
from unbranch.models.units import Block

HUB = "hf-hub:"
HUB_FILES = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin")


def create_model(
    name: str,
    num_classes: int | None = None,
    in_channels: int = 3,
    block: Block = None,
    pretrained: str | Path | bool | None = None,
    **options: Any,
) -> nn.Module:
    """The network called ``name``, in training mode.

    Args:
        name: one of ``list_models()``, in any spelling (``repvgg_a0``, ``RepVGG-A0``); or ``timm:NAME``,
            ``torchvision:NAME``, ``package.module:factory``.
        num_classes: logits, 0 for features alone; 1000, or 10 for CIFAR's networks, unless given.
        in_channels: of the images.
        block: what stands for the convolutions of a plain network: ``"acb"``, ``"dbb"``, ``"repvgg"``, … or anything
            with nn.Conv2d's signature; ``"compactor"`` puts compactors behind the layers that ResRep prunes.
        pretrained: ``"timm"`` for timm's weights of the same network, an id on the Hugging Face hub (``owner/name``),
            or a file; ``True`` for whatever there is. For weights of a pruned network it is made as narrow as they are.
        options: ``features_only=True`` for a backbone with ``out_indices``, ``drop_rate``, ``drop_path_rate``,
            ``block_options`` for the block, ``widths`` of a pruned network, and what else the family takes.

    Raises:
        InputError: for an unknown name, an option that the network hasn't, or weights that can't be had.

    >>> import torch, unbranch as ub
    >>> ub.create_model("cifar_quick", block="acb")(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    >>> [tuple(y.shape[1:]) for y in ub.create_model("resnet56_cifar", features_only=True)(torch.zeros(1, 3, 32, 32))]
    [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    """
    entry = ENTRIES.get(resolve(name) or "")
    if entry is None:
        return _foreign(name, num_classes, in_channels, block, pretrained, options)
    usual: dict[str, Any] = {"num_classes": num_classes, "in_channels": in_channels, "block": block}
    default = {"num_classes": None, "in_channels": 3, "block": None}
    given = {key: value for key, value in usual.items() if value != default[key]}
    network = create(entry.name, **given, **options)
    if pretrained not in (None, False):
        weights = _weights(entry, pretrained)
        if options.get("widths") is None and (widths := widths_in(network, weights)):
            network = create(entry.name, **given, **{**options, "widths": widths})
        load_checkpoint(network, weights)
    return network


def _foreign(
    name: str, num_classes: int | None, in_channels: int, block: Block, pretrained: Any, options: dict[str, Any]
) -> nn.Module:
    """A network of timm, torchvision or the user's own code, which take such arguments by names of their own."""
    if block is not None:
        raise InputError(f"block={block!r} is for networks of Unbranch; put blocks into {name} with unbranch.expand")
    source = name.partition(":")[0]
    given = {} if num_classes is None else {"num_classes": num_classes}
    if in_channels != 3:
        if source == "torchvision":
            raise InputError(f"torchvision's networks take 3 channels; got in_channels={in_channels}")
        given["in_chans" if source == "timm" else "in_channels"] = in_channels
    if source == "timm" and isinstance(pretrained, bool):
        given["pretrained"] = pretrained
    network = create(name, **given, **options)
    if pretrained is True and source != "timm":
        raise InputError(f"pretrained=True isn't known for {name}; name a file or an id on the Hugging Face hub")
    if isinstance(pretrained, str | Path):
        load_checkpoint(network, _hub_file(pretrained) if _is_hub_id(pretrained) else pretrained)
    return network


def _weights(entry: Entry, pretrained: Any) -> Any:
    """A file, or a state dict, of the weights that were asked for."""
    if pretrained is True or pretrained == "timm":
        if entry.timm is None:
            raise InputError(f"timm has no weights for {entry.name}: name a file or an id on the Hugging Face hub")
        return _of_timm(entry.timm)
    if not isinstance(pretrained, str | Path):
        raise InputError(f"pretrained is 'timm', an id on the Hugging Face hub or a file; got {pretrained!r}")
    return _hub_file(pretrained) if _is_hub_id(pretrained) else pretrained


def _is_hub_id(source: str | Path) -> bool:
    text = str(source)
    if text.startswith(HUB):
        return True
    owner, slash, rest = text.partition("/")
    return isinstance(source, str) and bool(owner and slash and rest) and "/" not in rest and not Path(text).suffix


def _of_timm(name: str) -> Any:
    try:
        return library("timm").create_model(name, pretrained=True).state_dict()
    except InputError:
        raise
    except Exception as error:  # whatever stops a download
        raise InputError(f"timm's weights of {name} can't be had: {type(error).__name__}: {error}") from error


def _hub_file(source: str | Path) -> Path:
    """The file with weights of a repository on the hub, from the cache if it is there."""
    repository = str(source).removeprefix(HUB)
    hub = library("huggingface_hub")
    problem: Exception | None = None
    for file in HUB_FILES:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return Path(hub.hf_hub_download(repository, file))
        except hub.errors.EntryNotFoundError as error:
            problem = error
        except Exception as error:  # no network, no such repository, no permission
            raise InputError(f"{repository} can't be had from the hub: {type(error).__name__}: {error}") from error
    raise InputError(f"{repository} has none of {', '.join(HUB_FILES)} on the hub") from problem
