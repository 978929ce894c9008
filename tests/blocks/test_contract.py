"""What every block does, by being a row of the table: see rows.py."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unbranch as ub
from tests.blocks.rows import CONVOLUTIONS, ROWS, Row, conv_arguments
from unbranch.convert.statistics import randomise_statistics

TOLERANCE = 1e-10  # of the largest output, in float64
EACH = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
EACH_CONVOLUTION = pytest.mark.parametrize("row", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
SWEEP = [
    pytest.param(row, arguments, id=f"{name}: {label}")
    for name, row in ROWS.items()
    for label, arguments in {"usual": {}, **row.sweep}.items()
]
GEOMETRIES = [case for case in SWEEP if case.values[0].conv is not None]


def trained(row: Row, arguments: dict[str, Any] | None = None, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A block in evaluation mode with weights and statistics as after training."""
    torch.manual_seed(0)
    block = row.make(**row.arguments | (arguments or {})).to(dtype).eval()
    randomise_statistics(block)
    with torch.no_grad():
        for parameter in block.parameters():
            if parameter.dim() > 1:  # none stays zero or an identity
                parameter += 0.1 * torch.randn_like(parameter)
    return block


def example(row: Row, dtype: torch.dtype = torch.float64) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(row.shape, dtype=dtype)


def assert_equal(ours: Tensor, theirs: Tensor, tolerance: float = TOLERANCE) -> None:
    assert ours.shape == theirs.shape
    error, largest = (ours.double() - theirs.double()).abs().max().item(), theirs.double().abs().max().item()
    assert error <= tolerance * largest, f"differs by {error:.1e} where the largest number is {largest:.1e}"


def layers(network: nn.Module, *kinds: type[nn.Module]) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, kinds)]


def kernels(network: nn.Module) -> list[nn.Module]:
    return layers(network, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def norms(network: nn.Module) -> list[nn.Module]:
    return layers(network, nn.modules.batchnorm._BatchNorm)


@EACH
def test_output_has_its_shape_in_both_modes(row: Row) -> None:
    block, x = row.make(**row.arguments), torch.randn(row.shape)
    assert block(x).shape == block.eval()(x).shape == (row.output or row.shape)


@pytest.mark.sweep(2)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(("row", "arguments"), GEOMETRIES)
def test_block_stands_for_a_convolution(row: Row, arguments: dict[str, Any]) -> None:
    conv = row.conv(**conv_arguments(row, arguments))
    block, x = row.make(**row.arguments | arguments), torch.randn(row.shape)
    assert block(x).shape == conv(x).shape
    names = ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups", "padding_mode")
    assert [getattr(block, name) for name in names] == [getattr(conv, name) for name in names]
    assert block.padding == conv.padding or conv.padding == "same"
    main = block.get_submodule(block.main_branch)
    assert main.conv.weight.shape == conv.weight.shape
    assert main.conv.bias is None
    assert block.main_branch in block.branch_names


@EACH
def test_every_parameter_gets_a_gradient(row: Row) -> None:
    block = trained(row).train()
    block(example(row)).square().sum().backward()
    assert [n for n, p in block.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.sweep(5)
@pytest.mark.parametrize(("row", "arguments"), SWEEP)
def test_collapse_is_exact(row: Row, arguments: dict[str, Any]) -> None:
    block, x = trained(row, arguments), example(row)
    plain = ub.collapse(block, x, strict=row.conv is not None)
    assert_equal(plain(x), block(x))
    if row.conv is not None:
        (conv,), wanted = kernels(plain), row.conv(**conv_arguments(row, arguments))
        assert (conv.weight.shape, conv.stride, conv.dilation) == (wanted.weight.shape, wanted.stride, wanted.dilation)
        assert norms(plain) == []
        assert sum(p.numel() for p in plain.parameters()) == conv.weight.numel() + wanted.out_channels


@EACH
def test_deploy_form_has_as_many_layers_as_promised(row: Row) -> None:
    plain = ub.collapse(trained(row), example(row))
    assert (len(kernels(plain)), len(norms(plain))) == (row.kernels, row.norms)


@EACH
def test_collapsing_twice_changes_nothing_more(row: Row) -> None:
    once = ub.collapse(trained(row), example(row))
    twice = ub.collapse(once, example(row))
    assert once.state_dict().keys() == twice.state_dict().keys()
    assert all(torch.equal(value, twice.state_dict()[key]) for key, value in once.state_dict().items())
    assert torch.equal(once(example(row)), twice(example(row)))


@EACH
@pytest.mark.parametrize("form", ["training", "deploy"])
def test_both_forms_are_copied_pickled_and_exported(row: Row, form: str) -> None:
    block, x = trained(row, dtype=torch.float32), example(row, torch.float32)
    block = block if form == "training" else ub.collapse(block, x)
    expected = block(x)
    assert torch.equal(copy.deepcopy(block)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(block))(x), expected)
    assert_equal(torch.export.export(block, (x,)).module()(x), expected, 1e-6)


@pytest.mark.parametrize("row", [pytest.param(r, id=n) for n, r in ROWS.items() if r.half])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)], ids=str)
def test_half_precision_stays_close(row: Row, dtype: torch.dtype, tolerance: float) -> None:
    block, x = trained(row, dtype=torch.float32), example(row, torch.float32)
    expected, output = block(x), block.to(dtype)(x.to(dtype))
    assert output.dtype == dtype
    assert output.isfinite().all()
    assert_equal(output, expected, tolerance)


@pytest.mark.parametrize("row", [pytest.param(r, id=n) for n, r in ROWS.items() if len(r.shape) == 4])
def test_channels_last_gives_the_same(row: Row) -> None:
    block, x = trained(row), example(row)
    expected = block(x)
    last = copy.deepcopy(block).to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    assert_equal(last(x), expected)
    assert_equal(ub.collapse(last, x)(x), expected)


@EACH
def test_state_makes_the_round_trip(row: Row) -> None:
    block, other = trained(row), row.make(**row.arguments).double().eval()
    other.load_state_dict(block.state_dict())
    assert torch.equal(other(example(row)), block(example(row)))


@EACH
def test_block_made_on_the_meta_device_takes_weights(row: Row) -> None:
    block = trained(row)
    with torch.device("meta"):
        empty = row.make(**row.arguments)
    assert all(t.is_meta for t in (*empty.parameters(), *empty.buffers()))
    empty.load_state_dict(block.state_dict(), assign=True)
    assert torch.equal(empty.eval()(example(row)), block(example(row)))


@EACH_CONVOLUTION
def test_device_and_dtype_are_those_of_every_tensor(row: Row) -> None:
    for extra in ({}, {"activation": nn.PReLU}):
        block = row.make(**row.arguments, device="meta", dtype=torch.float64, **extra)
        tensors = [t for t in (*block.parameters(), *block.buffers()) if t.is_floating_point()]
        assert {(t.device.type, t.dtype) for t in tensors} == {("meta", torch.float64)}


@EACH_CONVOLUTION
def test_block_without_activation_is_affine(row: Row) -> None:
    block = trained(row)
    a, b = example(row), example(row).flip(-1)
    assert_equal(block(0.3 * a + 0.7 * b), 0.3 * block(a) + 0.7 * block(b))


@EACH_CONVOLUTION
def test_freshly_made_block_becomes_one_convolution(row: Row) -> None:
    block = row.make(**row.arguments | {"in_channels": 1, "out_channels": 16}).eval()
    assert len(kernels(ub.collapse(block, torch.randn(row.shape)[:, :1]))) == 1
