"""Latency of layers and networks in the runtimes that are installed; times themselves aren't looked at."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.deploy.targets import Dies, Raises
from unbranch.deploy import TARGETS, runtime_latency
from unbranch.errors import InputError
from unbranch.runtimes import latency as module
from unbranch.runtimes.latency import RuntimeLatency, _in_turns
from unbranch.runtimes.layer_cache import LayerCache
from unbranch.runtimes.layers import ACTIVATIONS, ONNX_NODES, Layer, write_onnx
from unbranch.runtimes.targets import Runner, Target
from unbranch.runtimes.targets.pytorch import TorchTarget

ONE, TWO, THREE = (1,), (1, 1), (1, 1, 1)
LAYERS = {
    "conv": Layer(4, 8, (6, 5), (3, 3), TWO, TWO, TWO),
    "strided, dilated": Layer(4, 8, (9, 8), (3, 2), (2, 1), (2, 0), (2, 1), bias=False),
    "depthwise": Layer(8, 8, (6, 6), (3, 3), TWO, TWO, TWO, groups=8),
    "grouped": Layer(8, 12, (6, 6), (3, 3), TWO, TWO, TWO, groups=4),
    "transposed": Layer(4, 6, (5, 5), (2, 2), (2, 2), (0, 0), TWO, transposed=True),
    "linear": Layer(6, 3),
    "linear, sequences": Layer(6, 3, (7,)),
    "linear without bias": Layer(6, 3, (7,), bias=False),
    "1d": Layer(4, 6, (9,), (3,), ONE, ONE, ONE),
    "3d": Layer(4, 6, (4, 4, 4), (3, 3, 3), THREE, THREE, THREE),
    **{name: Layer(4, 8, (4, 4), (1, 1), TWO, (0, 0), TWO, activation=name) for name in ACTIVATIONS},
}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROUNDS", 2)
    monkeypatch.setattr("unbranch.runtimes.measure.TURN_MS", 1.0)
    monkeypatch.setattr("unbranch.runtimes.layer_timing.TURN_MS", 1.0)


def of(name: str) -> RuntimeLatency:
    if (reason := TARGETS[name]().unavailable()) is not None:
        pytest.skip(reason)
    return runtime_latency(name, threads=1)


@pytest.mark.parametrize("name", ["torch", "onnx", "openvino"])
def test_every_kind_of_layer_has_a_time(name: str) -> None:
    latency = of(name)
    times = latency.layer_ms(list(LAYERS.values()))
    assert all(math.isfinite(ms) and ms > 0 for ms in times)
    assert not latency.notes
    assert latency.step() in (1, 4, 8, 16, 32)


@pytest.mark.parametrize("name", ["torch", "onnx"])
def test_networks_have_a_time(name: str) -> None:
    networks = [nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU()).eval() for width in (4, 8)]
    times = of(name).network_ms(networks, (torch.randn(1, 3, 8, 8),))
    assert len(times) == 2
    assert all(math.isfinite(ms) and ms > 0 for ms in times)


@pytest.mark.parametrize("name", LAYERS)
def test_onnx_files_of_layers_compute_what_the_modules_do(name: str, tmp_path: Path) -> None:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    layer, made = LAYERS[name], {}
    own = Layer._module

    def once(self: Layer) -> nn.Module:
        return made.setdefault(self, own(self))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Layer, "_module", once)
        write_onnx(layer, tmp_path / "layer.onnx")
        x = layer.example()
        expected = layer.make()(x).detach()
    onnx.checker.check_model(tmp_path / "layer.onnx", full_check=True)
    session = runtime.InferenceSession(tmp_path / "layer.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x.numpy()})
    assert torch.allclose(torch.from_numpy(found), expected, atol=1e-5)
    assert set(ONNX_NODES) == set(ACTIVATIONS)


class NoGroups(TorchTarget):
    """Fails on grouped layers."""

    name = "no-groups"
    settings = ("contiguous",)

    def load_layer(self, layer: Layer, directory: Path, *, threads: int, setting: str) -> Runner:
        if layer.groups > 1:
            raise ValueError("no groups here")
        return super().load_layer(layer, directory, threads=threads, setting=setting)


class DiesOfGroups(NoGroups):
    """Ends its process on grouped layers."""

    name = "dies-of-groups"

    def load_layer(self, layer: Layer, directory: Path, *, threads: int, setting: str) -> Runner:
        if layer.groups > 1:
            raise SystemExit(3)
        return super().load_layer(layer, directory, threads=threads, setting=setting)


@pytest.mark.parametrize("target", [NoGroups, DiesOfGroups])
def test_layers_that_fail_have_pytorch_s_time_and_a_note(target: type[Target]) -> None:
    latency = RuntimeLatency(target(), 1, LayerCache(target(), 1, None))
    names = ("conv", "grouped", "linear", "depthwise", "1d")
    times = latency.layer_ms([LAYERS[name] for name in names])
    assert all(math.isfinite(ms) and ms > 0 for ms in times)
    assert len(latency.notes) == 1
    assert latency.notes[0].startswith("2 ")


@pytest.mark.parametrize("target", [Raises, Dies])
def test_networks_that_can_t_be_converted_are_one_error(target: type[Target]) -> None:
    latency = RuntimeLatency(target(), 1, LayerCache(target(), 1, None))
    with pytest.raises(InputError, match="can't convert"):
        latency.network_ms([nn.Conv2d(3, 4, 1).eval()], (torch.randn(1, 3, 4, 4),))


class DependsOnValues(nn.Module):
    """A network that torch.export can't export."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) if x.sum() > 0 else self.conv(-x)


def test_pytorch_times_networks_that_can_t_be_exported_and_others_refuse_them() -> None:
    networks, inputs = [DependsOnValues(2).eval(), DependsOnValues(4).eval()], (torch.randn(1, 3, 4, 4),)
    latency = of("torch")
    times = latency.network_ms(networks, inputs)
    assert len(times) == 2
    assert all(math.isfinite(ms) and ms > 0 for ms in times)
    assert len(latency.notes) == 1
    with pytest.raises(InputError):
        of("onnx").network_ms(networks, inputs)


@pytest.mark.parametrize("name", ["tensorrt", "coreml"])
def test_runtimes_that_don_t_run_here_are_refused(name: str) -> None:
    if (TARGETS[name]().unavailable() or TARGETS[name]().unrunnable()) is None:
        pytest.skip("it runs here")
    with pytest.raises(InputError, match="`runtime` must run on this machine"):
        runtime_latency(name)


def test_times_are_kept_in_a_file_and_a_broken_file_is_none(tmp_path: Path) -> None:
    layers = [LAYERS["conv"], LAYERS["linear"]]
    first = runtime_latency("torch", threads=1, cache=tmp_path).layer_ms(layers)
    (file,) = tmp_path.iterdir()
    second = runtime_latency("torch", threads=1, cache=tmp_path)
    assert second.layer_ms(layers) == first
    assert runtime_latency("torch", threads=2, cache=tmp_path).cache.path != file
    file.write_text("[1")
    assert runtime_latency("torch", threads=1, cache=tmp_path).cache.times == {}


def test_load_that_lasts_longer_than_a_turn_cancels() -> None:
    first, second = _in_turns([[1.0, 1.0, 5.0, 5.0, 1.0], [0.5, 0.5, 2.5, 2.5, 0.5]])
    assert second / first == 0.5


def test_step_is_the_width_below_which_nothing_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    latency = runtime_latency("torch")
    for step in (1, 4, 8, 16, 32):
        blocks = [lambda layer, step=step: math.ceil(layer.inputs / step) * math.ceil(layer.outputs / step)]
        monkeypatch.setattr(latency, "layer_ms", lambda layers, f=blocks[0]: [float(f(layer)) for layer in layers])
        assert latency.step() == step
