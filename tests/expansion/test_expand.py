"""``expand`` keeps the function, in evaluation and in training, and ``collapse`` leads back to the plain network."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unbranch as ub
from tests.networks import assert_same_function, randomised
from unbranch.blocks import ACB, DBB, BranchedConv, Compactor, LargeKernel, Mixed, RepVGG

BLOCKS: dict[str, dict[str, Any]] = {
    "acb": {},
    "dbb": {},
    "repvgg": {},
    "replk": {"small_kernel": 1},
    "compactor": {},
}
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Plain(nn.Module):
    """Dense, grouped, depthwise, strided and dilated convolutions, with and without a norm or a bias."""

    def __init__(self, ndim: int = 2, mode: str = "zeros") -> None:
        super().__init__()
        conv, norm = CONVS[ndim - 1], NORMS[ndim - 1]
        self.dense = conv(4, 8, 3, padding=1, bias=False, padding_mode=mode)
        self.dense_norm = norm(8, eps=1e-3, momentum=0.2)
        self.depthwise = nn.Sequential(conv(8, 8, 3, padding=1, groups=8, bias=False), norm(8), nn.ReLU6())
        self.strided = nn.Sequential(conv(8, 8, 5, stride=2, padding=2, groups=2), norm(8))
        self.dilated = conv(8, 8, 3, padding="same", dilation=2)
        self.point = conv(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.dense_norm(self.dense(x)))
        x = torch.relu(self.strided(self.depthwise(x)))
        return self.point(torch.relu(self.dilated(x)))


def plain(ndim: int = 2, mode: str = "zeros") -> nn.Module:
    torch.manual_seed(0)
    return randomised(Plain(ndim, mode)).double()


def images(ndim: int = 2) -> Tensor:
    return torch.randn(3, 4, *(9, 12, 10)[:ndim], dtype=torch.float64)


@pytest.mark.parametrize("start", ["zero", "compensated"])
@pytest.mark.parametrize("block", BLOCKS)
def test_function_stays_and_collapse_leads_back(block: str, start: str) -> None:
    network, x = plain(), images()
    branched = ub.expand(network, block, start=start, **BLOCKS[block])
    assert_same_function(network, branched, x, 1e-13)
    straight, back = ub.collapse(network, x), ub.collapse(branched, x)
    assert_same_function(network, back, x, 1e-13)
    assert ub.report(back).after == ub.report(straight, "collapse").after
    shapes = [{key: value.shape for key, value in n.state_dict().items()} for n in (straight, back)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("ndim", [1, 3])
@pytest.mark.parametrize("block", ["dbb", "repvgg", "compactor"])
def test_other_dimensions(block: str, ndim: int) -> None:
    network, x = plain(ndim), images(ndim)
    branched = ub.expand(network, block)
    assert_same_function(network, branched, x, 1e-13)
    assert ub.report(ub.collapse(branched, x)).after == ub.report(ub.collapse(network, x), "collapse").after


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_padding_modes(mode: str) -> None:
    network, x = plain(mode=mode), images()
    branched = ub.expand(network, "dbb")
    assert_same_function(network, branched, x, 1e-13)
    assert_same_function(network, ub.collapse(branched, x), x, 1e-13)


@pytest.mark.parametrize("block", BLOCKS)
def test_training_starts_as_the_network_would(block: str) -> None:
    """Same output on a batch and same running statistics: added branches have no effect yet."""
    network, x = plain().train(), images()
    branched = ub.expand(network, block, **BLOCKS[block])
    assert branched.training
    assert torch.allclose(branched(x), network(x), rtol=0, atol=1e-12)
    taken = branched.get_submodule("strided.0")
    if isinstance(taken, BranchedConv):
        norm, same = network.get_submodule("strided.1"), taken.get_submodule(f"{taken.main_branch}.bn")
        assert torch.equal(same.running_mean, norm.running_mean)
        assert torch.equal(same.running_var, norm.running_var)


@pytest.mark.parametrize("start", ["zero", "compensated"])
@pytest.mark.parametrize("block", BLOCKS)
def test_expanded_network_trains_and_collapses(block: str, start: str) -> None:
    network = plain().float().train()
    branched = ub.expand(network, block, start=start, **BLOCKS[block])
    optimiser = torch.optim.SGD(branched.parameters(), lr=0.01)
    for _ in range(3):
        optimiser.zero_grad()
        branched(images().float()).square().mean().backward()
        assert all(p.grad is not None for p in branched.parameters())
        optimiser.step()
    x = images()
    back = ub.collapse(branched.double().eval(), x)
    assert_same_function(branched, back, x)
    assert ub.report(back).after == ub.report(ub.collapse(network, x.float()), "collapse").after
    assert ub.verify(network.double(), branched, x).max_rel > 1e-3, "nothing was learned"


def test_network_is_left_as_it_was() -> None:
    network = plain().train()
    before = copy.deepcopy(network.state_dict())
    modules = [type(m) for m in network.modules()]
    branched = ub.expand(network, "dbb", start="compensated")
    with torch.no_grad():
        for parameter in branched.parameters():
            parameter.zero_()
    after = network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert [type(m) for m in network.modules()] == modules


def test_report_lists_what_was_replaced_and_what_was_skipped_and_why() -> None:
    report = ub.report(ub.expand(plain(), "repvgg"))
    assert {p.path: p.norm for p in report.replaced} == {
        "dense": "dense_norm",
        "depthwise.0": "depthwise.1",
        "strided.0": "strided.1",
        "dilated": None,
    }
    assert report.skipped == {"point": "its kernel has one tap"}
    assert report.to_dict()["skipped"] == {"point": "its kernel has one tap"}
    assert report.params_after > report.params_before


@pytest.mark.parametrize(
    ("where", "paths"),
    [
        ("dense", ["dense"]),
        ("d*", ["dense", "depthwise.0", "dilated"]),
        (["dense", "strided.*"], ["dense", "strided.0"]),
        (nn.Conv2d, ["dense", "depthwise.0", "strided.0", "dilated", "point"]),
        (lambda path, conv: conv.groups > 1, ["depthwise.0", "strided.0"]),
        (("point", lambda path, conv: conv.stride[0] > 1), ["strided.0", "point"]),
    ],
    ids=["name", "pattern", "patterns", "class", "predicate", "mixed"],
)
def test_where(where: Any, paths: list[str]) -> None:
    branched = ub.expand(plain(), "repvgg", where)
    assert [p.path for p in ub.report(branched).replaced] == paths
    assert_same_function(plain(), branched, images(), 1e-13)


@pytest.mark.parametrize("block", [RepVGG, lambda *a, **k: Mixed(*a, **k, branches=("kxk", "skip", "average"))])
def test_block_may_be_a_class_or_a_function(block: Callable[..., nn.Module]) -> None:
    """A branch without a norm can't start silent: its effect is subtracted."""
    network, x = plain(), images()
    branched = ub.expand(network, block, ["strided.*", "dilated"])
    assert_same_function(network, branched, x, 1e-13)
    assert any(p.path == "dilated" for p in ub.report(branched).replaced)
    assert_same_function(network, ub.collapse(branched, x), x, 1e-13)


# --- what is skipped --------------------------------------------------------------------------------


class Odd(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).abs()


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_what_cannot_be_replaced_is_skipped_and_listed() -> None:
    tied = nn.Conv2d(4, 4, 3, padding=1)
    tied.weight = (other := nn.Conv2d(4, 4, 3, padding=1)).weight
    hooked = nn.Conv2d(4, 4, 3, padding=1)
    hooked.register_forward_hook(lambda *_: None)
    network = nn.Sequential(
        tied,
        other,
        hooked,
        nn.ConvTranspose2d(4, 4, 3, padding=1),
        Odd(4, 4, 3, padding=1),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1)),
        RepVGG(4, 4, 3, padding=1),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 4, 2, padding="same"),  # more zeros after than before
    ).double()
    branched = ub.expand(network, "dbb")
    assert [p.path for p in ub.report(branched).replaced] == ["7", "8"]
    reasons = {path.split(".")[0]: reason for path, reason in ub.report(branched).skipped.items()}
    words = [
        "shares its weights",
        "shares its weights",
        "hook",
        "transposed",
        "Odd",
        "Conv2d does more",
        "branch of",
    ]
    for path, word in enumerate(words):
        assert word in reasons[str(path)], (path, reasons[str(path)])
    assert_same_function(network, branched, torch.randn(1, 4, 7, 8, dtype=torch.float64), 1e-13)


class TwoReaders(nn.Module):
    """A norm that isn't the only reader, a norm used twice, and a convolution used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.twice, self.after = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y = y + self.norm(y)
        return torch.relu(self.after(self.twice(torch.relu(self.after(self.twice(y))))))


def test_norm_goes_into_the_block_only_where_it_alone_reads_the_convolution_and_once() -> None:
    network = randomised(TwoReaders()).double()
    branched = ub.expand(network, "repvgg")
    assert [p.norm for p in ub.report(branched).replaced] == [None, None]
    x = torch.randn(1, 4, 7, 8, dtype=torch.float64)
    assert_same_function(network, branched, x, 1e-13)
    assert_same_function(network, ub.collapse(branched, x), x, 1e-12)


def test_branches_are_not_compensated_before_a_norm_that_silences_a_channel() -> None:
    network = plain()
    with torch.no_grad():
        network.dense_norm.weight[3] = 0
    report = ub.report(ub.expand(network, "dbb", start="compensated"))
    assert "almost zero" in report.skipped["dense"]
    assert "dense" in [p.path for p in ub.report(ub.expand(network, "dbb")).replaced]


def test_expanding_twice_skips_blocks() -> None:
    once = ub.expand(plain(), "repvgg", "dense")
    twice = ub.expand(once, "dbb")
    assert isinstance(twice.dense, RepVGG)
    assert isinstance(twice.dilated, DBB)
    assert_same_function(plain(), twice, images(), 1e-13)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"block": "dbbb"}, "did you mean 'dbb'"),
        ({"block": "dbb", "where": "layer7.*"}, "must select a convolution"),
        ({"block": "dbb", "start": "half"}, "must be one of zero, compensated, got 'half'"),
        ({"block": "dbb", "small_kernel": 3}, "doesn't accept"),
        ({"block": nn.Conv2d}, "doesn't accept|sum of branches"),
        ({"block": "repvgg", "activation": nn.ReLU}, "sum of branches"),
        ({"block": None}, "or a class or function"),
        ({"block": "dbb", "where": 3}, "must be a pattern"),
        ({"block": "dbb", "example_input": torch.zeros(1, 2, 3, 3)}, "example_input"),
        ({"block": "replk"}, "isn't larger than the small one, 5"),
        ({"block": "replk", "where": "point", "small_kernel": 3}, "doesn't fit into kernel"),
    ],
    ids=[
        "block",
        "where",
        "start",
        "option",
        "class",
        "activation",
        "none",
        "number",
        "example",
        "nothing",
        "nothing there",
    ],
)
def test_bad_arguments_are_told(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ub.InputError, match=words):
        ub.expand(plain(), **given)


def test_network_without_convolutions_is_refused() -> None:
    with pytest.raises(ub.InputError, match="no convolution"):
        ub.expand(nn.Linear(3, 4), "dbb")


class Reads(nn.Module):
    """A forward that reads a convolution's weight, and one that reads a norm's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.other, self.scaled = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x.to(self.conv.weight.dtype))))
        return self.scaled(self.other(x)) * self.scaled.weight.sum()


def test_what_the_network_reads_directly_is_skipped() -> None:
    network = randomised(Reads()).double()
    branched = ub.expand(network, "repvgg")
    assert ub.report(branched).skipped == {"conv": "the network reads its weight directly"}
    assert [(p.path, p.norm) for p in ub.report(branched).replaced] == [("other", None)]
    assert_same_function(network, branched, torch.randn(1, 4, 7, 8, dtype=torch.float64), 1e-13)


class Noisy(nn.Module):
    """Something between convolution and norm that happens in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.norm(x * 2 + 1 if self.training else x)


def test_norm_goes_into_the_block_only_where_it_reads_the_convolution_in_training_too() -> None:
    network = Noisy().double()
    branched = ub.expand(network, "repvgg")
    assert [p.norm for p in ub.report(branched).replaced] == [None]
    x = torch.randn(3, 4, 7, 8, dtype=torch.float64)
    assert torch.allclose(branched(x), network(x), rtol=0, atol=1e-12)


def test_frozen_norm_stays_frozen_and_so_are_those_beside_it() -> None:
    network = plain().train()
    network.dense_norm.eval()
    branched, x = ub.expand(network, "repvgg"), images()
    assert torch.allclose(branched(x), network(x), rtol=0, atol=1e-12)
    block = branched.dense
    assert not any(m.training for m in block.modules())
    assert torch.equal(block.conv_kxk.bn.running_mean, network.dense_norm.running_mean)
    assert branched.depthwise[0].training


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.relu(self.conv(x)))


def test_convolution_that_is_called_twice_comes_back() -> None:
    network = Twice().double()
    x = torch.randn(1, 4, 7, 8, dtype=torch.float64)
    back = ub.collapse(ub.expand(network, "dbb"), x)
    assert isinstance(back.conv, nn.Conv2d)
    assert_same_function(network, back, x, 1e-13)


@pytest.mark.slow
@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", ["rexnet_100", "repvit_m1", "pit_ti_224"])
def test_names_of_timm_networks_come_back(name: str) -> None:
    """Norms that bring an activation or none, parts of a convolution and a norm, and parts of a convolution alone."""
    timm = pytest.importorskip("timm")
    network = timm.create_model(name).eval()
    straight = ub.collapse(network)
    for block in ("repvgg", "compactor"):
        back = ub.collapse(ub.expand(network, block))
        assert back.state_dict().keys() == straight.state_dict().keys()


def test_compactors_are_not_compacted() -> None:
    once = ub.expand(plain(), "compactor")
    report = ub.report(ub.expand(once, "repvgg", where="*"))
    assert all("compactor" not in place.path for place in report.replaced)
    with pytest.raises(ub.InputError, match="no convolution to replace"):
        ub.expand(once, "compactor", where="*.compactor.conv")


# --- what the network keeps -------------------------------------------------------------------------


def test_convolution_alone_is_expanded() -> None:
    conv = nn.Conv2d(3, 4, 3).double()
    branched = ub.expand(conv, "acb")
    assert isinstance(branched, ACB)
    x = torch.randn(1, 3, 6, 7, dtype=torch.float64)
    assert torch.allclose(branched(x), conv(x), rtol=0, atol=1e-14)
    back = ub.collapse(branched)
    assert (type(back), back.weight.shape, back.bias.shape) == (nn.Conv2d, conv.weight.shape, conv.bias.shape)


def test_dtype_memory_format_mode_and_frozen_weights_stay() -> None:
    network = plain().to(torch.bfloat16).to(memory_format=torch.channels_last)
    network.dense.weight.requires_grad_(False)
    network.depthwise.train()
    branched = ub.expand(network, "repvgg")
    assert {p.dtype for p in branched.parameters()} == {torch.bfloat16}
    main = branched.dense.conv_kxk.conv.weight
    assert main.is_contiguous(memory_format=torch.channels_last)
    assert not main.requires_grad
    assert branched.dense.conv_1x1.conv.weight.requires_grad
    assert branched.depthwise[0].training
    assert not branched.dense.training
    assert branched.dense.conv_1x1.bn.eps == branched.dense.conv_kxk.bn.eps == 1e-3
    assert branched.dense.conv_1x1.bn.momentum == 0.2


def test_meta_device_costs_nothing() -> None:
    with torch.device("meta"):
        network = Plain()
    branched = ub.expand(network, "dbb", start="compensated")
    assert all(p.is_meta for p in branched.parameters())
    assert {k: v.shape for k, v in branched.state_dict().items()} == {
        k: v.shape for k, v in ub.expand(plain(), "dbb").state_dict().items()
    }


def test_expanded_network_is_copied_pickled_and_exported() -> None:
    network, x = plain(), images()
    branched = ub.expand(network, "dbb")
    for other in (copy.deepcopy(branched), pickle.loads(pickle.dumps(branched))):
        assert torch.equal(other(x), branched(x))
    exported = torch.export.export(branched, (x,)).module()
    assert torch.allclose(exported(x), network(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("collapsed", [False, True])
@pytest.mark.parametrize("block", BLOCKS)
def test_expanded_network_of_ones_own_is_saved_and_loaded(block: str, collapsed: bool, tmp_path: Any) -> None:
    x = images()
    network = ub.expand(plain(), block, start="compensated", **BLOCKS[block])
    network = ub.collapse(network, x) if collapsed else network
    ub.save(network, tmp_path / "net.safetensors")
    loaded = ub.load(tmp_path / "net.safetensors", into=Plain())
    assert torch.equal(loaded(x), network.eval()(x))
    assert [type(m) for m in loaded.modules()] == [type(m) for m in network.modules()]


def test_options_that_only_a_start_allows_are_loaded(tmp_path: Any) -> None:
    network = ub.expand(plain(), "repvgg", affine=False, start="compensated")
    ub.save(network, tmp_path / "net.safetensors")
    assert_same_function(network, ub.load(tmp_path / "net.safetensors", into=Plain()), images(), 0)


def test_file_with_a_block_of_ones_own_says_how_to_load_it(tmp_path: Any) -> None:
    def mine(*args: Any, **options: Any) -> nn.Module:
        return Mixed(*args, **options, branches=("kxk", "identity"))

    network = ub.expand(plain(), mine, "dilated")
    ub.save(network, tmp_path / "net.safetensors")
    with pytest.raises(ub.InputError, match="mine"):
        ub.load(tmp_path / "net.safetensors", into=Plain())
    loaded = ub.load(tmp_path / "net.safetensors", into=ub.expand(plain(), mine, "dilated"))
    assert_same_function(network, loaded, images(), 0)


def test_large_kernel_and_compactor_by_name() -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 9, padding=4, groups=4), nn.BatchNorm2d(4)).double()
    branched = ub.expand(network, "replk")
    assert isinstance(branched[0], LargeKernel)
    assert branched[0].small.conv.weight.shape == (4, 1, 5, 5)
    assert isinstance(branched[1], nn.Identity)
    dense = ub.expand(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), "compactor")
    assert isinstance(dense[0].compactor, Compactor)
    assert [name for name, _ in dense[0].named_children()] == ["conv", "bn", "compactor"]


# --- the value, the report, and old names -----------------------------------------------------------


def test_expansion_is_a_value_that_gives_the_network_that_expand_does() -> None:
    network, x = plain(), images()
    torch.manual_seed(3)
    expansion = ub.explain_expansion(network, "dbb", start="compensated")
    torch.manual_seed(3)
    branched = ub.expand(network, "dbb", start="compensated")
    first, second = expansion.apply(), expansion.apply()
    assert expansion.report == ub.report(branched) == ub.report(first)
    assert torch.equal(first(x), branched(x))
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
    assert torch.equal(second(x), branched(x))
    assert str(expansion) == str(expansion.report)
    assert repr(expansion) == "<Expansion: Replaced 4 convolutions with DBB blocks; skipped 1>"


def test_report_renders_itself() -> None:
    network = nn.ModuleDict({"<b>": nn.Conv2d(3, 4, 3), "point": nn.Conv2d(3, 4, 1)})
    network.forward = lambda x: network["<b>"](x)
    report = ub.report(ub.expand(network, "acb"))
    assert str(report).startswith("Replaced 1 convolution with an ACB block; skipped 1\n")
    html = report._repr_html_()
    assert "&lt;b&gt;" in html
    assert "<b>" not in html.replace("<b>Replaced", "")
    assert report.to_dict()["replaced"] == [{"path": "<b>", "norm": None}]


def test_old_names_are_found() -> None:
    report = ub.report(ub.expand(plain(), "repvgg"))
    with pytest.warns(DeprecationWarning, match="use `replaced`"):
        assert report.taken == report.replaced
    with pytest.warns(DeprecationWarning, match="use `skipped`"):
        assert report.left == (("point", "its kernel has one tap"),)
    with pytest.warns(DeprecationWarning, match='use `"compensated"`') as caught:
        ub.expand(plain(), "repvgg", start="subtracted")
    assert caught[0].filename == __file__
