"""What the proof compares: parts that the network's forward runs, and parts that only other code runs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import unbranch as ub
from tests.networks import randomised
from unbranch.convert.prove.differences import Verdict
from unbranch.convert.prove.forwards import EXACT, Forwards


class _Noisy(nn.Module):
    """Draws random numbers, so that nothing can be proved of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + torch.rand_like(x)


class _WithHead(nn.Module):
    """Its head is for training, and for whoever calls it."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3, padding=1), head

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.head(y) if self.training else y


def _verdict(network: nn.Module, plain: nn.Module, *paths: str) -> Verdict:
    return Forwards(network.eval()).compare(plain.eval(), {"", *paths}, set(), EXACT)


def test_a_part_that_the_forward_does_not_run_is_proved_on_inputs_of_its_own():
    network = _WithHead(nn.Conv2d(4, 4, 3))
    verdict = _verdict(network, copy.deepcopy(network), "head", "stem")
    assert verdict.holds("head")
    assert verdict.holds("stem")
    assert verdict.run == {"stem"}


def test_a_part_that_the_forward_does_not_run_is_not_taken_for_proved_with_the_network():
    network = _WithHead(nn.Conv2d(4, 4, 3))
    plain = copy.deepcopy(network)
    with torch.no_grad():
        plain.head.weight += 0.1
    verdict = _verdict(network, plain, "head")
    assert "" in verdict.proved
    assert not verdict.holds("head")
    assert "head" in verdict.different


def test_a_part_that_nothing_can_be_proved_of_does_not_hold():
    network = _WithHead(_Noisy())
    verdict = _verdict(network, copy.deepcopy(network), "head")
    assert "" in verdict.proved
    assert not verdict.holds("head")
    assert "head" in verdict.unprovable


def test_a_small_image_is_tried_as_well():
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return y if x.shape[-1] > 8 else -y

    class Uncut(Cut):
        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

    network, plain = Cut(), Uncut()
    plain.load_state_dict(network.state_dict())
    assert "" in _verdict(network, plain).different


def test_heads_for_training_are_merged_too():
    layers = [nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]
    network = randomised(_WithHead(nn.Sequential(*layers, nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)))).eval()
    plain = ub.collapse(network)
    assert not [m for m in plain.head.modules() if isinstance(m, nn.BatchNorm2d)]
    x = torch.randn(2, 4, 9, 8)
    torch.testing.assert_close(plain.head(x), network.head(x), rtol=1e-4, atol=1e-5)


class Selects(nn.Module):
    """What it returns, and in which order, is decided by the last digits of what its layers compute."""

    def __init__(self, normed: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.head, self.norm = nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3) if normed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.head(self.stem(x))).flatten(2)
        order = (y * 1e14).frac().sum(1).argsort(1)
        return y.gather(2, order[:, None].expand_as(y))[:, :, :15]


@pytest.mark.parametrize("example", [None, torch.randn(2, 4, 9, 11)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parts_of_a_network_whose_selection_depends_on_rounding_are_proved_alone(dtype, example):
    network = Selects(normed=False).eval().to(dtype)
    x = torch.randn(2, 4, 9, 11, dtype=dtype)
    plain = ub.collapse(network, None if example is None else example.to(dtype))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
    exact = torch.allclose(plain.stem(x), network.stem(x), atol=1e-5)
    assert exact
    assert ub.verify(network.stem, plain.stem, x).ok


def test_what_such_a_network_does_itself_is_left():
    network = Selects(normed=True).eval()
    plain = ub.collapse(network)
    assert [type(m) for m in (plain.stem[1], plain.norm)] == [nn.Identity, nn.BatchNorm2d]
    assert [refusal.path for refusal in ub.report(plain).refusals] == ["norm"]
    assert ub.report(plain).refusals[0].kind == "depends-on-rounding"


def test_verify_says_that_such_an_input_proves_nothing():
    network = Selects(normed=False).eval().double()
    x = torch.randn(2, 4, 9, 11, dtype=torch.float64)
    found = ub.verify(network, ub.collapse(network), x)
    assert not found.ok
    assert "rounding alone" in found.unproved
    assert found.verdict == "can't be proved on this input"
    other = copy.deepcopy(network)
    other.stem[0].weight.data.mul_(2)
    assert not ub.verify(network, other, x).ok  # and another network isn't taken for the same


@pytest.mark.parametrize("seed", range(12))
def test_a_difference_that_rounding_does_not_explain_is_a_difference(seed):
    """Dense outputs have columns that fall, and equal numbers in them, by chance: these are no scores that tie."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(2), nn.Softmax(1)).double()
    other = copy.deepcopy(network)
    other[0].weight.data.mul_(1 + 1e-6)
    found = ub.verify(network, other, torch.randn(2, 4, 9, 9, dtype=torch.float64))
    assert found.verdict == "NOT the same function"


class _Tokens(nn.Module):
    """Rows in some order, ``(B, n, c)``, with a column that is the same in all of them."""

    def __init__(self, flipped: bool) -> None:
        super().__init__()
        self.linear, self.flipped = nn.Linear(4, 5), flipped
        self.linear.weight.data[0] = 0

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.linear(x))
        return y.flip(1) if self.flipped else y


@pytest.mark.parametrize("rows", [5, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_in_another_order_are_a_difference(rows, dtype):
    torch.manual_seed(0)
    network, other = _Tokens(flipped=False).to(dtype), _Tokens(flipped=True).to(dtype)
    other.load_state_dict(network.state_dict())
    found = ub.verify(network, other, torch.randn(2, rows, 4, dtype=dtype))
    assert found.verdict == "NOT the same function"


@pytest.mark.parametrize("example", [None, torch.ones(2, 4, 6, 6)])
def test_what_a_first_run_leaves_on_a_class_is_there_in_the_second(example):
    class Counting(nn.Module):
        count = 0

        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            type(self).count += 1
            y = self.conv(x)
            return self.norm(y) if type(self).count == 1 else y.abs()

    plain = ub.collapse(Counting().eval(), example)
    assert isinstance(plain.norm, nn.BatchNorm2d)
    assert ub.report(plain).refusals[0].kind == "not-repeatable"


@pytest.mark.parametrize("example", [None, torch.ones(2, 4, 6, 6)])
def test_what_is_written_through_data_is_there_in_the_second_run_alone(example):
    """PyTorch doesn't count it, so that a copy which has been run looks like new."""

    class Masking(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
            self.kernel = nn.Parameter(torch.randn(4, 4, 3, 3))
            self.register_buffer("mask", (torch.rand(4, 4, 3, 3) > 0.5).float())

        def forward(self, x):
            y = nn.functional.conv2d(x, self.kernel, padding=1)
            self.kernel.data.mul_(self.mask)
            return self.norm(self.first(x)) + y

    plain = ub.collapse(Masking().eval(), example)
    assert isinstance(plain.norm, nn.BatchNorm2d)
    assert "not-repeatable" in {refusal.kind for refusal in ub.report(plain).refusals}


@pytest.mark.parametrize("default", [None, False, "", 0])
def test_nothing_is_written_with_options_that_nobody_asked_for(default, tmp_path, monkeypatch, capsys):
    """Neither when the forward is read with other options nor when it is run with them."""

    class Logging(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x, log=default):
            y = torch.relu(self.norm(self.conv(x)))
            if log:
                with open("log.txt", "w") as file:
                    file.write(str(tuple(y.shape)))
                torch.save(y, "y.pt")
            return y

    monkeypatch.chdir(tmp_path)
    for example in (None, torch.ones(2, 4, 6, 6)):
        plain = ub.collapse(Logging().eval(), example)
        assert isinstance(plain.norm, nn.BatchNorm2d)
        assert ub.report(plain).refusals[0].kind == "side-effects"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("texts", "merges"), [(("best of 3", "best of 3"), True), (("best of 3", "best of 4"), False)])
def test_words_and_whole_numbers_in_texts_have_to_be_the_same(texts, merges):
    """Only broken numbers in them may round otherwise."""
    from unbranch.convert.prove.differences import difference
    from unbranch.graph.running import observation

    one, other = (observation({"text": text}, (), {}) for text in texts)
    assert (difference(one, other, 1e-6) is None) == merges


def test_numbers_in_texts_are_compared_as_numbers():
    from unbranch.convert.prove.differences import difference
    from unbranch.graph.running import observation

    exact, near, far = (observation(text, (), {}) for text in ("mean 0.5000001", "mean 0.5000002", "mean 0.6"))
    assert difference(near, exact, 1e-6) is None
    assert difference(far, exact, 1e-6) is not None
    assert difference(observation(1.0, (), {}), observation(torch.tensor(1.0, dtype=torch.float64), (), {}), 1e-6)
