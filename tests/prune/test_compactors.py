"""Where compactors come: derived from the graph, chosen by patterns, refused with a reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import unbranch as ub
from tests.prune.networks import CASES, Inverted, Joined, Squeezed, conv, depthwise
from unbranch.blocks import Compactor
from unbranch.errors import InputError
from unbranch.prune import ResRep, insert_compactors, read_graph

X = torch.zeros(1, 3, 32, 32)


def places(name: str, **options: object) -> tuple[str, ...]:
    return ub.report(insert_compactors(ub.create_model(name, num_classes=10), X, **options)).inserted


def test_bottlenecks_lose_channels_in_their_first_two_convolutions() -> None:
    stages = zip((1, 2, 3, 4), (3, 4, 6, 3), strict=True)
    expected = [f"layer{s}.{i}.conv{k}" for s, n in stages for i in range(n) for k in (1, 2)]
    assert list(places("torchvision:resnet50")) == expected


@pytest.mark.sweep(6)
@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet56_cifar", 27), ("resnet18", 8), ("vgg16_cifar", 13), ("mobilenet_v1", 14), ("repvgg_a0", 22)],
)
def test_internal_layers_are_those_of_the_paper(name: str, count: int) -> None:
    found = places(name)
    assert len(found) == count
    if name == "resnet18":
        assert all(path.endswith(".conv1.conv") for path in found)


@pytest.mark.sweep(6)
@pytest.mark.parametrize("name", ["resnet56_cifar", "vgg16_cifar", "mobilenet_v1", "resnet50"])
def test_the_zoo_s_own_compactors_stand_where_the_rule_puts_them(name: str) -> None:
    own = ub.create_model(name, num_classes=10, block="compactor")
    ours = [path.removesuffix(".compactor") for path, m in own.named_modules() if isinstance(m, Compactor)]
    assert sorted(ours) == sorted(path.removesuffix(".conv") for path in places(name))


def test_all_takes_layers_that_are_added_and_patterns_choose() -> None:
    network = ub.create_model("resnet8_cifar", num_classes=10)
    everything = ub.report(insert_compactors(network, X, layers="all"))
    assert len(everything.inserted) == 9
    assert everything.skipped == {}
    some = ub.report(
        insert_compactors(network, X, layers="all", include=["stages.1.*", "stages.2.*"], exclude="*.shortcut.conv")
    )
    assert some.inserted == ("stages.1.0.conv1.conv", "stages.2.0.conv1.conv")
    assert some.skipped["stem.conv"] == "it isn't included"
    assert some.skipped["stages.1.0.shortcut.conv"] == "it is excluded"
    reason = "the output of stages.1.0.shortcut is added to it, and that has no compactor"
    assert some.skipped["stages.1.0.conv2.conv"] == reason
    assert "Inserted compactors after 2 layers; skipped 7" in str(some)


def test_reasons_are_told() -> None:
    left = ub.report(insert_compactors(depthwise(), X)).skipped
    assert left["1.0"] == "it is depthwise: it loses the channels that the layer before it loses, if that is included"
    assert left["2.0"] == "its channels are the network's output"
    fewer = nn.Sequential(conv(3, 8), conv(8, 4, groups=4), conv(4, 8), nn.Conv2d(8, 5, 1))
    assert (
        ub.report(insert_compactors(fewer, X)).skipped["0.0"]
        == "1.0 reads several of its channels in each group and produces one"
    )
    left = ub.report(insert_compactors(Squeezed(), X)).skipped
    assert left["down"] == "no batch norm of its own reads it"
    assert "isn't internal: 2 layers read its channels" in ub.report(insert_compactors(Joined(), X)).skipped["stem.0"]


def test_blocks_have_it_behind_the_sum_and_before_the_activation() -> None:
    network = insert_compactors(CASES["blocks"].make(), X)
    assert ub.report(network).inserted == ("0", "1", "3")
    assert [type(m) for m in network[0].post] == [Compactor, nn.ReLU]
    assert [type(m) for m in network[1].post] == [Compactor]


def test_depthwise_convolutions_have_one_where_their_channels_couldn_t_go_otherwise() -> None:
    assert ub.report(insert_compactors(depthwise(), X)).inserted == ("0.0",)
    assert ub.report(insert_compactors(depthwise(last=3), X)).inserted == ("0.0", "1.0")  # a reader pads
    network = insert_compactors(Inverted(), X)  # its norms shift nothing yet, so that zeros stay zeros
    assert ub.report(network).inserted == ("wide.0", "depthwise.0")
    assert network.depthwise[0].compactor.conv.weight.shape == (8, 1, 1, 1)
    with pytest.raises(InputError, match="when they are zero isn't constant"):
        insert_compactors(Inverted(), X, include="wide*")
    left = ub.report(insert_compactors(Inverted(), X, include=["depthwise*", "wide*"])).skipped
    assert left["last.0"] == "it isn't included"


class Shifted(nn.Module):
    """Two convolutions, concatenated, a norm that shifts them and a convolution that pads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm, self.last = conv(3, 6), conv(3, 6), nn.BatchNorm2d(12, affine=False), conv(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(torch.cat([self.a(x), self.b(x)], 1)).sigmoid())


def test_what_training_may_make_of_zeros_is_thought_of_before_it() -> None:
    with pytest.raises(InputError, match="when they are zero isn't constant"):
        insert_compactors(Shifted(), X)  # its running means are zero, as yet
    network = ub.expand(Inverted(nn.SiLU, 3), "compactor", "wide.0")
    with pytest.raises(InputError, match=r"wide\.0\.compactor: what its channels become"):
        ResRep(network, X, target=0.99)


class Rolled(nn.Module):
    """A residual branch whose channels change places, which the graph doesn't see, and that adds nothing as yet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.last = conv(3, 6), conv(6, 8), conv(8, 6)
        nn.init.zeros_(self.last[1].weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return x + self.last[1](self.last[0](self.first(x).roll(3, 1)))


def test_a_branch_that_starts_with_nothing_hides_nothing() -> None:
    with pytest.raises(InputError, match=r"first\.0: without some of its channels the network differs"):
        insert_compactors(Rolled(), X, include="first*")


class Chunked(nn.Module):
    """Two halves of a convolution that different ones read, so that they have to stay equally wide."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = conv(3, 6), conv(6, 24)
        self.left, self.right = nn.Conv2d(12, 5, 1), nn.Conv2d(12, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.first(self.stem(x)).chunk(2, 1)
        return self.right(b) + self.left(a)


def test_halves_of_a_layer_that_would_have_to_stay_alike_are_left() -> None:
    found = ub.report(insert_compactors(Chunked(), X, layers="all"))
    assert found.inserted == ("stem.0",)
    assert found.skipped["first.0"].startswith("its channels can't be removed")


class WithAuxiliary(nn.Module):
    """A convolution that only training comes to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.auxiliary = conv(3, 8), conv(8, 4), conv(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.last(x) + self.auxiliary(x) if self.training else self.last(x)


def test_a_convolution_that_only_training_comes_to_is_left() -> None:
    found = ub.report(insert_compactors(WithAuxiliary(), X))
    assert found.inserted == ("first.0",)
    assert found.skipped["auxiliary.0"] == "the forward doesn't call it in evaluation"


def test_what_a_depthwise_convolution_reads_has_to_have_one_too() -> None:
    network = ub.expand(Inverted(), "compactor", ["depthwise.0", "last.0"])
    left = read_graph(network, X).skipped
    assert left["depthwise.0.compactor"] == "it is depthwise, and what it reads has no compactor"


class Compared(nn.Module):
    """Channels that are compared with each other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = conv(3, 8), nn.Conv2d(8, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return self.last(y.softmax(1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(32, 3)), "it has no convolution"),
        (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 1)), "no batch norm of its own"),
        (lambda: conv(3, 8), "its channels are the network's output"),
        (Compared, "when they are zero isn't constant"),
        (
            lambda: nn.Sequential(conv(3, 8, act=nn.Sigmoid), nn.Conv2d(8, 4, 3, padding=1)),
            "not zero where a layer pads",
        ),
        (lambda: insert_compactors(ub.create_model("resnet8_cifar"), X), "has compactors already: pass it to ResRep"),
    ],
)
def test_what_can_t_be_pruned_is_told_before_any_training(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(InputError, match=message):
        insert_compactors(make(), X)


def test_wrong_words_are_told() -> None:
    with pytest.raises(InputError, match="`layers` must be one of internal, all, got 'some'"):
        insert_compactors(conv(3, 8), X, layers="some")
    with pytest.raises(InputError, match=r"can be pruned; .*isn't included"):
        insert_compactors(depthwise(), X, include="nothing*")
