"""ONNX files: the converter for people who only hold a file."""

from typing import TYPE_CHECKING, Any

import unbranch.onnx.registration  # noqa: F401  (it registers the format)

if TYPE_CHECKING:
    from unbranch.onnx.conversion import OnnxConversion, collapse, explain, verify
    from unbranch.onnx.files import save
    from unbranch.onnx.proof import Comparison

_FILES = {
    "OnnxConversion": "conversion", "collapse": "conversion", "explain": "conversion", "verify": "conversion",
    "save": "files", "Comparison": "proof",
}  # fmt: skip
__all__ = ["Comparison", "OnnxConversion", "collapse", "explain", "save", "verify"]


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)
