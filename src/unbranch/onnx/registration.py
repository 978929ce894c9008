"""ONNX as a format of ``unbranch.collapse``, ``explain`` and ``verify``; its libraries are imported when it is used."""

from __future__ import annotations

import os
from typing import Any

from unbranch.convert.formats import register_format


def is_onnx(network: Any) -> bool:
    """Whether a value is the path of an ONNX file, or an ``onnx.ModelProto``."""
    if isinstance(network, str | os.PathLike):
        return str(network).endswith(".onnx")
    return type(network).__name__ == "ModelProto"


def _explain(network: Any, inputs: Any = None) -> Any:
    from unbranch.onnx.conversion import explain

    return explain(network, inputs)


def _verify(first: Any, second: Any, inputs: Any = None) -> Any:
    from unbranch.onnx.conversion import verify

    return verify(first, second, inputs)


register_format(is_onnx, _explain, _verify)
