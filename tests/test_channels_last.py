"""Strided 1×1 convolutions of few channels train in channels_last on every CPU, and nothing else is changed."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

import unbranch as ub
from unbranch.channels_last import overflows

# Without the context, this ends in a signal, hangs, or gives wrong gradients: with AVX2 for the small images, with
# AVX-512 for the large ones.
TRAINED = """
import sys
import torch
import unbranch as ub

torch.set_num_threads(1)
batch, size, steps, *numbers = map(int, sys.argv[1:])
for channels in (channels for channels in numbers for _ in range(steps)):
    print("channels:", channels, file=sys.stderr, flush=True)
    conv = torch.nn.Conv2d(channels, 8, 1, 2)
    x, cotangent = torch.randn(batch, channels, size, size), torch.randn(batch, 8, size // 2, size // 2)
    conv(x).backward(cotangent)
    wanted = conv.weight.grad
    conv.zero_grad()
    conv.to(memory_format=torch.channels_last)
    with ub.SafeChannelsLast():
        conv(x.to(memory_format=torch.channels_last)).backward(cotangent)
    error = (conv.weight.grad - wanted).abs().max() / wanted.abs().max()
    assert error < 1e-4, error
"""


@pytest.mark.slow
def test_small_images_train_in_channels_last() -> None:
    _train(96, 8, 60, 1, 3, 4, 7)


@pytest.mark.slow
def test_large_images_train_in_channels_last() -> None:
    _train(32, 64, 10, 3, 8, 15)


def _train(*settings: int) -> None:
    """Train in a process of its own, which the fault may end; its last words are the channels."""
    command = [sys.executable, "-c", TRAINED, *map(str, settings)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


class Strides(TorchFunctionMode):
    """Notes the stride of each 2-dimensional convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.conv2d:
            self.found.append((kwargs or {}).get("stride", args[3] if len(args) > 3 else 1))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("capability", ["DEFAULT", "AVX2", "AVX512"])
def test_positions_are_skipped_before_the_convolution_whatever_the_cpu(
    monkeypatch: pytest.MonkeyPatch, capability: str
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    with Strides() as strides, ub.SafeChannelsLast():
        F.conv2d(torch.randn(2, 4, 8, 8), torch.randn(8, 4, 1, 1), stride=2)
    assert strides.found == [1]


@pytest.mark.parametrize("stride", [2, (2,), (1, 3), [3, 2]], ids=str)
@pytest.mark.parametrize("size", [(8, 6), (7, 9), (1, 1)], ids=str)
@pytest.mark.parametrize("batched", [True, False])
def test_outputs_and_gradients_stay(stride: Any, size: tuple[int, int], batched: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, *size) if batched else torch.randn(4, *size)
    tensors = [x.requires_grad_(), torch.randn(8, 4, 1, 1, requires_grad=True), torch.randn(8, requires_grad=True)]
    wanted = F.conv2d(*tensors, stride=stride)
    with ub.SafeChannelsLast():
        found = F.conv2d(*tensors, stride=stride)
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad(y.square().sum(), tensors) for y in (found, wanted)]
    torch.testing.assert_close(*gradients)


def test_memory_format_stays() -> None:
    x = torch.randn(2, 4, 8, 8).to(memory_format=torch.channels_last)
    with ub.SafeChannelsLast():
        y = F.conv2d(x, torch.randn(8, 4, 1, 1), stride=2)
    assert y.is_contiguous(memory_format=torch.channels_last)


AFFECTED = {"channels": 4, "kernel": (1, 1), "stride": 2, "padding": 0, "groups": 1, "options": {}}


@pytest.mark.parametrize(
    "change",
    [
        {}, {"channels": 15}, {"stride": (1, 2)}, {"stride": (2,)}, {"padding": "valid"}, {"padding": (0, 0)},
    ],
    ids=str,
)  # fmt: skip
def test_affected_convolutions(change: dict[str, Any]) -> None:
    assert _overflows(**{**AFFECTED, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"channels": 16}, {"kernel": (3, 3)}, {"kernel": (1, 3)}, {"stride": 1}, {"stride": (1, 1)}, {"padding": 1},
        {"padding": (0, 1)}, {"padding": "same", "stride": 1}, {"groups": 2},
        {"options": {"dtype": torch.float64}}, {"options": {"dtype": torch.bfloat16}}, {"options": {"device": "meta"}},
    ],
    ids=str,
)  # fmt: skip
def test_other_convolutions_are_not_changed(change: dict[str, Any]) -> None:
    assert not _overflows(**{**AFFECTED, **change})


def _overflows(
    channels: int, kernel: tuple[int, int], stride: Any, padding: Any, groups: int, options: dict[str, Any]
) -> bool:
    x, weight = torch.empty(2, channels, 8, 8, **options), torch.empty(8, channels // groups, *kernel, **options)
    return overflows(x, weight, stride, padding, groups)
