"""Large depthwise convolutions are F.conv2d to everything, and use oneDNN's fast kernels in every pass."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode

import unbranch as ub
from unbranch.blocks import DilatedReparam, LargeKernel
from unbranch.deploy.onnx import write_onnx
from unbranch.large_kernels import LargeConv2d, accelerate_large_kernels
from unbranch.large_kernels.convolution import WIDEST_PADDING, _geometry, _LargeConv2d

CHANNELS = 3
LAST = torch.channels_last
CAPABILITIES = list(WIDEST_PADDING)
ON_X86 = torch.backends.cpu.get_cpu_capability() in WIDEST_PADDING and torch.backends.mkldnn.is_available()
pytestmark = pytest.mark.skipif(not ON_X86, reason="only x86 CPUs are concerned")

# kernel, stride, padding, dilation
GEOMETRIES: dict[str, tuple[Any, Any, Any, Any]] = {
    "same": (15, 1, 7, 1),
    "as wide as AVX2 allows": (9, 1, 4, 1),
    "as wide as AVX-512 allows": (13, 1, 6, 1),
    "larger than the map": (31, 1, 15, 1),
    "strided": (15, 2, 7, 1),
    "strided along one axis": (11, (1, 3), 5, 1),
    "dilated": (7, 1, 9, 3),
    "dilated along one axis": ((3, 9), 1, (1, 8), (1, 2)),
    "dilated, little padding": (5, 1, 4, 2),
    "dilated, strided": (5, 2, 8, 4),
    "strip": ((1, 21), 1, (0, 10), 1),
    "upright strip": ((21, 1), 1, (10, 0), 1),
    "unpadded": (9, 1, 0, 1),
    "overpadded": (9, 1, 12, 1),
    "overpadded, strided": (9, 2, 12, 1),
    "padded differently": ((9, 13), 1, (8, 2), 1),
    "word": ((15, 9), 1, "same", 1),
    "word, dilated": (5, 1, "same", 3),
    "word, even": ((16, 12), 1, "same", 1),
    "word, valid": (11, 1, "valid", 1),
    "even": (14, 1, 7, 1),
}  # fmt: skip
EVERY_GEOMETRY = pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
EVERY_CPU = pytest.mark.parametrize("capability", CAPABILITIES)


def convolution(kernel: Any = 15, stride: Any = 1, padding: Any = 7, dilation: Any = 1, **options: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(CHANNELS, CHANNELS, kernel, stride, padding, dilation, groups=CHANNELS, **options)


def pair(*geometry: Any, **options: Any) -> tuple[nn.Conv2d, nn.Conv2d]:
    """PyTorch's convolution, and the same one accelerated."""
    conv = convolution(*geometry, **options)
    return conv, accelerate_large_kernels(copy.deepcopy(conv))


def images(batch: int = 2, form: torch.memory_format = torch.contiguous_format, **options: Any) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, CHANNELS, 12, 15, **options).to(memory_format=form)


def outputs_and_gradients(conv: nn.Conv2d, x: Tensor) -> tuple[Tensor, ...]:
    x = x.detach().requires_grad_()
    y = conv(x)
    torch.manual_seed(2)
    return y, *torch.autograd.grad(y, [x, *conv.parameters()], torch.randn(y.shape, dtype=y.dtype))


class Convolutions(TorchDispatchMode):
    """Notes the arguments of all convolutions, and of their gradients by PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.forward: list[Any] = []
        self.backward: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.forward.append(args)
        elif func is torch.ops.aten.convolution_backward.default:
            self.backward.append(args)
        return func(*args, **(kwargs or {}))


def is_fast(capability: str, x: Tensor, weight: Tensor, _bias: Any, stride: Any, padding: Any, dilation: Any) -> bool:
    """Whether oneDNN has a depthwise kernel for a convolution: what ONEDNN_VERBOSE=1 shows."""
    if x.is_contiguous(memory_format=LAST) and max(dilation) == 1:
        return True
    reach = dilation[1] * (weight.shape[3] - 1)
    width = (x.shape[3] + 2 * padding[1] - reach - 1) // stride[1] + 1
    return padding[1] <= min(WIDEST_PADDING[capability], width)


# --- the same function ----------------------------------------------------------------------------------


@EVERY_CPU
@EVERY_GEOMETRY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
def test_outputs_gradients_and_memory_formats_are_those_of_pytorch(
    monkeypatch: pytest.MonkeyPatch, capability: str, geometry: Any, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    for bias, form in itertools.product((True, False), (torch.contiguous_format, LAST)):
        conv, ours = pair(*geometry, dtype=dtype, bias=bias)
        x = images(3, form, dtype=dtype)
        found, wanted = outputs_and_gradients(ours, x), outputs_and_gradients(conv, x)
        exact = outputs_and_gradients(conv.double(), x.double())
        for ours_, pytorchs, true in zip(found, wanted, exact, strict=True):
            assert ours_.dtype == pytorchs.dtype == dtype
            noise = (pytorchs - true).abs().max()
            assert (ours_ - true).abs().max() <= 4 * noise + 8 * torch.finfo(dtype).eps * true.abs().max()
        assert found[0].stride() == wanted[0].stride()


def test_float64_is_exact() -> None:
    conv, ours = pair(dtype=torch.float64)
    for a, b in zip(*(outputs_and_gradients(c, images(dtype=torch.float64)) for c in (conv, ours)), strict=True):
        assert torch.equal(a, b)


@EVERY_CPU
@pytest.mark.parametrize(
    "geometry", [(3, 1, 3, 1), (3, 2, 4, 1), (2, 1, "same", 1), (2, (2, 1), 5, (1, 2)), (3, 1, 7, 3)], ids=str
)
def test_first_and_second_derivatives(monkeypatch: pytest.MonkeyPatch, capability: str, geometry: Any) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    kernel, stride, padding, dilation = geometry
    arguments = _geometry(stride, padding, dilation, 2, (kernel, kernel))

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Any:
        return _LargeConv2d.apply(x, weight, bias, arguments)

    shapes = (2, 2, 5, 4), (2, 1, kernel, kernel), (2,)
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


def test_gradients_of_large_batches_are_sums_over_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unbranch.large_kernels.convolution.AT_ONCE", 1)
    for a, b in zip(*(outputs_and_gradients(c, images(5)) for c in pair()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_training_steps_have_the_same_bits_again() -> None:
    _, ours = pair()
    for a, b in zip(*(outputs_and_gradients(ours, images(4)) for _ in range(2)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("requires", [*itertools.product((True, False), repeat=3)], ids=str)
def test_gradients_are_computed_where_required(requires: tuple[bool, ...]) -> None:
    results = []
    for conv in pair():
        x = images().requires_grad_(requires[0])
        conv.weight.requires_grad_(requires[1])
        conv.bias.requires_grad_(requires[2])
        y = conv(x)
        assert y.requires_grad == any(requires)
        if any(requires):
            y.square().mean().backward()
        results.append([t.grad for t in (x, conv.weight, conv.bias)])
    for found, wanted, required in zip(*results, requires, strict=True):
        assert (found is not None) == required
        if required:
            torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("x", [images()[0], images()[:0], images()[..., ::2], images(1).expand(3, -1, -1, -1)])
def test_unusual_inputs(x: Tensor) -> None:
    conv, ours = pair()
    torch.testing.assert_close(ours(x), conv(x))
    assert ours(x).stride() == conv(x).stride()


def test_wrong_inputs_raise_what_pytorch_raises() -> None:
    conv, ours = pair()
    for wrong in (torch.zeros(1, 5, 9, 9), torch.zeros(9, 9), images().double(), torch.zeros(1, 1, 5, 9, 9)):
        with pytest.raises(RuntimeError) as wanted:
            conv(wrong)
        with pytest.raises(RuntimeError) as found:
            ours(wrong)
        assert str(found.value) == str(wanted.value)


# --- fast kernels in every pass -------------------------------------------------------------------------


@EVERY_CPU
@EVERY_GEOMETRY
@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
def test_every_pass_is_a_convolution_for_which_onednn_has_a_kernel(
    monkeypatch: pytest.MonkeyPatch, capability: str, geometry: Any
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    _, ours = pair(*geometry)
    with Convolutions() as seen:
        outputs_and_gradients(ours, images())
    strided_or_plain = max(ours.stride) > 1 or capability == "AVX2"
    assert len(seen.forward) + len(seen.backward) == 3
    assert len(seen.backward) <= strided_or_plain
    assert all(is_fast(capability, *arguments[:6]) for arguments in seen.forward)
    assert all(arguments[-1] == [True, False, False] for arguments in seen.backward)
    for form in (torch.contiguous_format, LAST):
        with Convolutions() as seen, torch.no_grad():
            ours(images(form=form))
        assert [is_fast(capability, *arguments[:6]) for arguments in seen.forward] == [True]


def test_what_is_tested_is_slow_in_pytorch() -> None:
    with Convolutions() as seen:
        outputs_and_gradients(convolution(), images())
    assert [is_fast("AVX512", *arguments[:6]) for arguments in seen.forward] == [False]
    assert [arguments[-1] for arguments in seen.backward] == [[True, True, True]]


@pytest.mark.parametrize("form", [torch.contiguous_format, LAST], ids=str)
@pytest.mark.parametrize("kernel_form", [torch.contiguous_format, LAST], ids=str)
def test_networks_in_channels_last_stay_so(form: torch.memory_format, kernel_form: torch.memory_format) -> None:
    conv, ours = (c.to(memory_format=kernel_form) for c in pair())
    x = images(form=form)
    with Convolutions() as seen, torch.no_grad():
        y = ours(x)
        assert y.stride() == conv(x).stride()
    as_given = LAST in (form, kernel_form)
    assert (seen.forward[0][0] is x) == as_given


@pytest.mark.parametrize("capability", ["DEFAULT", "NO AVX", "SVE256"])
def test_other_cpus_compute_as_pytorch_does(monkeypatch: pytest.MonkeyPatch, capability: str) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    _assert_plain(pair()[1], images())


@pytest.mark.filterwarnings("ignore:TF32 acceleration:UserWarning")
def test_without_onednn_it_is_pytorchs() -> None:
    with torch.backends.mkldnn.flags(enabled=False):
        _assert_plain(pair()[1], images())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_other_data_types_are_pytorchs(dtype: torch.dtype) -> None:
    _assert_plain(pair(dtype=dtype)[1], images(dtype=dtype))


def _assert_plain(conv: nn.Conv2d, x: Tensor) -> None:
    with Convolutions() as seen, torch.no_grad():
        conv(x)
    ((x_, _, _, stride, padding, dilation, *_),) = seen.forward
    assert x_ is x
    assert (stride, padding, dilation) == ([1, 1], [7, 7], [1, 1])


# --- which layers ---------------------------------------------------------------------------------------


class Own(nn.Conv2d):
    """A subclass may compute something else."""


def _patched() -> nn.Conv2d:
    conv = convolution()
    conv.forward = conv.forward  # type: ignore[method-assign]
    return conv


@pytest.mark.parametrize(
    "layer",
    [
        *(convolution(k, 1, 3) for k in (1, 2, 3, 4, 5, 6, 7, (1, 7))),
        convolution(3, 1, 3, 3),
        convolution(padding_mode="reflect"),
        nn.Conv2d(4, 4, 15, groups=2), nn.Conv2d(4, 8, 15, groups=4), nn.Conv2d(4, 4, 15), nn.Conv2d(1, 1, 15),
        nn.Conv1d(4, 4, 15, groups=4), nn.Conv3d(4, 4, 9, groups=4), nn.ConvTranspose2d(4, 4, 15, groups=4),
        Own(4, 4, 15, groups=4), parametrizations.weight_norm(convolution()), _patched(), nn.LazyConv2d(4, 15),
    ],
    ids=str,
)  # fmt: skip
def test_other_layers_are_not_changed(layer: nn.Module) -> None:
    kind = type(layer)
    assert accelerate_large_kernels(nn.Sequential(layer))[0] is layer
    assert type(layer) is kind


@EVERY_GEOMETRY
def test_large_layers(geometry: Any) -> None:
    network = nn.Sequential(nn.Sequential(convolution(*geometry)), nn.ReLU())
    assert accelerate_large_kernels(network) is network
    assert type(network[0][0]) is LargeConv2d
    assert accelerate_large_kernels(network) is network
    assert type(accelerate_large_kernels(network, enabled=False)[0][0]) is nn.Conv2d


# --- an nn.Conv2d to everything else --------------------------------------------------------------------


def test_it_looks_like_a_convolution() -> None:
    conv, ours = pair()
    assert isinstance(ours, nn.Conv2d)
    assert repr(ours) == repr(conv)
    assert type(ours).__name__ == "Conv2d"
    assert list(ours.state_dict()) == list(conv.state_dict())
    ours.load_state_dict(conv.state_dict())
    for name, value in ours.state_dict().items():
        assert value.stride() == conv.state_dict()[name].stride()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda c: copy.deepcopy(nn.Sequential(c))[0]])
def test_copies_stay_fast(copied: Any) -> None:
    _, ours = pair()
    ours.note = ["kept"]
    other = copied(ours)
    assert type(other) is LargeConv2d
    assert other.note == ["kept"]
    assert (other.weight is ours.weight) == (copied is copy.copy)
    other.stride = (2, 2)
    assert other(images()).shape[2:] == (6, 8)
    assert ours(images()).shape[2:] == (12, 15)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_are_those_of_a_convolution(protocol: int) -> None:
    conv, ours = pair()
    ours.register_buffer("kept", torch.ones(1))
    data = pickle.dumps(ours.eval(), protocol)
    assert b"unbranch" not in data
    again = pickle.loads(data)
    assert type(again) is nn.Conv2d
    assert not again.training
    assert torch.equal(again.kept, torch.ones(1))
    torch.testing.assert_close(again(images()), conv(images()))


def test_pickled_blocks_stay_fast() -> None:
    file = io.BytesIO()
    torch.save(nn.Sequential(LargeKernel(8, 8, 13, padding=6, groups=8)), file)
    file.seek(0)
    assert type(torch.load(file, weights_only=False)[0].large.conv) is LargeConv2d


def test_parametrized_weights() -> None:
    conv, ours = map(parametrizations.weight_norm, pair())
    for module in (ours, copy.deepcopy(ours)):
        for a, b in zip(outputs_and_gradients(module, images()), outputs_and_gradients(conv, images()), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError, match="parametriz"):
        pickle.dumps(ours)


def _onnx_operators(network: nn.Module, x: Tensor, folder: Path) -> list[str]:
    write_onnx(network, x, folder / "network.onnx")
    return [node.op_type for node in onnx.load(folder / "network.onnx").graph.node]


def test_onnx_files_have_a_convolution(tmp_path: Path) -> None:
    assert _onnx_operators(nn.Sequential(pair()[1]).eval(), images(), tmp_path) == ["Conv"]


@pytest.mark.parametrize("strict", [True, False])
def test_exported_programs_have_a_convolution(strict: bool) -> None:
    program = torch.export.export(nn.Sequential(pair()[1]), (images(),), strict=strict)
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert calls == [torch.ops.aten.conv2d.default]


def test_graphs_have_a_convolution() -> None:
    network = nn.Sequential(pair()[1])
    graph = torch.fx.symbolic_trace(network)
    assert [node.op for node in graph.graph.nodes] == ["placeholder", "call_module", "output"]
    assert type(graph[0] if hasattr(graph, "__getitem__") else graph.get_submodule("0")) is LargeConv2d
    traced = make_fx(network)(images())
    assert [n.target for n in traced.graph.nodes if n.op == "call_function"] == [torch.ops.aten.convolution.default]


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript_has_a_convolution() -> None:
    conv, ours = pair()
    traced, scripted = torch.jit.trace(ours, images()), torch.jit.script(ours)
    assert "aten::_convolution" in str(traced.graph)
    assert "aten::to" not in str(traced.graph)
    for module in (traced, scripted):
        torch.testing.assert_close(module(images()), conv(images()))


def test_compiled_networks_have_a_convolution() -> None:
    conv, ours = pair()
    graphs = []

    def backend(graph: torch.fx.GraphModule, _example: Any) -> Any:
        graphs.append([n.target for n in graph.graph.nodes if n.op == "call_function"])
        return graph.forward

    compiled = torch.compile(ours, backend=backend, fullgraph=True)
    assert torch.equal(compiled(images()), conv(images()))
    assert graphs == [[torch.conv2d]]


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16], ids=str)
def test_autocast(given: torch.dtype) -> None:
    results = []
    for conv in pair():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = conv(images().to(given))
        y.float().square().mean().backward()
        results.append((y, conv.weight.grad, conv.bias.grad))
    for found, wanted in zip(results[1], results[0], strict=True):
        assert found.dtype == wanted.dtype
        torch.testing.assert_close(found, wanted, rtol=0.03, atol=0.03)
    assert results[1][0].dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_transforms_of_functions() -> None:
    results = []
    for conv in pair():
        parameters = {name: p.detach() for name, p in conv.named_parameters()}

        def loss(parameters: Any, x: Tensor, conv: nn.Module = conv) -> Tensor:
            return functional_call(conv, parameters, (x[None],)).square().mean()

        each = vmap(grad(loss), (None, 0))(parameters, images(3))
        tangent = jvp(lambda x, conv=conv: conv(x), (images(),), (torch.ones_like(images()),))[1]
        results.append((each["weight"], each["bias"], tangent))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("of", ["x", "weight"])
def test_forward_mode_derivatives(of: str) -> None:
    results = []
    for conv in pair():
        with forward_ad.dual_level():
            x, weight = images(), conv.weight
            if of == "x":
                x = forward_ad.make_dual(x, torch.ones_like(x))
            else:
                weight = forward_ad.make_dual(weight, torch.ones_like(weight))
            y = functional_call(conv, {"weight": weight}, (x,))
            results.append(forward_ad.unpack_dual(y).tangent)
    torch.testing.assert_close(*results)


def test_tensors_without_values() -> None:
    _, ours = pair()
    assert copy.deepcopy(ours).to("meta")(images().to("meta")).shape == images().shape
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        y = ours(mode.from_tensor(images()))
    assert y.stride() == images().stride()


# --- in networks ----------------------------------------------------------------------------------------


def _blocks() -> Iterator[Any]:
    yield "RepLK", LargeKernel(8, 8, 31, padding=15, groups=8)
    yield "RepLK, online", LargeKernel(8, 8, 15, padding=7, groups=8, online=True)
    yield "dilated", DilatedReparam(8, 8, 17, padding=8, groups=8)


@pytest.mark.parametrize("block", [block for _, block in _blocks()], ids=[name for name, _ in _blocks()])
def test_blocks_train_and_collapse_to_fast_convolutions(block: nn.Module) -> None:
    x = torch.randn(2, 8, 16, 18)
    with Convolutions() as seen:
        block.train()(x).square().mean().backward()
    large = [arguments for arguments in seen.forward if max(arguments[1].shape[2:]) > 7]
    assert large
    assert all(is_fast("AVX512", *arguments[:6]) for arguments in large)
    slow = [a for a in seen.backward if a[-1][1] and max(a[2].shape[2:]) > 7]
    assert not slow
    plain = ub.collapse(block.eval(), x)
    assert type(plain) is LargeConv2d
    torch.testing.assert_close(plain(x), block(x), rtol=1e-3, atol=1e-4)
    with Convolutions() as seen, torch.no_grad():
        plain(x)
    assert [is_fast("AVX512", *arguments[:6]) for arguments in seen.forward] == [True]


class Reading(nn.Module):
    """Reads its convolution's output in the default memory format."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = convolution(), nn.BatchNorm2d(CHANNELS), convolution(9, 1, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        return self.head(y.view(len(x), -1).view_as(x))


def test_collapsed_networks_have_fast_layers_everywhere_and_outputs_in_the_format_of_inputs() -> None:
    network = Reading().eval()
    plain = ub.collapse(network, images())
    assert [type(module) for module in plain.modules()].count(LargeConv2d) == 2
    assert type(network.conv) is type(network.head) is nn.Conv2d
    torch.testing.assert_close(plain(images()), network(images()), rtol=1e-4, atol=1e-5)


def test_collapsing_again_finds_nothing_and_larger_networks_are_merged() -> None:
    plain = ub.collapse(nn.Sequential(convolution(), nn.BatchNorm2d(CHANNELS)).eval())
    assert not ub.explain(plain).merges
    layer = next(module for module in plain.modules() if isinstance(module, nn.Conv2d))
    again = ub.explain(nn.Sequential(layer, nn.BatchNorm2d(CHANNELS)).eval())
    assert len(again.merges) == 1
    assert type(again.apply()[0] if isinstance(again.apply(), nn.Sequential) else again.apply()) is LargeConv2d


def test_saved_networks_are_fast_when_loaded(tmp_path: Path) -> None:
    network = ub.create_model("unireplknet_a", num_classes=3).eval()
    plain = ub.collapse(network)
    ub.save(plain, tmp_path / "plain.safetensors")
    loaded = ub.load(tmp_path / "plain.safetensors")
    large = [{name for name, one in n.named_modules() if type(one) is LargeConv2d} for n in (plain, loaded)]
    assert large[0] == large[1]
    assert len(large[0]) == 10
