"""Side-by-side latency sees which network is slower and leaves both as they were."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from unbranch.deploy import compare_latency


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
