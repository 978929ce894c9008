"""What ``verify`` answers, and that it leaves both networks as they were."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unbranch as ub
from unbranch.convert.prove.verify import default_tolerance, largest_tolerance


class Returns(nn.Module):
    """Any function of the input, as a module with one weight."""

    def __init__(self, function: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Any:
        return self.function(x, self.weight)


def both(a: Callable[[Tensor, Tensor], Any], b: Callable[[Tensor, Tensor], Any], x: Tensor) -> ub.Verification:
    return ub.verify(Returns(a), Returns(b), x)


def test_kernels_written_into_fresh_tensors_are_compared() -> None:
    class Assembled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            kernel = torch.zeros(4, 4, 3, 3)
            for row in range(4):
                kernel[row] = self.weight[row]
            return torch.conv2d(x, kernel)

    torch.manual_seed(0)
    a, x = Assembled(), torch.randn(1, 4, 6, 7)
    assert ub.verify(a, copy.deepcopy(a), x).ok
    check = ub.verify(a, Assembled(), x)
    assert not check.ok
    assert check.verdict == "NOT the same function"
    assert check.max_rel > 0.1


def noisy(x: Tensor, w: Tensor) -> Tensor:
    return (x * w + 1e5) - 1e5


def test_an_input_whose_noise_is_above_the_cap_proves_nothing() -> None:
    x = torch.randn(2, 8)
    check = both(noisy, noisy, x)
    assert check.noise_floor > largest_tolerance(torch.float32)
    assert check.tolerance == largest_tolerance(torch.float32) == 1e-3
    assert not check.ok
    assert check.unproved is not None
    assert str(check).startswith("can't be proved on this input")
    assert check.to_dict()["verdict"] == "can't be proved on this input"
    assert check.to_dict()["ok"] is False
    assert ub.verify(Returns(noisy), Returns(noisy), x, tolerance=1e-3).ok, "the caller's tolerance decides"


def test_the_tolerance_is_capped() -> None:
    assert default_tolerance(torch.float32, 50.0) == 1e-3
    assert default_tolerance(torch.float32, 1e-5) == 4e-5
    assert default_tolerance(torch.float64, 0.0) == 1e-10


def test_outputs_that_are_not_finite_prove_nothing() -> None:
    assert not both(lambda x, w: x * w / 0 * 0, lambda x, w: x * w / 0 * 0, torch.randn(3)).ok
    one_nan = both(lambda x, w: x * w, lambda x, w: torch.where(x == x.max(), torch.nan, x * w), torch.randn(3))
    assert not one_nan.ok
    masked = lambda x, w: torch.where(x > 0, x * w, -torch.inf)  # noqa: E731
    assert both(masked, masked, torch.randn(9)).ok


def detections(order: list[int], labels: list[int], boxes: Tensor) -> Callable[[Tensor, Tensor], Any]:
    scores = torch.tensor([0.9, 0.7, 0.7, 0.5, 0.3])

    def run(x: Tensor, w: Tensor) -> list[dict[str, Tensor]]:
        rows = torch.tensor(order, dtype=torch.long)
        return [{"boxes": boxes[rows] * w, "labels": torch.tensor(labels)[rows], "scores": scores[rows] * w}]

    return run


BOXES = torch.rand(5, 4, generator=torch.Generator().manual_seed(0)) * 100
LABELS = [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("order", "labels", "same"),
    [
        ([0, 1, 2, 3, 4], LABELS, True),
        ([0, 2, 1, 3, 4], LABELS, True),  # rows 1 and 2 tie
        ([0, 2, 1, 3, 4], [1, 3, 2, 4, 5], True),  # labels of tied rows, exchanged
        ([0, 1, 2, 3], LABELS, True),  # the last row may tie with one left out
        ([0, 1, 2, 3, 4], [9, 2, 3, 4, 5], False),
        ([0, 1, 2, 3, 4], [1, 2, 3, 9, 5], False),
        ([0, 1, 2, 4], LABELS, False),
        ([1, 2, 3, 4], LABELS, False),
        ([], LABELS, False),
    ],
)
def test_detections_are_compared_row_by_row_up_to_ties(order: list[int], labels: list[int], same: bool) -> None:
    check = both(detections([0, 1, 2, 3, 4], LABELS, BOXES), detections(order, labels, BOXES), torch.randn(1))
    assert check.ok == same, str(check)


def test_a_box_that_moved_is_a_difference() -> None:
    moved = BOXES.clone()
    moved[3, 0] += 1
    check = both(detections([0, 1, 2, 3, 4], LABELS, BOXES), detections([0, 2, 1, 3, 4], LABELS, moved), torch.ones(1))
    assert not check.ok
    assert 1e-3 < check.max_rel < 1


def test_top_k_with_ties_and_without() -> None:
    x = torch.tensor([[3.0, 1.0, 2.0, 2.0, 0.5]])
    top = lambda x, w: torch.topk(x * w, 4)  # noqa: E731
    shaken = lambda x, w: torch.topk(x * w + torch.tensor([0, 0, 0, 1e-7, 0]), 4)  # noqa: E731
    assert both(top, shaken, x).ok
    changed = lambda x, w: (torch.topk(x * w, 4)[0], torch.tensor([[4, 2, 3, 1]]))  # noqa: E731
    assert not both(top, changed, x).ok


def test_largest_entries_that_tie() -> None:
    x = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
    classes = lambda x, w: (x * w, (x * w).argmax(1))  # noqa: E731
    other = lambda x, w: (x * w, torch.tensor([1, 2]))  # noqa: E731
    wrong = lambda x, w: (x * w, torch.tensor([0, 1]))  # noqa: E731
    assert both(classes, other, x).ok
    assert not both(classes, wrong, x).ok


def test_large_integers_are_compared_exactly() -> None:
    assert not both(
        lambda x, w: torch.arange(10**6, 10**6 + 3), lambda x, w: torch.arange(10**6, 10**6 + 3) + 1, torch.ones(1)
    ).ok


def test_rows_of_logits_that_differ_are_no_ties() -> None:
    """Columns of two rows fall in order by accident."""
    torch.manual_seed(0)
    x = torch.randn(2, 10)
    last = torch.tensor([[0.0], [0.1]])
    assert not both(lambda x, w: x * w, lambda x, w: x * w + last, x).ok


@pytest.mark.slow
def test_ssdlite_is_compared() -> None:
    detection = pytest.importorskip("torchvision").models.detection
    torch.manual_seed(0)
    net = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
    other = copy.deepcopy(net)
    with torch.no_grad():
        for weight in other.parameters():  # as rounding merged weights does
            weight.mul_(1 + 1e-7 * torch.randn_like(weight))
    image = torch.rand(3, 320, 320)
    check = ub.verify(net, other, [image])
    assert check.ok, str(check)
    with torch.no_grad():
        for name, weight in other.named_parameters():
            if name.startswith("head") and name.endswith("bias"):
                weight.add_(torch.randn_like(weight))
    assert not ub.verify(net, other, [image]).ok


@functools.lru_cache
def table(size: int) -> Tensor:
    return torch.arange(size) / torch.full((), 7.0)


class Stateful(nn.Module):
    """Counts, masks its weight, keeps its last input and uses a table that is cached for the process."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        self.calls += 1
        self.weight.data *= 0.5
        self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
        self.last = x
        if x.shape[0] == 3:
            raise ValueError("three\nare a crowd")
        return x * self.weight + table(6) + 0 * torch.rand(6)


@pytest.mark.parametrize("rows", [2, 3])
def test_both_networks_caches_and_random_numbers_are_left(rows: int) -> None:
    table.cache_clear()
    network = Stateful()
    other = copy.deepcopy(network)
    before = {k: (v, v.clone(), v._version) for k, v in network.state_dict(keep_vars=True).items()}
    x = torch.randn(rows, 6)
    kept, state = x.clone(), torch.get_rng_state()
    if rows == 3:
        with pytest.raises(ub.InputError, match=r"^the first network, Stateful, .* ValueError: three$"):
            ub.verify(network, other, x)
    else:
        assert ub.verify(network, other, x).ok
        assert table(6).dtype == torch.float32
    for name, value in network.state_dict(keep_vars=True).items():
        same, then, version = before[name]
        assert value is same
        assert torch.equal(value, then)
        assert value._version == version
    assert not hasattr(network, "last")
    assert torch.equal(x, kept)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "example",
    [
        torch.randn(3),
        torch.randn(1, 5, 8, 8),
        torch.randint(0, 9, (1, 4, 8, 8)),
        torch.randn(1, 4, 8, 8, device="meta"),
        [torch.randn(4, 8, 8)],
        (torch.randn(1, 4, 8, 8), 3),
        None,
        "image",
        [],
    ],
    ids=["rank", "channels", "dtype", "device", "list", "arguments", "None", "text", "empty"],
)
def test_an_example_that_does_not_fit_is_one_sentence(example: Any) -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)).eval()
    with pytest.raises(ub.InputError, match="`example_input`") as caught:
        ub.verify(network, copy.deepcopy(network), example)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_the_network_that_fails_is_named() -> None:
    x = torch.randn(1, 4, 8, 8)
    with pytest.raises(ub.InputError, match=r"the second network, Conv2d, .*\(1, 4, 8, 8\) on cpu"):
        ub.verify(nn.Conv2d(4, 4, 1), nn.Conv2d(5, 4, 1), x)


def test_different_shapes_are_an_input_error() -> None:
    with pytest.raises(ub.InputError, match="different shapes"):
        ub.verify(nn.Linear(4, 5), nn.Linear(4, 6), torch.randn(2, 4))


def test_inference_mode() -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.BatchNorm2d(4)).eval()
    with torch.inference_mode():
        assert ub.verify(network, network, torch.randn(1, 4, 8, 9)).ok
        inside = nn.Conv2d(4, 4, 3)
    assert ub.verify(inside, inside, torch.randn(1, 4, 8, 9)).ok


class _Holder:
    def __init__(self, value: Any) -> None:
        self.value = value


Pair = tuple[Callable[[Tensor, Tensor], Any], Callable[[Tensor, Tensor], Any]]
DIFFERENT: dict[str, Pair] = {
    "numbers": (lambda x, w: (x * w, 3), lambda x, w: (x * w, 4)),
    "words": (lambda x, w: (x * w, "cat"), lambda x, w: (x * w, "dog")),
    "lists of numbers": (lambda x, w: (x * w, x.tolist()), lambda x, w: (x * w, (x + 1).tolist())),
    "objects": (lambda x, w: (x * w, _Holder(x)), lambda x, w: (x * w, _Holder(x + 5))),
    "values of keys": (lambda x, w: {"a": x * w, "b": x + 1}, lambda x, w: {"b": x * w, "a": x + 1}),
}
OF_ANOTHER_STRUCTURE: dict[str, Pair] = {
    "keys": (lambda x, w: {"a": x * w, "b": x}, lambda x, w: {"c": x * w, "d": x}),
    "nesting": (lambda x, w: (x * w, (x,)), lambda x, w: [x * w, x]),
    "None": (lambda x, w: (x * w, None), lambda x, w: (None, x * w)),
    "one more": (lambda x, w: (x * w,), lambda x, w: (x * w, x)),
    "kinds of numbers": (lambda x, w: (x * w, x.argmax(1)), lambda x, w: (x * w, x.argmax(1).float())),
}


def assert_each_equals_itself(pair: Pair, x: Tensor) -> None:
    assert all(both(one, one, x).ok for one in pair)


@pytest.mark.parametrize("name", DIFFERENT)
def test_whatever_an_output_consists_of_is_compared(name: str) -> None:
    x = torch.randn(3, 4)
    assert not both(*DIFFERENT[name], x).ok
    assert_each_equals_itself(DIFFERENT[name], x)


@pytest.mark.parametrize("name", OF_ANOTHER_STRUCTURE)
def test_outputs_of_different_structures_are_an_input_error(name: str) -> None:
    x = torch.randn(3, 4)
    with pytest.raises(ub.InputError, match="different"):
        both(*OF_ANOTHER_STRUCTURE[name], x)
    assert_each_equals_itself(OF_ANOTHER_STRUCTURE[name], x)


def test_the_order_of_a_dictionary_is_none() -> None:
    assert both(lambda x, w: {"a": x * w, "b": x + 1}, lambda x, w: {"b": x + 1, "a": x * w}, torch.randn(3, 4)).ok


PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "@": lambda x, w: x @ w, "matmul": torch.matmul, "einsum": lambda x, w: torch.einsum("bnc,cd->bnd", x, w),
    "bmm": lambda x, w: torch.bmm(x, w.expand(len(x), -1, -1)), "linear": lambda x, w: nn.functional.linear(x, w.T),
    "sum": lambda x, w: (x[..., None] * w).sum(-2), "norm": lambda x, w: nn.functional.layer_norm(x, x.shape[-1:]) @ w,
}  # fmt: skip


class _Rows(nn.Module):
    """Tokens with a constant column, forwards or backwards."""

    def __init__(self, product: Callable[[Tensor, Tensor], Tensor], flipped: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.product, self.flipped = nn.Parameter(torch.randn(4, 3)), product, flipped

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x, self.weight)
        y = torch.cat([y.new_zeros(*y.shape[:2], 1), y], -1)
        return y.flip(1) if self.flipped else y


@pytest.mark.parametrize("tolerance", [None, 1e-9])
@pytest.mark.parametrize("product", PRODUCTS)
def test_tokens_in_another_order_are_not_the_same(product: str, tolerance: float | None) -> None:
    first, second = _Rows(PRODUCTS[product], flipped=False), _Rows(PRODUCTS[product], flipped=True)
    assert ub.verify(first, second, torch.randn(1, 6, 4), tolerance=tolerance).verdict == "NOT the same function"
