"""The same conversion under unusual conditions: dtypes, inference mode, the meta device, examples that don't fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unbranch as ub
from tests.networks import randomised
from unbranch.blocks import RepVGG

FEW = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(3))


def network() -> nn.Module:
    return randomised(nn.Sequential(RepVGG(4, 4, 3, padding=1), nn.ReLU(), RepVGG(4, 6, 3, padding=1)))


def convolutions(plain: nn.Module) -> int:
    assert not any(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
    return sum(isinstance(m, nn.Conv2d) for m in plain.modules())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("example", [False, True])
def test_every_floating_dtype(dtype: torch.dtype, example: bool) -> None:
    source = network().to(dtype)
    before = {name: t.clone() for name, t in source.state_dict().items()}
    plain = ub.collapse(source, FEW.to(dtype)) if example else ub.collapse(source)
    assert convolutions(plain) == 2
    assert {t.dtype for t in plain.state_dict().values()} == {dtype}
    assert all(torch.equal(t, before[name]) for name, t in source.state_dict().items())
    exact, ours = source.double()(FEW.double()), plain.double()(FEW.double())
    assert (exact - ours).abs().max() <= 4 * torch.finfo(dtype).eps * exact.abs().max() + 1e-12


def test_in_inference_mode() -> None:
    with torch.inference_mode():
        source = network()
        plain = ub.collapse(source, FEW)
        assert convolutions(plain) == 2
        assert torch.allclose(plain(FEW), source(FEW), atol=1e-4)
    plain(FEW).sum().backward()


def test_made_in_inference_mode() -> None:
    with torch.inference_mode():
        source = network()
    plain = ub.collapse(source)
    assert convolutions(plain) == 2
    with torch.no_grad():
        assert torch.allclose(plain(FEW), source(FEW), atol=1e-4)
    plain(FEW).sum().backward()


def test_under_a_device_that_holds_no_numbers() -> None:
    source = network()
    with torch.device("meta"):
        plain = ub.collapse(source)
    assert convolutions(plain) == 2
    assert torch.allclose(plain(FEW), source(FEW), atol=1e-4)


def test_on_the_meta_device() -> None:
    with torch.device("meta"):
        source = nn.Sequential(RepVGG(4, 4, 3, padding=1), nn.ReLU())
    plain = ub.collapse(source)
    assert convolutions(plain) == 1
    assert all(t.is_meta for t in plain.state_dict().values())


def test_under_another_default_dtype() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        source = network().float()
        plain = ub.collapse(source)
        assert torch.get_default_dtype() is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert convolutions(plain) == 2
    assert {t.dtype for t in plain.state_dict().values()} == {torch.float32}


# name: an example that the network can't take, and words of the message that belong to it alone
EXAMPLES: dict[str, tuple[Any, str]] = {
    "wrong rank": (torch.randn(4, 9), "shape (4, 9)"),
    "wrong channels": (torch.randn(2, 3, 9, 9), "shape (2, 3, 9, 9)"),
    "wrong dtype": (torch.randn(2, 4, 9, 9, dtype=torch.float64), "float64"),
    "integers": (torch.ones(2, 4, 9, 9, dtype=torch.long), "int64"),
    "too small": (torch.randn(2, 4, 0, 0), "shape (2, 4, 0, 0)"),
    "a list of numbers": ([1.0, 2.0], "list"),
    "no tensor": ("photo.jpg", "str"),
    "too many": ((FEW, FEW, FEW), "a tuple of 3"),
    "none": ((), "tuple"),
    "a dictionary": ({"x": FEW, "y": FEW}, "dict"),
    "another device": (FEW.to("meta"), "meta"),
    "an array": (FEW.numpy(), "ndarray"),
}


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("call", [ub.collapse, ub.explain])
def test_an_example_that_does_not_fit_is_one_sentence(
    name: str, call: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    source = network()
    before = {name: t.clone() for name, t in source.state_dict().items()}
    example, words = EXAMPLES[name]
    with pytest.raises(ub.InputError, match="`example_input`") as error:
        call(source, example)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
    assert capfd.readouterr().err == ""
    assert all(torch.equal(t, before[name]) for name, t in source.state_dict().items())


class _Draws(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


@pytest.mark.parametrize("given", [3, "net", None, nn.Sequential, [nn.Conv2d(1, 1, 1)]])
def test_what_is_no_network_is_one_sentence(given: Any) -> None:
    with pytest.raises(ub.InputError, match=rf"torch\.nn\.Module, got {type(given).__name__}$"):
        ub.collapse(given)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_script_module_is_one_sentence() -> None:
    with pytest.raises(ub.UnsupportedError, match=r"^[^\n]*ScriptModule[^\n]*$"):
        ub.collapse(torch.jit.trace(network(), FEW))


def test_parts_are_proved_where_the_network_draws_numbers() -> None:
    source = nn.Sequential(network(), _Draws())
    state = torch.get_rng_state()
    plain = ub.collapse(source)
    assert torch.equal(torch.get_rng_state(), state)
    assert convolutions(plain) == 2


DESTROYS: dict[str, Callable[[nn.Module], Any]] = {
    "loads": lambda m: m.load_state_dict({k: torch.zeros_like(v) for k, v in m.state_dict().items()}),
    "writes to data": lambda m: [p.data.mul_(0) for p in m.parameters()],
    "resizes buffers": lambda m: [b.resize_(0) for b in m.buffers()],
    "replaces data": lambda m: [setattr(p, "data", torch.zeros(3)) for p in m.parameters()],
    "casts": lambda m: m.half(),
    "writes to buffers": lambda m: [b.zero_() for b in m.buffers()],
    "initialises": lambda m: [nn.init.zeros_(p) for p in m.parameters()],
    "freezes": lambda m: m.requires_grad_(False),
    "sets gradients": lambda m: [setattr(p, "grad", torch.ones_like(p)) for p in m.parameters()],
    "hooks gradients": lambda m: [p.register_hook(lambda g: g * 0) for p in m.parameters()],
    "hooks itself": lambda m: m.register_forward_hook(lambda *_: None),
    "adds a part": lambda m: m.add_module("new", nn.ReLU()),
    "trains": lambda m: m.train(),
    "writes to its class": lambda m: setattr(type(m), "count", 1),
    "changes the default dtype": lambda _m: torch.set_default_dtype(torch.float64),
}


def destroying(name: str) -> nn.Module:
    """A network that destroys something of its own, if it is given more than 50 images."""

    class Destroys(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Tensor:
            if x.shape[0] > 50:
                DESTROYS[name](self)
            return self.inner(x)  # type: ignore[no-any-return]

    return Destroys().eval()


def destroyable(source: nn.Module) -> list[Any]:
    """What the entries of ``DESTROYS`` change."""
    marks = [(p.requires_grad, p.grad is None, len(p._backward_hooks or ())) for p in source.parameters()]
    own = source.training, len(source._modules), len(source._forward_hooks), hasattr(type(source), "count")
    tensors = [(key, t.dtype, t.tolist()) for key, t in source.state_dict().items()]
    return [marks, own, torch.get_default_dtype(), tensors]


@pytest.mark.parametrize("name", DESTROYS)
def test_what_a_network_would_destroy_is_seen(name: str) -> None:
    source = destroying(name)
    before, default = destroyable(source), torch.get_default_dtype()
    try:
        DESTROYS[name](source)
        assert destroyable(source) != before
    finally:
        torch.set_default_dtype(default)


@pytest.mark.parametrize("name", DESTROYS)
def test_a_way_that_no_input_takes_changes_nothing(name: str) -> None:
    source = destroying(name)
    before = destroyable(source)
    plain = ub.collapse(source)
    assert destroyable(source) == before
    assert torch.allclose(plain(FEW), source(FEW), atol=1e-4)
