"""Side-by-side latency sees which network is slower, and in which format, and leaves both as they were."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from unbranch.deploy import Latency, compare_latency
from unbranch.timing import _candidates

FORMATS = (torch.contiguous_format, torch.channels_last)


class Waiting(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        time.sleep(self.seconds)
        return x


def test_slower_network_is_seen_as_slower() -> None:
    slow, fast = Waiting(0.006), Waiting(0.002)
    latency = compare_latency(slow, fast, torch.zeros(1), repeats=5, warmup=1)
    assert latency.first_ms > latency.second_ms
    assert latency.ratio > 1.5
    assert latency.threads == torch.get_num_threads()
    assert slow.training
    assert fast.training
    assert latency.to_dict()["repeats"] == 5


class Preferring(nn.Module):
    """Is slow with images in one memory format."""

    def __init__(self, slow: torch.memory_format) -> None:
        super().__init__()
        self.slow = slow
        self.conv = nn.Conv2d(3, 4, 2)

    def forward(self, x: Tensor, _more: object = None) -> Tensor:
        time.sleep(0.02 if x.is_contiguous(memory_format=self.slow) else 0.002)
        return self.conv(x)


IMAGES = torch.randn(1, 3, 5, 6)


@pytest.mark.parametrize("given", FORMATS, ids=str)
@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_faster_memory_format_counts_whichever_is_given(given: torch.memory_format, form: torch.memory_format) -> None:
    last, default = (Preferring(slow).to(memory_format=given) for slow in FORMATS)
    strides = [p.stride() for p in (*last.parameters(), *default.parameters())]
    x = IMAGES.contiguous(memory_format=form)
    latency = compare_latency(last, default, (x, "more"), repeats=3, warmup=0)
    assert (latency.first_format, latency.second_format) == ("channels_last", "contiguous_format")
    assert [p.stride() for p in (*last.parameters(), *default.parameters())] == strides
    assert x.stride() == IMAGES.contiguous(memory_format=form).stride()


class Viewing(Preferring):
    """Fails in channels_last, in which it would be fast."""

    def forward(self, x: Tensor, _more: object = None) -> Tensor:
        return super().forward(x).view(-1)


class Uncopied(Preferring):
    def __deepcopy__(self, memo: object) -> Uncopied:
        raise TypeError


@pytest.mark.parametrize("kind", [Viewing, Uncopied])
def test_network_that_cannot_change_its_format_is_timed_as_it_is(kind: type[Preferring]) -> None:
    network = kind(torch.contiguous_format)
    latency = compare_latency(network, network, IMAGES, repeats=2, warmup=0)
    assert (latency.first_format, latency.second_format) == ("contiguous_format", "contiguous_format")
    assert network.training


@pytest.mark.parametrize(
    ("network", "x", "names"),
    [
        (nn.Conv3d(3, 4, 2), torch.randn(1, 3, 4, 5, 6), {"contiguous_format", "channels_last_3d"}),
        (nn.Conv2d(3, 4, 2), IMAGES, {"contiguous_format", "channels_last"}),
        (nn.Conv2d(3, 4, 2), IMAGES[0], {"contiguous_format"}),
        (nn.Conv1d(3, 4, 2), IMAGES[0], {"contiguous_format"}),
        (nn.Linear(6, 4), IMAGES, {"contiguous_format"}),
        (nn.ReLU(), IMAGES, {"contiguous_format"}),
    ],
)
def test_formats_that_are_timed(network: nn.Module, x: Tensor, names: set[str]) -> None:
    assert {candidate.form for candidate in _candidates(network, (x,))} == names


def test_format_is_shown_unless_it_is_the_default() -> None:
    latency = Latency(1.0, 2.0, 0.5, 1, 1, "cpu", second_format="channels_last")
    assert latency.cells() == ("1.00 ms", "2.00 ms, channels_last")
    assert latency.to_dict()["first_format"] == "contiguous_format"
