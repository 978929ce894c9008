"""Names of PyTorch's operations by what they do with memory and shapes: the only table of its kind.

Names are those of functions and of tensor methods alike: ``torch.narrow`` and ``Tensor.narrow`` are ``"narrow"``.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

RESHAPES = frozenset({"reshape", "view", "reshape_as", "view_as", "squeeze"})
"""Operations that change the shape, by sizes."""
AXIS_CHANGES = frozenset(
    {"transpose", "swapaxes", "swapdims", "permute", "movedim", "moveaxis", "t", "adjoint", "flatten", "unsqueeze"}
)
"""Operations that reorder, join or insert axes, by positions."""
AXIS_ATTRIBUTES = frozenset({"T", "mT", "H", "mH"})
EXPANSIONS = frozenset({"expand", "expand_as", "broadcast_to"})
BASIC_INDEXING = frozenset({"getitem", "narrow", "select"})

VIEWS = (
    RESHAPES
    | AXIS_CHANGES
    | EXPANSIONS
    | BASIC_INDEXING
    | {
        "unflatten", "ravel", "diagonal", "unbind", "chunk", "split", "tensor_split", "hsplit", "vsplit", "dsplit",
        "split_with_sizes", "detach", "positive", "resolve_conj", "resolve_neg", "contiguous", "to", "type_as", "float",
        "half", "bfloat16", "double", "cpu", "cuda", "pin_memory", "real", "imag", "view_as_real", "view_as_complex",
        "as_strided", "unfold", "atleast_1d", "atleast_2d", "atleast_3d", "conj", "alias",
        "align_to", "refine_names", "rename",  # of named tensors, which newer versions of PyTorch don't have
        "either",  # of convert/trace/decisions.py, stands for one of its inputs
    }
)  # fmt: skip
"""Operations whose result may share memory with their first input."""
VIEW_ATTRIBUTES = AXIS_ATTRIBUTES | {"data", "real", "imag"}
"""Attributes of a tensor that are tensors sharing its memory."""

AUGMENTED_ASSIGNMENTS = frozenset(
    {"iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor", "ilshift"}
    | {"irshift"}
)
"""Functions of ``operator`` for ``+=`` and the like, which write to their first argument."""
ITEM_ASSIGNMENTS = frozenset({"setitem", "__setitem__"})

ADDITIONS = frozenset({operator.add, operator.iadd, torch.add, "add", "add_"})
CONCATENATIONS = frozenset({torch.cat, torch.concat, torch.concatenate})
SPLITS = frozenset({torch.split, torch.chunk, "split", "chunk"})

LENDS_MEMORY = frozenset({"numpy", "__array__", "__dlpack__", "data_ptr", "untyped_storage", "storage"})
"""Methods that let other code access the memory of a tensor; PyTorch doesn't count its writes."""
TRAINED_NORMS = frozenset({"native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"})
"""Operators that write to running statistics in training, though their schema doesn't say so."""


def operation_name(node: fx.Node) -> str:
    """Return the name of a function or tensor method, or ``""`` for any other node."""
    if node.op not in ("call_function", "call_method"):
        return ""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def is_view_operation(node: fx.Node) -> bool:
    """Whether the result of a function or method may share memory with its first input."""
    name = operation_name(node)
    return node.args[1] in VIEW_ATTRIBUTES if name == "getattr" else name in VIEWS


def written_to(node: fx.Node) -> fx.Node | None:
    """Return the value that a function or method writes to, or None."""
    name, out = operation_name(node), node.kwargs.get("out")
    if isinstance(out, fx.Node):
        return out
    augmented = name in ITEM_ASSIGNMENTS or name in AUGMENTED_ASSIGNMENTS
    writes = augmented or (name.endswith("_") and not name.startswith("_"))
    first = node.args[0] if node.args else None
    return first if (writes or node.kwargs.get("inplace") is True) and name and isinstance(first, fx.Node) else None


def reads_size(node: fx.Node) -> bool:
    """Whether an operation reads a tensor's shape or rank."""
    if node.op == "call_method":
        return node.target in ("size", "dim")
    return node.target is getattr and node.args[1] in ("shape", "ndim")


def named_arguments(node: fx.Node, *names: str) -> dict[str, Any]:
    """Return the arguments of an operation by name, ``names`` being those of the positional ones in order."""
    return dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
