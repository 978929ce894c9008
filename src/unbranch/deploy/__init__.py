"""Deployment: verified files for each runtime, the fastest of them, and how long a call takes."""

from unbranch.deploy.artifact import Artifact
from unbranch.deploy.benchmark import benchmark
from unbranch.deploy.onnx import OnnxFile, export_onnx, require_onnx, write_onnx
from unbranch.deploy.pipeline import deploy
from unbranch.deploy.result import DeployResult, read_result
from unbranch.runtimes.latency import RuntimeLatency, runtime_latency
from unbranch.runtimes.measure import Timing
from unbranch.runtimes.targets import TARGETS, Runner, Source, Target
from unbranch.timing import Latency, compare_latency

__all__ = [
    "TARGETS",
    "Artifact",
    "DeployResult",
    "Latency",
    "OnnxFile",
    "Runner",
    "RuntimeLatency",
    "Source",
    "Target",
    "Timing",
    "benchmark",
    "compare_latency",
    "deploy",
    "export_onnx",
    "read_result",
    "require_onnx",
    "runtime_latency",
    "write_onnx",
]
