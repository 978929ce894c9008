"""Tensors of ONNX files as PyTorch's, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from unbranch.errors import InputError
from unbranch.extras import library
from unbranch.onnx.files import Model, external_path

DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip
"""PyTorch's dtypes by ONNX's element types, for those that both have."""
NUMBERS = {dtype: number for number, dtype in DTYPES.items()}
BFLOAT16 = 16


def to_tensor(proto: Any, model: Model) -> Tensor | None:
    """Return a tensor of a file, None if PyTorch has no such dtype.

    Raises:
        InputError: if its numbers can't be read.
    """
    if proto.data_type not in DTYPES:
        return None
    onnx = library("onnx", "onnx")
    base = ""
    if proto.data_location == onnx.TensorProto.EXTERNAL:
        external_path(proto, model)
        base = str(model.directory)
    try:
        array = onnx.numpy_helper.to_array(proto, base)
    except Exception as error:
        raise InputError(f"{model.name}: the weights {proto.name!r} can't be read ({error})") from error
    return of_array(array)


def of_array(array: Any) -> Tensor | None:
    """Return a NumPy array as a tensor of its own memory, None if PyTorch has no such dtype."""
    array = np.array(array)  # onnx's arrays aren't writable
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    try:
        return torch.from_numpy(array)
    except TypeError:
        return None


def to_array(tensor: Tensor) -> Any:
    """Return a tensor as a NumPy array; bfloat16 as ONNX's own array type."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(library("ml_dtypes", "onnx").bfloat16)
    return tensor.numpy()


def to_proto(tensor: Tensor, name: str) -> Any:
    """Return a tensor as an initialiser."""
    return library("onnx", "onnx").numpy_helper.from_array(to_array(tensor), name)
