"""The result is an ordinary network: it can be copied, stored, exported, compiled, trained, collapsed again."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

import unbranch as ub
from tests.networks import assert_same_function, linear_layers, randomised


class Branches(nn.Module):
    """A branched block with an activation inside: its rebuild is a sequence."""

    def __init__(self, channels: int = 6, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.point = nn.Conv2d(channels, channels, 1, groups=groups)
        self.skip = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.norm(self.conv(x)) + self.point(x) + self.skip(x))


class Attended(nn.Module):
    """Its rebuild keeps a graph: the activation's output is used twice."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.branches = Branches(channels)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1), nn.Sigmoid())
        self.left = nn.Conv2d(channels, channels, 3, padding=1)
        self.right = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.branches(x)
        return (self.left(x) + self.right(x)) * self.gate(x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.body = nn.ModuleList([Branches(), Attended(), Branches(groups=3)])
        self.head = nn.Linear(6, 5)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.body:
            x = block(x)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).mean((2, 3)))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return randomised(Net().double())


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(2, 3, 17, 20, dtype=torch.float64)


def test_collapses_to_one_layer_a_block_and_keeps_the_rest(net, image):
    plain = ub.collapse(net, image)
    assert linear_layers(plain) == {"convolution": 6, "linear": 1, "batch norm": 0}
    assert type(plain) is Net
    assert isinstance(plain.body[0], nn.Sequential)
    assert torch.allclose(plain.features(image), net.features(image), atol=1e-12)
    assert_same_function(net, plain, image)


def test_a_block_alone_becomes_a_layer():
    block = randomised(Branches().double())
    block.act = nn.Identity()
    plain = ub.collapse(block)
    assert isinstance(plain, nn.Conv2d)
    assert plain.padding == (1, 1)


def test_the_original_is_untouched(net, image):
    net.train()
    net.body[0].act.register_forward_hook(lambda *a: None)
    before = copy.deepcopy(net.state_dict())
    kinds = [type(m) for m in net.modules()]
    ub.collapse(net, image)
    assert net.training
    assert all(m.training for m in net.modules())
    assert [type(m) for m in net.modules()] == kinds
    assert len(net.body[0].act._forward_hooks) == 1
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_the_result_shares_no_tensor_with_the_original(net):
    plain = ub.collapse(net)
    ours = {t.data_ptr() for t in net.state_dict().values()}
    assert not ours & {t.data_ptr() for t in plain.state_dict().values()}


def test_twice_is_once(net, image):
    once = ub.collapse(net, image)
    twice = ub.collapse(once, image)
    assert not ub.report(twice).merges
    assert [type(m).__name__ for m in once.modules()] == [type(m).__name__ for m in twice.modules()]
    assert all(torch.equal(a, b) for a, b in zip(once.state_dict().values(), twice.state_dict().values(), strict=True))


def test_copy_pickle_and_state_dict(net, image):
    plain = ub.collapse(net, image)
    expected = plain(image)
    assert torch.equal(copy.deepcopy(plain)(image), expected)
    assert torch.equal(pickle.loads(pickle.dumps(plain))(image), expected)
    other = ub.collapse(randomised(copy.deepcopy(net), seed=1))
    other.load_state_dict(plain.state_dict())
    assert torch.equal(other(image), expected)


@pytest.mark.slow
def test_torch_export_and_compile(net, image):
    plain = ub.collapse(net, image)
    expected = plain(image)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(plain, (image,)).module()
        compiled = torch.compile(plain, backend="aot_eager")
        assert torch.allclose(exported(image), expected)
        assert torch.allclose(compiled(image), expected)


@pytest.mark.slow
def test_onnx_runtime_agrees(net, image, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    plain, x = ub.collapse(net.float(), image.float()), image.float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(plain, (x,), str(tmp_path / "net.onnx"), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    (ours,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert abs(ours - plain(x).detach().numpy()).max() < 1e-5


def test_can_be_trained_on(net, image):
    plain = ub.collapse(net.train(), image)
    assert plain.training
    plain(image).square().sum().backward()
    assert all(p.grad is not None for p in plain.parameters())


def test_requires_grad_is_kept(net):
    net.stem.requires_grad_(False)
    plain = ub.collapse(net)
    assert not any(p.requires_grad for p in plain.stem.parameters())
    assert all(p.requires_grad for p in plain.body.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtype_is_kept(net, image, dtype):
    plain = ub.collapse(net.to(dtype), image.to(dtype))
    assert {p.dtype for p in plain.parameters()} == {dtype}


def test_memory_format_is_kept(net, image):
    assert ub.collapse(net).body[0].conv.weight.is_contiguous()
    plain = ub.collapse(net.to(memory_format=torch.channels_last))
    assert not plain.body[0].conv.weight.is_contiguous()
    assert plain.body[0].conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_works_on_the_meta_device(net):
    plain = ub.collapse(net.to("meta"))
    assert linear_layers(plain) == {"convolution": 6, "linear": 1, "batch norm": 0}
    assert all(p.is_meta for p in plain.parameters())


def test_wrappers_are_taken_off(net, image):
    averaged = torch.optim.swa_utils.AveragedModel(net)
    for wrapped in (nn.DataParallel(net), averaged, torch.compile(net)):
        plain = ub.collapse(wrapped, image)
        assert type(plain) is Net
        assert_same_function(net, plain, image)


def test_distributed_data_parallel_is_taken_off(net, image, tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        assert type(ub.collapse(nn.parallel.DistributedDataParallel(net), image)) is Net
    finally:
        torch.distributed.destroy_process_group()


def test_report_renders_and_serialises(net, image):
    import json

    report = ub.explain(net, image)
    assert json.loads(json.dumps(report.to_dict()))["after"]["layers"]["batch norm"] == 0
    assert "multiply-accumulates" in str(report)
    assert report.after.macs < report.before.macs
    assert report.after.params < report.before.params
    assert report.after.launches < report.before.launches
    assert report.worst_error < 1e-13


def test_bad_arguments_give_one_clear_error(net):
    with pytest.raises(ub.InputError, match=r"expected a torch.nn.Module"):
        ub.collapse("resnet18")
    with pytest.raises(ub.InputError, match="tensor or a tuple of tensors"):
        ub.collapse(net, "image")


def test_a_network_for_one_size_is_converted_without_a_word_on_the_terminal(capfd):
    class Positioned(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.where = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Parameter(torch.ones(4, 6, 6))

        def forward(self, x):
            y = self.norm(self.conv(x))
            return (y + self.where).flatten(2).mean(2) if x.dim() == 4 else y

    plain = ub.collapse(Positioned().eval(), torch.randn(2, 4, 6, 6))
    assert type(plain.norm) is nn.Identity
    assert capfd.readouterr() == ("", "")
