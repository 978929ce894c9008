"""The equivalent kernel: what a block deploys with, differentiable while it trains."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import MethodType

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import unbranch as ub
from tests.convert.test_grid import Perceptron
from tests.networks import randomised
from unbranch.blocks import ACB, DBB, RepVGG

BLOCKS = [ACB, DBB, RepVGG]


@pytest.mark.parametrize("block", BLOCKS)
def test_kernel_is_what_the_block_deploys_with(block: type[nn.Module]) -> None:
    network = randomised(block(4, 4, 3, padding=1, groups=2)).double()
    kernel, bias = ub.equivalent_kernel(network)
    plain = ub.collapse(network)
    assert torch.allclose(kernel, plain.weight, rtol=0, atol=1e-14)
    assert torch.allclose(bias, plain.bias, rtol=0, atol=1e-14)


@pytest.mark.parametrize("block", BLOCKS)
def test_gradient_is_that_of_the_deployed_kernel(block: type[nn.Module]) -> None:
    """Against central differences along a random direction in all parameters at once."""
    torch.manual_seed(0)
    network = randomised(block(4, 4, 3, padding=1)).double()
    parameters = list(network.parameters())
    direction = [torch.randn_like(p) for p in parameters]
    weights = [torch.randn_like(t) for t in ub.equivalent_kernel(network)]

    def value() -> Tensor:
        return sum((t.sin() * w).sum() for t, w in zip(ub.equivalent_kernel(network), weights, strict=True))

    gradients = torch.autograd.grad(value(), parameters)
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
    ends = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(d, alpha=step)
        ends.append(value())
    assert float(slope.detach()) == pytest.approx(float((ends[0] - ends[1]).detach() / 2e-6), rel=1e-5)


def test_kernel_follows_training() -> None:
    block = DBB(3, 4, 3, padding=1)
    optimiser = torch.optim.SGD(block.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        penalty = sum(t.square().sum() for t in ub.equivalent_kernel(block))
        (block(torch.randn(4, 3, 8, 8)).square().mean() + penalty).backward()
        optimiser.step()
    kernel, bias = ub.equivalent_kernel(block)
    plain = ub.collapse(block)
    assert block.training
    assert torch.equal(kernel, plain.weight)
    assert torch.equal(bias, plain.bias)


def test_penalty_may_be_computed_before_the_training_step_that_moves_the_statistics() -> None:
    block = DBB(3, 4, 3, padding=1).double()
    penalty = ub.equivalent_kernel(block).kernel.square().sum()
    (block(torch.randn(4, 3, 8, 8, dtype=torch.float64)).mean() + penalty).backward()
    assert all(p.grad is not None for p in block.parameters())


def test_structure_is_read_again_when_it_changes() -> None:
    block = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    before = ub.equivalent_kernel(block).kernel
    block[1] = nn.Identity()
    assert torch.equal(ub.equivalent_kernel(block).kernel, block[0].weight)
    assert not torch.equal(before, block[0].weight)
    block.double()
    assert ub.equivalent_kernel(block).kernel.dtype == torch.float64
    block.load_state_dict({k: torch.zeros_like(v) for k, v in block.state_dict().items()}, assign=True)
    assert not ub.equivalent_kernel(block).kernel.any()


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.factor, self.shape, self.mask = nn.Conv2d(4, 4, 3), 2.0, [1.0], torch.ones(1, 4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.factor * self.mask


def test_attributes_that_a_forward_reads_count() -> None:
    block = Scaled()
    for factor in (2.0, 5.0):
        block.factor = factor
        assert torch.allclose(ub.equivalent_kernel(block).kernel, factor * block.conv.weight)
    block.mask = torch.zeros(1, 4, 1, 1)
    assert not ub.equivalent_kernel(block).kernel.any()
    block.forward = MethodType(lambda self, x: self.conv(x), block)
    assert torch.equal(ub.equivalent_kernel(block).kernel, block.conv.weight)


def test_new_data_of_a_parameter_counts() -> None:
    block = RepVGG(4, 4, 3, padding=1)
    ub.equivalent_kernel(block, constant_norms=True)
    block.conv_kxk.bn.weight.data = block.conv_kxk.bn.weight.data * 3
    kernels = [ub.equivalent_kernel(block, constant_norms=flag).kernel for flag in (False, True)]
    assert torch.equal(*kernels)


def test_several_threads_read_modules() -> None:
    blocks = [DBB(4, 4, 3, padding=1) for _ in range(12)]
    with ThreadPoolExecutor(4) as pool:
        kernels = list(pool.map(ub.equivalent_kernel, blocks))
    assert all(torch.equal(k.kernel, ub.equivalent_kernel(b).kernel) for k, b in zip(kernels, blocks, strict=True))
    assert nn.Linear(3, 3)(torch.zeros(1, 3)).shape == (1, 3)


def test_constant_norms_get_no_gradient() -> None:
    block = RepVGG(4, 4, 3, padding=1)
    free, fixed = (ub.equivalent_kernel(block, constant_norms=flag) for flag in (False, True))
    assert torch.equal(free.kernel, fixed.kernel)
    fixed.kernel.sum().backward()
    reached = {name for name, p in block.named_parameters() if p.grad is not None}
    assert reached == {"conv_kxk.conv.weight", "conv_1x1.conv.weight"}


def test_kernel_of_the_branches_before_an_activation() -> None:
    block = randomised(RepVGG(16, 16, 3, padding=1, activation=nn.ReLU, squeeze_excite="before"))
    kernel, bias = ub.equivalent_kernel(block)
    x = torch.randn(1, 16, 5, 6)
    mean = nn.functional.conv2d(x, kernel, bias, padding=1)
    plain = ub.collapse(block)
    assert torch.allclose(block(x), plain(x), atol=1e-5)
    assert torch.allclose(plain.get_submodule("conv")(x), mean, atol=1e-6)


def test_kernel_of_a_fully_connected_layer_on_a_grid() -> None:
    network = randomised(Perceptron(2, 3, 4, (1, 3))).double()
    kernel, bias = ub.equivalent_kernel(network)
    assert kernel.shape == (24, 12, 1, 1)
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    y = nn.functional.conv2d(x.reshape(2, 24, 1, 1), kernel, bias, groups=2).reshape(2, 2, 3, 4)
    assert torch.allclose(y, network(x), rtol=0, atol=1e-13)
    kernel.sum().backward()
    assert all(p.grad is not None for n, p in network.named_parameters() if n.endswith("conv.weight"))


def test_kernel_of_one_layer_is_its_own() -> None:
    conv = nn.Conv2d(3, 4, 3)
    kernel, bias = ub.equivalent_kernel(conv)
    assert torch.equal(kernel, conv.weight)
    assert torch.equal(bias, conv.bias)
    assert ub.equivalent_kernel(nn.Conv2d(3, 4, 3, bias=False)).bias.abs().sum() == 0


def test_weight_norm_is_differentiated_through() -> None:
    conv = parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    kernel = ub.equivalent_kernel(nn.Sequential(conv, nn.BatchNorm2d(4))).kernel
    kernel.sum().backward()
    assert conv.parametrizations.weight.original1.grad is not None


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (nn.ReLU(), "no equivalent kernel"),
        (
            nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
            "2 merged layers",
        ),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)), "2 merged layers"),
    ],
    ids=["none", "two merges", "two layers"],
)
def test_no_layer_or_several_are_refused(network: nn.Module, words: str) -> None:
    with pytest.raises(ub.InputError, match=words):
        ub.equivalent_kernel(network)


def test_reading_is_neither_copied_nor_kept_alive() -> None:
    block = RepVGG(4, 4, 3, padding=1)
    ub.equivalent_kernel(block)
    other = pickle.loads(pickle.dumps(copy.deepcopy(block)))
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert not ub.equivalent_kernel(other).kernel.any()
    assert ub.equivalent_kernel(block).kernel.any()
    gone = weakref.ref(block)
    del block
    gc.collect()
    assert gone() is None
