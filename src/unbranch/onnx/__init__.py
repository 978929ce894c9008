"""ONNX files: the converter for people who only hold a file."""

from unbranch.onnx.conversion import OnnxConversion, collapse, explain, verify
from unbranch.onnx.files import save
from unbranch.onnx.proof import Comparison

__all__ = ["Comparison", "OnnxConversion", "collapse", "explain", "save", "verify"]
