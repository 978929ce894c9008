"""Deployment: export, and how long a call takes."""

from unbranch.deploy.onnx import OnnxFile, export_onnx, require_onnx, write_onnx
from unbranch.timing import Latency, compare_latency

__all__ = ["Latency", "OnnxFile", "compare_latency", "export_onnx", "require_onnx", "write_onnx"]
