"""``create_model``: a network by name, of ours or of other libraries, with random or published weights."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from unbranch.errors import InputError
from unbranch.extras import library
from unbranch.models.checkpoints import HDF5, PICKLED
from unbranch.models.load import load_checkpoint, widths_in
from unbranch.models.names import create
from unbranch.models.registry import ENTRIES, resolve
from unbranch.models.units import Block

HUB = "hf-hub:"
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)  # owner/name; names such as timm's have points in them
FILES = (".safetensors", *PICKLED, *HDF5)
OWN_WEIGHTS: dict[str, dict[str, Any]] = {"timm": {"pretrained": True}, "torchvision": {"weights": "DEFAULT"}}
HUB_FILES = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin")


def create_model(
    name: str,
    *given: Any,
    pretrained: str | Path | bool | None = None,
    num_classes: int | None = None,
    in_channels: int = 3,
    block: Block = None,
    **options: Any,
) -> nn.Module:
    """The network called ``name``, in training mode.

    Args:
        name: one of ``list_models()``, in any spelling (``repvgg_a0``, ``RepVGG-A0``); or ``timm:NAME``,
            ``torchvision:NAME``, ``package.module:factory``.
        given: ``pretrained`` or ``num_classes``, told apart by what they are.
        pretrained: ``"timm"`` for timm's weights of the same network, an id on the Hugging Face hub (``owner/name``),
            or a file; ``True`` for what the network's own library has, which for ours is ``"timm"``. For weights of a
            pruned network it is made as narrow as they are.
        num_classes: logits, 0 for features alone; 1000, or 10 for CIFAR's networks, unless given.
        in_channels: of the images; ``in_chans``, timm's word, is taken, too.
        block: what stands for the convolutions of a plain network: ``"acb"``, ``"dbb"``, ``"repvgg"``, … or anything
            with nn.Conv2d's signature; ``"compactor"`` puts compactors behind the layers that ResRep prunes.
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
    first, *more = given or (None,)
    if isinstance(first, int) and not isinstance(first, bool):
        num_classes = first
    elif first is not None:
        pretrained = first
    if more:
        warnings.warn("name the arguments: num_classes=, in_channels=, block=, pretrained=", DeprecationWarning, 2)
        in_channels, block, pretrained = (*more, *(in_channels, block, pretrained)[len(more) :])[:3]
    if "in_chans" in options:
        in_channels = options.pop("in_chans")
    known = resolve(name) if isinstance(name, str) else None
    if known is None:
        return _foreign(str(name), num_classes, in_channels, block, pretrained, options)
    told: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    told |= {"in_channels": in_channels} if in_channels != 3 else {}
    told |= {} if block is None else {"block": block}
    network = create(known, **told, **options)
    if pretrained not in (None, False):
        weights = _weights(known, ENTRIES[known].timm, pretrained)
        if options.get("widths") is None and (widths := widths_in(network, weights)):
            network = create(known, **told, **{**options, "widths": widths})
        load_checkpoint(network, weights)
    return network


def _foreign(
    name: str, num_classes: int | None, in_channels: int, block: Block, pretrained: Any, options: dict[str, Any]
) -> nn.Module:
    """A network of timm, torchvision or the user's own code, which take such arguments by names of their own."""
    if block is not None and ":" in name:
        raise InputError(f"block={block!r} is for networks of Unbranch; put blocks into {name} with unbranch.expand")
    source = name.partition(":")[0]
    given = {} if num_classes is None else {"num_classes": num_classes}
    if in_channels != 3:
        if source == "torchvision":
            raise InputError(f"torchvision's networks take 3 channels; got in_channels={in_channels}")
        given["in_chans" if source == "timm" else "in_channels"] = in_channels
    own = pretrained is True or (pretrained == "timm" and source == "timm")
    if own:
        if source not in OWN_WEIGHTS:
            raise InputError(f"{name} has no weights of its own: name a file or an id on the Hugging Face hub")
        given |= OWN_WEIGHTS[source]
    network = create(name, **given, **options)
    if not own and pretrained not in (None, False):
        load_checkpoint(network, _weights(name, None, pretrained))
    return network


def _weights(name: str, at_timm: str | None, pretrained: Any) -> Any:
    """A file, or a state dict, of the weights that were asked for."""
    if pretrained is True or pretrained == "timm":
        if at_timm is None:
            raise InputError(f"timm has no weights for {name}: name a file or an id on the Hugging Face hub")
        return _of_timm(at_timm)
    if not isinstance(pretrained, str | Path):
        raise InputError(f"pretrained is 'timm', an id on the Hugging Face hub or a file; got {pretrained!r}")
    return _hub_file(pretrained) if _is_hub_id(pretrained) else pretrained


def _is_hub_id(source: str | Path) -> bool:
    if not isinstance(source, str) or Path(source).exists():
        return False
    return source.startswith(HUB) or (HUB_ID.fullmatch(source) is not None and Path(source).suffix not in FILES)


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
