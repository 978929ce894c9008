"""Quantisation engines: from an ONNX file in float32 to one with QuantizeLinear and DequantizeLinear (Q/DQ).

Each is a target, so it runs in a process of its own, and its files run in ONNX Runtime: in the setting ``default`` with
all optimisations, which execute integer kernels; in ``exact`` without, which round to 8 bits and compute in float32.
"""

from __future__ import annotations

import importlib.util
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from unbranch.deploy.int8.bias_correction import restored, separable
from unbranch.deploy.int8.rewrite import with_unsigned_activations
from unbranch.runtimes.arrays import read_arrays
from unbranch.runtimes.targets.base import Runner, Source, Target
from unbranch.runtimes.targets.onnx_runtime import QUIET, OnnxRuntimeRunner

EXACT = "exact"


class Engine(Target):
    """A quantisation engine."""

    artifact = "model.onnx"
    runtime = ("onnx", "onnxruntime")
    settings = ("default", EXACT)
    install = "pip install 'unbranch[deploy]'"

    @abstractmethod
    def quantize(self, model: Any, calibration: Sequence[dict[str, Any]], source: Source) -> Any:
        """Return the quantised ONNX model."""

    def export(self, source: Source, directory: Path) -> None:
        import onnx

        model = onnx.load(source.onnx)
        names = [value.name for value in model.graph.input]
        assert source.quantization is not None
        calls = read_arrays(source.quantization.calibration)
        feeds = [dict(zip(names, call, strict=True)) for call in calls]
        quantized = self.quantize(model, feeds, source)
        onnx.checker.check_model(quantized)
        onnx.save(quantized, directory / self.artifact)

    def load(self, directory: Path, *, threads: int, setting: str) -> Runner:
        return OnnxRuntimeRunner(directory / self.artifact, threads, optimize=setting != EXACT)


class NNCFEngine(Engine):
    """NNCF: asymmetric activations except after ReLU, symmetric weights per channel, bias correction.

    Activations have one scale per tensor (NNCF's own choice for depthwise layers, one per channel, is computed in float
    by ONNX Runtime) and are unsigned.
    """

    name = "nncf"
    packages = ("nncf", "onnx", "onnxruntime")

    def quantize(self, model: Any, calibration: Sequence[dict[str, Any]], source: Source) -> Any:
        import nncf
        from nncf.quantization.advanced_parameters import QuantizationParameters

        quiet_nncf()
        how = source.quantization
        assert how is not None
        advanced = nncf.AdvancedQuantizationParameters(
            overflow_fix=nncf.OverflowFix.ENABLE if how.reduce_range else nncf.OverflowFix.DISABLE,
            activations_quantization_params=QuantizationParameters(per_channel=False),
        )
        options = {
            "preset": nncf.QuantizationPreset.MIXED,
            "subset_size": len(calibration),
            "fast_bias_correction": not how.full_bias_correction,
        }
        data = nncf.Dataset(calibration)
        if how.max_drop is None and how.full_bias_correction:
            with separable(model) as parts:
                corrected = nncf.quantize(parts, data, advanced_parameters=advanced, **options)
            return with_unsigned_activations(restored(corrected))
        if how.max_drop is None:
            return with_unsigned_activations(nncf.quantize(model, data, advanced_parameters=advanced, **options))
        controlled = nncf.quantize_with_accuracy_control(
            model, data, nncf.Dataset(labelled(how.validation)), _right_share, max_drop=how.max_drop,
            advanced_quantization_parameters=advanced, **options,
        )  # fmt: skip
        return with_unsigned_activations(controlled)


class OnnxRuntimeEngine(Engine):
    """``onnxruntime.quantization.quantize_static``, where NNCF isn't installed."""

    name = "onnxruntime"
    packages = ("onnx", "onnxruntime")
    install = "pip install 'unbranch[onnx]'"
    per_channel: ClassVar[bool] = True
    symmetric: ClassVar[bool] = False

    def quantize(self, model: Any, calibration: Sequence[dict[str, Any]], source: Source) -> Any:  # noqa: ARG002
        import onnx
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process

        how = source.quantization
        assert how is not None
        quant_pre_process(source.onnx, "prepared.onnx", skip_symbolic_shape=True)
        quantization.quantize_static(
            "prepared.onnx", "quantized.onnx", _Reader(calibration), quant_format=quantization.QuantFormat.QDQ,
            per_channel=self.per_channel, reduce_range=how.reduce_range,
            activation_type=quantization.QuantType.QInt8 if self.symmetric else quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options={"ActivationSymmetric": self.symmetric, "WeightSymmetric": True},
        )  # fmt: skip
        return onnx.load("quantized.onnx")


class PerTensorEngine(OnnxRuntimeEngine):
    """The same with one scale per tensor, as the simplest recipes have it; for comparison."""

    name = "onnxruntime-per-tensor"
    per_channel = False


class SymmetricEngine(OnnxRuntimeEngine):
    """The same with signed symmetric activations, which TensorRT needs."""

    name = "onnxruntime-symmetric"
    symmetric = True


class TrainedEngine(Engine):
    """Takes a file that quantisation-aware training has written as it is."""

    name = "unbranch"
    packages = ("onnx", "onnxruntime")

    def quantize(self, model: Any, calibration: Sequence[dict[str, Any]], source: Source) -> Any:  # noqa: ARG002
        return model


class _Reader:
    """Calibration data in the form that ONNX Runtime takes."""

    def __init__(self, feeds: Sequence[dict[str, Any]]) -> None:
        self._feeds: Iterator[dict[str, Any]] = iter(feeds)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def default_engine() -> Engine:
    """Return NNCF's engine if it is installed, otherwise ONNX Runtime's."""
    installed = importlib.util.find_spec("nncf") is not None
    return NNCFEngine() if installed else OnnxRuntimeEngine()


def quiet_nncf() -> None:
    """Turn off NNCF's log and progress bars."""
    import logging

    import nncf

    nncf.set_log_level(logging.ERROR)


def labelled(path: Path | None) -> list[tuple[list[Any], int]]:
    """Return the inputs of validation images with their classes."""
    assert path is not None
    return [(call[:-1], int(call[-1])) for call in read_arrays(path)]


def _right_share(model: Any, data: Any) -> tuple[float, None]:
    """Return the fraction of validation images with the right class, as NNCF asks for it, of an ONNX model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = QUIET
    session = model  # in some versions of NNCF
    if hasattr(model, "SerializeToString"):
        content = model.SerializeToString()
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    right = [
        int(session.run(None, dict(zip(names, inputs, strict=True)))[0].argmax()) == label for inputs, label in data
    ]
    return sum(right) / len(right), None
