"""The value that ``explain`` makes, and the network that it gives."""

from __future__ import annotations

import copy
import io
import pickle

import torch
from rich.console import Console
from torch import nn

import unbranch as ub
from tests.convert.kinds.table import Block, conv_bn
from tests.networks import randomised
from unbranch.blocks import RepVGG


def network() -> nn.Module:
    return randomised(nn.Sequential(Block(), nn.ReLU(), RepVGG(4, 4, 3, padding=1), conv_bn(4, 4))).eval()


def test_it_gives_the_network_that_collapse_does() -> None:
    model, x = network(), torch.randn(2, 4, 6, 6)
    conversion, plain = ub.explain(model, x), ub.collapse(model, x)
    given = conversion.apply()
    assert repr(given) == repr(plain)
    assert all(torch.equal(a, b) for a, b in zip(given.parameters(), plain.parameters(), strict=True))
    assert conversion.report == ub.report(given) == ub.report(plain, "collapse")


def test_each_network_is_a_new_one() -> None:
    conversion, x = ub.explain(network()), torch.randn(1, 4, 6, 6)
    first = conversion.apply()
    expected = first(x)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
    assert torch.equal(conversion.apply()(x), expected)


def test_it_keeps_the_weights_of_its_time() -> None:
    model, x = network(), torch.randn(1, 4, 6, 6)
    expected, conversion = model(x), ub.explain(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.testing.assert_close(conversion.apply()(x), expected, rtol=1e-4, atol=1e-4)


def test_what_the_report_offers_is_read_from_it() -> None:
    conversion = ub.explain(network())
    assert conversion.merges == conversion.report.merges
    assert str(conversion) == str(conversion.report)
    assert "merges" in repr(conversion)
    for same in (copy.copy(conversion), pickle.loads(pickle.dumps(conversion))):
        assert same.report == conversion.report


def test_it_renders_as_its_report_does() -> None:
    conversion = ub.explain(network())
    assert conversion._repr_html_() == conversion.report._repr_html_()
    file = io.StringIO()
    Console(file=file, width=80).print(conversion)
    assert [line.rstrip() for line in file.getvalue().rstrip().splitlines()] == str(conversion.report).splitlines()
