"""A network whose inputs and outputs are named tensors, as files of deployment runtimes have them."""

from __future__ import annotations

import inspect
import keyword
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten_with_path, tree_unflatten

from unbranch.convert.prove.inputs import as_inputs, input_error
from unbranch.errors import InputError
from unbranch.graph.eval_view import eval_view, unwrap_model
from unbranch.graph.running import plain_output


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and dtype of an input or output.

    Args:
        name: in the exported file.
        shape: for the example.
        dtype: such as ``"float32"``.
        dynamic: axes that may have another size.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    dynamic: tuple[int, ...] = ()

    @classmethod
    def of(cls, name: str, value: Tensor) -> TensorSpec:
        """Describe a tensor."""
        return cls(name, tuple(value.shape), str(value.dtype).removeprefix("torch."))

    def random(self, batch: int | None = None, seed: int = 0) -> Tensor:
        """Return a random tensor of this shape and dtype, normal, or zeros for integers, in batches of ``batch``."""
        shape = tuple(batch if batch and axis == 0 else size for axis, size in enumerate(self.shape))
        dtype = getattr(torch, self.dtype)
        generator = torch.Generator().manual_seed(seed)
        return (
            torch.randn(shape, generator=generator).to(dtype)
            if dtype.is_floating_point
            else torch.zeros(shape).to(dtype)
        )


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of an exported network, in their order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Signature:
        """Read a signature from plain values, as JSON has them."""
        inputs, outputs = (
            tuple(TensorSpec(v["name"], tuple(v["shape"]), v["dtype"], tuple(v["dynamic"])) for v in values[key])
            for key in ("inputs", "outputs")
        )
        for spec in (*inputs, *outputs):
            if not isinstance(getattr(torch, spec.dtype), torch.dtype) or any(type(n) is not int for n in spec.shape):
                raise ValueError(f"{spec.name} has no dtype and shape")
        return cls(inputs, outputs)


class FlatNetwork(nn.Module):
    """A network in evaluation mode that takes tensors as positional arguments and returns a tuple of tensors.

    Containers of tensors among the arguments and in the output (lists, dictionaries, data classes) are flattened;
    other values among the arguments are constants, and in the output they are dropped. It shares all tensors with
    the network, which isn't changed.

    Args:
        model: any network.
        example_input: a tensor, or a tuple of the forward's arguments.

    Raises:
        InputError: if the network doesn't run on the example, or returns no tensor.

    Example:
        >>> class Two(nn.Module):
        ...     def forward(self, images, scale):
        ...         return {"logits": images.mean((2, 3)) * scale, "name": "two"}
        >>> flat = FlatNetwork(Two(), (torch.ones(2, 3, 4, 4), torch.ones(1)))
        >>> [spec.name for spec in (*flat.signature.inputs, *flat.signature.outputs)]
        ['images', 'scale', 'logits']
    """

    def __init__(self, model: nn.Module, example_input: Any) -> None:
        super().__init__()
        model = unwrap_model(model)
        args = as_inputs(example_input)
        self.network = eval_view(model)
        leaves, self._spec = tree_flatten_with_path(args)
        self._constants = [None if isinstance(value, Tensor) else (value,) for _, value in leaves]
        self.example = tuple(value for _, value in leaves if isinstance(value, Tensor))
        inputs = _unique(_input_name(model, args, path) for path, value in leaves if isinstance(value, Tensor))
        outputs = self._outputs(args, inputs)
        self.signature = Signature(
            tuple(TensorSpec.of(name, value) for name, value in zip(inputs, self.example, strict=True)), outputs
        )

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        output = plain_output(self.network(*self.arguments(tensors)))
        return tuple(value for _, value in tree_flatten_with_path(output)[0] if isinstance(value, Tensor))

    def arguments(self, tensors: Sequence[Tensor]) -> Any:
        """Return the arguments of the network's own forward."""
        given = iter(tensors)
        leaves = [next(given) if constant is None else constant[0] for constant in self._constants]
        spec: TreeSpec = self._spec
        return tree_unflatten(leaves, spec)

    def _outputs(self, args: tuple[Any, ...], taken: Sequence[str]) -> tuple[TensorSpec, ...]:
        try:
            with torch.inference_mode(False), torch.no_grad():
                output = plain_output(self.network(*args))
        except Exception as error:  # anything that a forward raises
            raise input_error(self.network, args, error) from error
        leaves = [(path, value) for path, value in tree_flatten_with_path(output)[0] if isinstance(value, Tensor)]
        if not leaves:
            raise InputError(f"{type(self.network).__name__} returns no tensor, so there is nothing to deploy")
        names = _unique((_joined(path, "output") for path, _ in leaves), taken)
        return tuple(TensorSpec.of(name, value) for name, (_, value) in zip(names, leaves, strict=True))


def _input_name(model: nn.Module, args: tuple[Any, ...], path: Sequence[Any]) -> str:
    """Return ``input`` for a network of one tensor, otherwise the name of the argument and the place in it."""
    if len(args) == 1 and len(path) == 1:
        return "input"
    index = path[0].idx
    try:
        parameters = [p.name for p in inspect.signature(model.forward).parameters.values() if p.kind < p.VAR_POSITIONAL]
    except (TypeError, ValueError):  # a forward without a signature
        parameters = []
    return _joined(path[1:], parameters[index] if index < len(parameters) else f"input_{index}", keep=True)


def _joined(path: Sequence[Any], first: str, *, keep: bool = False) -> str:
    """Return a name for a place in nested containers: keys and numbers joined by underscores."""
    parts = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path]
    if keep or not parts or parts[0].isdigit():
        parts.insert(0, first)
    name = re.sub(r"\W+", "_", "_".join(parts), flags=re.ASCII).strip("_") or first
    return f"{first}_{name}" if name[0].isdigit() or keyword.iskeyword(name) else name


def _unique(names: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """Return the names, with a number behind those that came before or are taken."""
    seen, result = set(taken), []
    for name in names:
        number, candidate = 1, name
        while candidate in seen:
            number, candidate = number + 1, f"{name}_{number}"
        seen.add(candidate)
        result.append(candidate)
    return result
