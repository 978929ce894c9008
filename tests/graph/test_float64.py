"""Runs in float64 against a double copy of the module, and the module itself bit for bit."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from unbranch.graph.float64 import Float64

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "itself": lambda t: t,
    "index": lambda t: t[1],
    "slice": lambda t: t[:, 1:3],
    "ellipsis": lambda t: t[..., ::2],
    "narrow": lambda t: t.narrow(0, 1, 2),
    "select": lambda t: t.select(1, 2),
    "view": lambda t: t.view(2, 2, -1),
    "flatten": lambda t: t.flatten(),
    "reshape": lambda t: t.reshape(-1, 4),
    "unflatten": lambda t: t.unflatten(0, (2, 2)),
    "t": lambda t: t.flatten(1).t(),
    "T": lambda t: t.flatten(1).T,
    "mT": lambda t: t.mT,
    "transpose": lambda t: t.transpose(0, 1),
    "permute": lambda t: t.permute(2, 0, 1),
    "movedim": lambda t: t.movedim(0, -1),
    "swapaxes": lambda t: t.swapaxes(0, 1),
    "squeeze": lambda t: t.unsqueeze(0).squeeze(),
    "chunk": lambda t: t.chunk(2)[1],
    "split": lambda t: t.split([1, 3])[1],
    "tensor_split": lambda t: t.tensor_split(3)[0],
    "unbind": lambda t: t.unbind(1)[0],
    "diagonal": lambda t: t.diagonal(dim1=0, dim2=1),
    "unfold": lambda t: t.unfold(1, 2, 2),
    "as_strided": lambda t: t.as_strided((3, 2), (5, 1), 2),
    "detach": lambda t: t.detach(),
    "data": lambda t: t.data,
    "view_as": lambda t: t.view_as(t),
    "contiguous": lambda t: t.contiguous(),
    "real": lambda t: torch.view_as_complex(t.view(-1, 2)).real,
    "view_as_real": lambda t: torch.view_as_real(torch.view_as_complex(t.view(-1, 2))),
}
WRITES: dict[str, Callable[[Tensor], Any]] = {
    "add_": lambda t: t.add_(0.1),
    "mul_": lambda t: t.mul_(-1.3),
    "copy_": lambda t: t.copy_(torch.linspace(0, 1, t.shape[-1], dtype=t.dtype)),
    "fill_": lambda t: t.fill_(0.3),
    "zero_": lambda t: t.zero_(),
    "clamp_": lambda t: t.clamp_(-0.3, 0.2),
    "sub": lambda t: t.__isub__(t.mean()),
    "setitem": lambda t: t.__setitem__(0, 0.7),
    "mask": lambda t: t.__setitem__(t > 0, 0.1),
    "masked_fill_": lambda t: t.masked_fill_(t < 0, 0.2),
    "index_fill_": lambda t: t.index_fill_(0, torch.tensor([0]), 0.4),
    "index_copy_": lambda t: t.index_copy_(0, torch.tensor([0]), t[-1:].clone()),
    "out": lambda t: torch.mul(t, 0.3, out=t),
    "out of a matrix": lambda t: torch.sin(t, out=t),
    "foreach": lambda t: torch._foreach_mul_([t], 0.7),
    "relu": lambda t: F.relu(t, inplace=True),
    "init": lambda t: nn.init.constant_(t, 0.1),
    "addcmul_": lambda t: t.addcmul_(t, t, value=0.3),
}


class Writes(nn.Module):
    """Writes through views into a parameter, a buffer and a tensor of its own, and reads all three afterwards."""

    def __init__(self, steps: list[tuple[str, str, str]]) -> None:
        super().__init__()
        self.steps = steps
        self.weight = nn.Parameter(torch.randn(4, 4, 6), requires_grad=False)
        self.register_buffer("mask", torch.randn(4, 4, 6))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        fresh = torch.zeros(4, 4, 6, dtype=x.dtype)
        fresh[:] = x
        early = self.weight.view(-1)
        for where, view, write in self.steps:
            target = {"weight": self.weight, "mask": self.mask, "fresh": fresh, "view": early.view(4, 4, 6)}[where]
            WRITES[write](VIEWS[view](target))
            self.calls.add_(1)
        self.calls += 1
        return self.weight * x, self.mask + 0, fresh, early * 1, self.calls * 1


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["weight", "mask", "fresh", "view"]),
            st.sampled_from(sorted(VIEWS)),
            st.sampled_from(sorted(WRITES)),
        ),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=5 * settings.default.max_examples)
def test_writes_through_views_give_what_a_double_copy_gives_and_leave_the_source(steps: Any) -> None:
    torch.manual_seed(0)
    module, x = Writes(steps), torch.randn(4, 4, 6)
    compare(module, x)


@pytest.mark.sweep(5)
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("view", VIEWS)
def test_every_write_through_every_view(view: str, write: str) -> None:
    torch.manual_seed(0)
    compare(Writes([("weight", view, write), ("mask", view, write)]), torch.randn(4, 4, 6))


def compare(module: nn.Module, *inputs: Any) -> None:
    """Outputs against a double copy, run normally; the module's own tensors bit for bit, versions included."""
    double = copy.deepcopy(module).double()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    versions = {k: v._version for k, v in module.state_dict().items()}
    with torch.no_grad():
        expected = double(*(v.double() for v in inputs))
    with torch.no_grad(), Float64() as run:
        found = run.values(module(*inputs))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-14)
    now = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, value in before.items():
        if name != "calls":  # `+=` puts another tensor there
            assert torch.equal(now[name], value)
            assert now[name]._version == versions[name]


@pytest.fixture
def doubled_defaults() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)


FACTORIES: dict[str, Callable[[Tensor], Any]] = {
    "zeros": lambda x: torch.zeros(2, 3),
    "ones": lambda x: torch.ones(2),
    "full": lambda x: torch.full((2,), 0.1),
    "integers": lambda x: torch.full((2,), 3),
    "arange": lambda x: torch.arange(0, 1, 0.1),
    "arange of integers": lambda x: torch.arange(5),
    "linspace": lambda x: torch.linspace(0, 1, 7),
    "logspace": lambda x: torch.logspace(0, 1, 7),
    "eye": lambda x: torch.eye(3),
    "tensor": lambda x: torch.tensor([0.1, 0.2]),
    "complex tensor": lambda x: torch.tensor([0.1j]),
    "as_tensor": lambda x: torch.as_tensor(0.1),
    "new_tensor": lambda x: x.new_tensor([0.1]),
    "new_zeros": lambda x: x.new_zeros(2),
    "new_full": lambda x: x.new_full((2,), 0.1),
    "zeros_like": lambda x: torch.zeros_like(x),
    "ones_like of integers": lambda x: torch.ones_like(torch.arange(3), dtype=torch.float32),
    "hann_window": lambda x: torch.hann_window(7),
    "division": lambda x: torch.arange(5) / 3,
    "scalars": lambda x: torch.arange(5) * 0.1,
    "booleans": lambda x: (torch.arange(5) > 2) / 3,
    "where": lambda x: torch.where(torch.arange(5) > 2, 0.1, 0.3),
    "root": lambda x: torch.arange(5).sqrt(),
    "power": lambda x: 10000 ** (torch.arange(0, 6, 2) / 6),
    "casts": lambda x: (torch.arange(5).float() / 3, (x * 1).float() / 3, x.to(torch.float32) / 3),
    "types": lambda x: (x.type(torch.FloatTensor) / 3, x.type("torch.FloatTensor") / 3, x.type_as(x[0]) / 3),
    "asked dtype": lambda x: torch.zeros(2, dtype=x.dtype) + 0.1,
    "fft": lambda x: torch.fft.fft(x),
    "fft of integers": lambda x: torch.fft.fft(torch.arange(5)),
    "polar": lambda x: torch.polar(torch.ones(3), torch.arange(3) * 0.1),
    "meshgrid": lambda x: torch.meshgrid(torch.linspace(0, 1, 3), torch.linspace(0, 1, 2), indexing="ij"),
    "softmax": lambda x: torch.softmax(torch.arange(3), 0, dtype=torch.float32),
    "one_hot": lambda x: F.one_hot(torch.arange(3)).float() / 3,
}


@pytest.mark.parametrize("name", FACTORIES)
def test_what_a_forward_makes_is_float64(name: str, doubled_defaults: None) -> None:
    make, x = FACTORIES[name], torch.linspace(-1, 1, 6).view(2, 3)
    with torch.no_grad(), Float64():
        found = make(x)
    torch.set_default_dtype(torch.float64)
    expected = make(x.double())
    as_double = lambda v: v.to(torch.float64) if v.dtype == torch.float32 else v  # noqa: E731
    for ours, theirs in zip(_listed(found), _listed(expected), strict=True):
        assert ours.dtype == as_double(theirs).dtype
        if theirs.dtype != torch.float32:  # the forward asked for it, so only Float64 is exact
            torch.testing.assert_close(ours, theirs, rtol=1e-15, atol=1e-15)


def _listed(value: Any) -> list[Tensor]:
    return list(value) if isinstance(value, tuple | list) else [value]


def test_random_numbers_are_those_of_the_own_dtype() -> None:
    torch.manual_seed(0)
    native = torch.rand(3), torch.randn(3), torch.rand(3)
    torch.manual_seed(0)
    with Float64():
        found = torch.rand(3), torch.randn(3), torch.rand(3)
    for ours, theirs in zip(found, native, strict=True):
        assert ours.dtype == torch.float64
        assert torch.equal(ours, theirs.double())


def test_complex_tensors_keep_their_imaginary_part() -> None:
    class Rotation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("phase", torch.polar(torch.ones(3), torch.randn(3)))

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            self.phase.imag.mul_(2)
            torch.view_as_real(self.phase)[0] += 1
            return (x * self.phase).real, self.phase.conj() * 1, self.phase.to(torch.complex64) * 1

    module, x = Rotation(), torch.randn(2, 3)
    twin = copy.deepcopy(module)
    twin.phase = twin.phase.to(torch.complex128)
    before = module.phase.clone()
    with torch.no_grad():
        expected = twin(x.double())
    with torch.no_grad(), Float64():
        found = module(x)
    assert torch.equal(module.phase, before)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-14, atol=0)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-14, atol=0)
    assert all(v.dtype in (torch.float64, torch.complex128) for v in found)


def test_a_new_data_of_a_parameter_and_changes_of_its_shape_stay_in_the_run() -> None:
    weight = nn.Parameter(torch.randn(2, 3))
    before = weight.detach().clone()
    with torch.no_grad(), Float64() as run:
        weight.data = weight.data * 2
        weight.add_(1)
        assert torch.allclose(weight * 1, before.double() * 2 + 1)
        weight.data = torch.ones(5)
        assert weight.shape == (5,)
        assert run.values(weight).shape == (5,)
        weight += 1
        assert isinstance(weight, nn.Parameter)
        assert run.wrote
    assert torch.equal(weight, before)
    assert weight._version == 0


def test_running_statistics_in_training_mode_are_left() -> None:
    norm = nn.BatchNorm2d(3)
    before = copy.deepcopy(norm.state_dict())
    with torch.no_grad(), Float64() as run:
        norm(torch.randn(2, 3, 4, 4))
        mean = run.values(norm.running_mean)
    assert (mean != 0).all()
    for name, value in before.items():
        assert name == "num_batches_tracked" or torch.equal(norm.state_dict()[name], value)


def test_tensors_of_one_storage_see_each_others_writes() -> None:
    whole = torch.randn(10)
    left, right = whole[:6], whole[4:]  # views that were there before
    kept = whole.clone()
    with torch.no_grad(), Float64():
        right.mul_(2)
        assert torch.equal(left[4:] * 1, kept[4:6].double() * 2)
        assert torch.equal(whole[6:] * 1, kept[6:].double() * 2)
        assert torch.equal(whole[:4] * 1, kept[:4].double())
    assert torch.equal(whole, kept)


def test_casts_share_memory_where_the_own_dtype_would() -> None:
    with torch.no_grad(), Float64():
        x = torch.ones(2)
        x.float().add_(1)
        assert x[0] == 2
        x.double().add_(1)
        x.half().add_(1)
        x.to(torch.float16).add_(1)
        assert x[0] == 2


def test_unwritten_tensors_are_forgotten() -> None:
    with torch.no_grad(), Float64() as run:
        weight = torch.nn.Parameter(torch.empty(8, 8))
        torch.empty(8, 8) @ weight
        weight.view(-1)
        assert not run.wrote
        assert all(copy.live() is None for copy in run._memory._copies.values())


def test_the_mode_belongs_to_its_thread() -> None:
    seen: list[Any] = []
    with Float64():
        worker = threading.Thread(target=lambda: seen.append((torch.ones(1).dtype, torch.tensor(0.1).dtype)))
        worker.start()
        worker.join()
        assert torch.ones(1).dtype == torch.float64
    assert seen == [(torch.float32, torch.float32)]
    assert torch.get_default_dtype() == torch.float32


def test_gradients_reach_parameters() -> None:
    weight = nn.Parameter(torch.randn(3))
    with Float64():
        y = (weight.view(3, 1) ** 2).sum()
    (grad,) = torch.autograd.grad(y, weight)
    torch.testing.assert_close(grad, 2 * weight.detach())


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_grouped_convolutions_and_inference_mode(mode: Any) -> None:
    conv, x = nn.Conv2d(8, 8, 3, padding=1, groups=4), torch.randn(1, 8, 5, 6)
    with torch.no_grad():
        expected = copy.deepcopy(conv).double()(x.double())
    before = conv.weight._version
    with mode(), Float64():
        conv.weight.view(-1).mul_(2)
        conv.weight.view(-1).mul_(0.5)
        found = conv(x)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    assert conv.weight._version == before


# --- large weights, which are cast piece by piece ---


class _Large(nn.Module):
    """Layers whose weights have more than half a million numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.line = nn.Conv2d(257, 300, 3, 2, padding=1, dilation=2), nn.Linear(900, 700)
        self.volume, self.row = nn.Conv3d(40, 700, 3), nn.Conv1d(530, 1100, 1, bias=False)
        self.grouped = nn.Conv2d(1024, 1200, 1, groups=2)


def _calls(net: nn.Module) -> dict[str, Callable[[], Tensor]]:
    x = torch.linspace(-1, 1, 257 * 9 * 8).reshape(257, 9, 8)
    written = torch.zeros_like(net.conv.weight)

    def onto_a_copy() -> Tensor:
        weight = written
        weight += net.conv.weight
        return F.conv2d(x[None], weight)

    return {
        "unbatched": lambda: net.conv(x),
        "batch": lambda: net.conv(torch.stack([x, -x])),
        "keywords": lambda: F.conv2d(bias=net.conv.bias, input=x[None], weight=net.conv.weight, stride=2),
        "same": lambda: F.conv2d(x, net.conv.weight, None, 1, "same", 2),
        "grouped": lambda: net.grouped(torch.linspace(-1, 1, 1024 * 6).reshape(1, 1024, 2, 3)),
        "volume": lambda: net.volume(torch.linspace(-1, 1, 40 * 60).reshape(1, 40, 3, 4, 5)),
        "row": lambda: net.row(torch.linspace(-1, 1, 530 * 3).reshape(530, 3)),
        "linear": lambda: net.line(torch.linspace(-1, 1, 1800).reshape(1, 2, 900)),
        "one row": lambda: F.linear(torch.linspace(-1, 1, 900), net.line.weight),
        "written to": onto_a_copy,
        "transposed": lambda: F.linear(torch.linspace(-1, 1, 700), net.line.weight.t()),
    }


@pytest.mark.parametrize("name", list(_calls(_Large())))
def test_large_weights_give_what_they_give_in_float64(name):
    net = _Large().requires_grad_(False)
    with Float64():
        found = _calls(net)[name]()
    wide = copy.deepcopy(net).double()
    before, default = copy.deepcopy(net.state_dict()), torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with Float64(torch.float64):
            expected = _calls(wide)[name]()
    finally:
        torch.set_default_dtype(default)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
