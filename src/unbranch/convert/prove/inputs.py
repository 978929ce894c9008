"""Example inputs, expected inputs of layers, and errors about inputs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from unbranch.errors import InputError
from unbranch.graph.probe import Arguments, probe
from unbranch.rules import LayerInput, rule_of_base


def as_inputs(example: Any) -> tuple[Any, ...]:
    """Return an example input as the tuple of a forward's arguments.

    Raises:
        InputError: if it has no tensor.
    """
    inputs = tuple(example) if isinstance(example, tuple | list) and not _is_image_list(example) else (example,)
    if not any(isinstance(v, Tensor) for v in tree_flatten(inputs)[0]):
        raise InputError(f"`example_input` must be a tensor or a tuple of tensors, got {type(example).__name__}")
    return inputs


def _is_image_list(example: Any) -> bool:
    return isinstance(example, list)  # detectors take one list of images


def input_error(
    network: nn.Module, inputs: Any, error: Exception, *, which: str = "the network", precision: str = ""
) -> InputError:  # fmt: skip
    """Return an error, in one sentence, about an input on which a network doesn't run."""
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return InputError(
        f"{which}, {type(network).__name__}, can't run on `example_input`, {_described(inputs)},{precision}: "
        f"{type(error).__name__}{f': {reason}' if reason else ''}".replace(",: ", ": ")
    )


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        return f"a {kind} tensor of shape {tuple(value.shape)} on {value.device}"
    if isinstance(value, tuple) and len(value) == 1:
        return _described(value[0])
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}: {', '.join(map(_described, value[:4]))}"
    return f"a value of type {type(value).__name__}"


def expected_input(module: nn.Module) -> LayerInput | None:
    """Return the channels and rank of a layer's input, if its rule knows them."""
    rule = rule_of_base(module)
    if rule is None or rule.layer_input is None:
        return None
    try:
        return rule.layer_input(module)
    except Exception:  # a lazy layer, or a user's rule that doesn't fit
        return None


def sizes_of(network: nn.Module) -> tuple[Arguments, Arguments] | None:
    """Return inputs of two sizes for a network on the meta device, which can be traced but not proved."""
    try:
        found = probe(network, expected_input)
    except Exception:  # it needs data
        return None
    return (found[0], found[1]) if len(found) == 2 else None
