"""Two processes with half a batch each give what one gives with all of it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from unbranch.blocks import DBB
from unbranch.errors import InputError
from unbranch.train.sync import SyncNorm, synchronise_norms

CPU = torch.device("cpu")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(DBB(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 20, 4)).double()


def images() -> Tensor:
    return torch.randn(6, 3, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def half(rank: int, port: int, out: str) -> None:
    """A process: the mean loss over its half, gradients averaged as DDP does."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    net = nn.parallel.DistributedDataParallel(synchronise_norms(network(), CPU))
    net(images()[rank::2]).square().mean().backward()
    state = {name: p.grad for name, p in net.module.named_parameters()} | dict(net.module.named_buffers())
    torch.save(state, f"{out}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_the_gradients_and_statistics_of_one(tmp_path: Path) -> None:
    mp.spawn(half, (free_port(), str(tmp_path)), nprocs=2)
    whole = network()
    whole(images()).square().mean().backward()
    expected = {name: p.grad for name, p in whole.named_parameters()} | dict(whole.named_buffers())
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-12, rtol=1e-10, msg=name)


def test_parameters_and_names_stay() -> None:
    net = network()
    before = dict(net.named_parameters())
    state = list(net.state_dict())
    made = synchronise_norms(net, CPU)
    assert list(made.state_dict()) == state
    assert all(p is before[name] for name, p in made.named_parameters())
    assert sum(isinstance(m, SyncNorm) for m in made.modules()) == 6


def test_evaluation_is_that_of_an_ordinary_norm() -> None:
    net = network().eval()
    expected = net(images())
    assert torch.equal(synchronise_norms(net, CPU)(images()), expected)


def test_a_norm_that_does_more_is_refused() -> None:
    with pytest.raises(InputError, match="BatchNormAct2d can't be synchronised"):
        synchronise_norms(nn.Sequential(BatchNormAct2d(4)), CPU)


def test_training_alone_is_told() -> None:
    with pytest.raises(InputError, match="needs a process group"):
        synchronise_norms(nn.BatchNorm2d(3), CPU)(torch.zeros(2, 3, 4, 4))
