"""What must be handled right, or refused with a reason, and never silently wrong."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import unbranch as ub
from tests.networks import assert_same_function, linear_layers, randomised


class Of(nn.Module):
    """A network from layers and a forward given as a function of it."""

    def __init__(self, forward, **layers: nn.Module) -> None:
        super().__init__()
        self.compute = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor):
        return self.compute(self, x)


def conv(inputs=4, outputs=4, size=3, **options) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, **{"padding": size // 2, "bias": False} | options)


def norm(channels=4, **options) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, **options)


IMAGE = torch.randn(2, 4, 11, 14, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def collapsed(network: nn.Module, x: Tensor = IMAGE) -> nn.Module:
    torch.manual_seed(0)
    network = randomised(network.double())
    plain = ub.collapse(network, x)
    assert_same_function(network, plain, x)
    return plain


def reasons(plain: nn.Module) -> str:
    return "\n".join(r.reason for r in ub.report(plain).refusals)


def kinds(plain: nn.Module) -> set[str]:
    return {r.kind for r in ub.report(plain).refusals}


def layers(plain: nn.Module) -> tuple[int, int]:
    counts = linear_layers(plain)
    return counts["convolution"] + counts["linear"], counts["batch norm"]


# --- merged -----------------------------------------------------------------------------------------

MERGED = {
    "alpha": Of(lambda m, x: torch.add(m.a(x), m.b(x), alpha=2), a=conv(), b=conv(size=1)),
    "difference": Of(lambda m, x: m.a(x) - m.b(x), a=conv(), b=conv(size=1)),
    "in place": Of(lambda m, x: m.a(x).add_(m.b(x)).mul_(3), a=conv(), b=conv(size=1)),
    "sum of a list": Of(lambda m, x: sum([b(x) for b in m.all]), all=nn.ModuleList([conv(), conv(size=1), norm()])),
    "mean of a stack": Of(lambda m, x: torch.stack([m.a(x), m.b(x)]).mean(0), a=conv(), b=conv(size=5)),
    "scaled by a parameter": Of(lambda m, x: m.a(x) * m.scale + x, a=conv(), scale=None),
    "negated and divided": Of(lambda m, x: -(m.a(x) / 3) + 2 * x, a=conv()),
    "pad and convolve": Of(lambda m, x: m.a(F.pad(x, (1, 1, 1, 1))), a=conv(padding=0)),
    "zero pad layer": Of(lambda m, x: m.a(m.pad(x)), a=conv(padding=0), pad=nn.ZeroPad2d(1)),
    "norm before valid": Of(lambda m, x: m.b(m.a(m.n(x))), n=norm(), a=conv(padding=0), b=norm()),
    "dilated": Of(lambda m, x: m.a(x) + m.b(x), a=conv(dilation=2, padding=2), b=conv(size=1)),
    "grouped": Of(lambda m, x: m.n(m.a(x) + m.b(x)) + x, a=conv(groups=2, size=5), b=conv(groups=4), n=norm()),
    "strided": Of(lambda m, x: m.a(x) + m.b(x), a=conv(stride=2), b=conv(size=1, stride=2)),
    "strided slice": Of(lambda m, x: m.a(x) + m.b(x[:, :, ::2, ::2]), a=conv(stride=2), b=conv(size=1)),
    "counted pool": Of(lambda m, x: m.a(x) + m.p(x), a=conv(), p=nn.AvgPool2d(3, 1, 1)),
    "reflect": Of(lambda m, x: m.a(x) + m.b(x), a=conv(padding_mode="reflect"), b=conv(size=1, bias=True)),
    "circular": Of(
        lambda m, x: m.a(x) + m.b(x), a=conv(padding_mode="circular"), b=conv(size=5, padding_mode="circular")
    ),
    "padding same": Of(lambda m, x: m.a(x) + m.b(x), a=conv(size=4, padding="same"), b=conv(size=1)),
    "no affine": Of(lambda m, x: m.n(m.a(x)), a=conv(bias=True), n=norm(affine=False)),
    "functional": Of(lambda m, x: F.conv2d(x, m.a.weight, padding=1) + F.dropout(x, training=m.training), a=conv()),
    "functional norm": Of(
        lambda m, x: F.batch_norm(m.a(x), m.n.running_mean, m.n.running_var, m.n.weight, m.n.bias), a=conv(), n=norm()
    ),
    "weight norm": Of(lambda m, x: m.n(m.a(x)), a=nn.utils.parametrizations.weight_norm(conv()), n=norm()),
    "spectral norm": Of(lambda m, x: m.n(m.a(x)), a=nn.utils.parametrizations.spectral_norm(conv()), n=norm()),
    "transposed": Of(
        lambda m, x: m.n(m.a(x)), a=nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2), n=norm(6)
    ),
    "two transposed": Of(
        lambda m, x: m.a(x) + m.b(x), a=nn.ConvTranspose2d(4, 4, 4, 2, 1), b=nn.ConvTranspose2d(4, 4, 2, 2)
    ),
    "own-bias border": Of(
        lambda m, x: m.b(F.pad(m.a(x) - m.a.bias[:, None, None], (1,) * 4) + m.a.bias[:, None, None]),
        a=conv(size=1, bias=True),
        b=conv(padding=0),
    ),
}
MERGED["scaled by a parameter"].scale = nn.Parameter(torch.randn(1, 4, 1, 1))


@pytest.mark.parametrize("name", MERGED)
def test_becomes_one_layer(name):
    plain = collapsed(MERGED[name])
    assert layers(plain) == (1, 0), f"{plain}\n{ub.report(plain, 'collapse')}"


@pytest.mark.parametrize(
    ("network", "x"),
    [
        (nn.Sequential(nn.Linear(5, 7, bias=False), nn.BatchNorm1d(7)), torch.randn(3, 5)),
        (nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 7)), torch.randn(3, 5)),
        (nn.Sequential(nn.Linear(5, 9), nn.Dropout(), nn.Linear(9, 4)), torch.randn(2, 3, 5)),
        (nn.Sequential(nn.Conv1d(4, 6, 3, padding=1), nn.BatchNorm1d(6)), torch.randn(2, 4, 9)),
        (nn.Sequential(nn.BatchNorm1d(4), nn.Conv1d(4, 6, 3)), torch.randn(2, 4, 9)),
        (nn.Sequential(nn.Conv3d(4, 6, (1, 3, 2), padding=1), nn.BatchNorm3d(6)), torch.randn(2, 4, 5, 6, 7)),
        (nn.Sequential(nn.Conv2d(4, 6, 3), nn.SyncBatchNorm(6)), torch.randn(2, 4, 5, 6)),
    ],
    ids=["linear-norm", "norm-linear", "linear-linear", "1d", "norm-1d", "3d", "sync"],
)
def test_other_dimensions(network, x):
    assert layers(collapsed(network, x.double())) == (1, 0)


def test_linear_bottlenecks_stay():
    """16 → 2 → 16 merged would cost 256 instead of 64."""
    network = nn.Sequential(nn.Conv2d(16, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 16, 1), nn.BatchNorm2d(16))
    plain = collapsed(network, torch.randn(1, 16, 8, 9, dtype=torch.float64))
    assert layers(plain) == (2, 0)
    assert ub.report(plain).kept


def test_a_lone_norm_stays_a_norm():
    plain = collapsed(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU()))
    assert layers(plain) == (0, 1)


def test_an_identity_norm_beside_an_activation_is_not_made_a_convolution():
    plain = collapsed(Of(lambda m, x: m.n(x) + F.relu(m.k(x)), n=norm(), k=norm()))
    assert layers(plain) == (0, 2)


# --- refused, with a reason ---------------------------------------------------------------------------

REFUSED = {
    "zero padding after a bias": (Of(lambda m, x: m.a(m.n(x)), n=norm(), a=conv()), (1, 1)),
    "statistics exist only in training": (
        Of(lambda m, x: m.n(m.a(x)), a=conv(), n=norm(track_running_stats=False)),
        (1, 1),
    ),
    "doesn't count its padding": (
        Of(lambda m, x: m.a(x) + m.p(x), a=conv(), p=nn.AvgPool2d(3, 1, 1, count_include_pad=False)),
        (1, 0),
    ),
    "ceil_mode": (Of(lambda m, x: m.p(m.a(x)), a=conv(size=1), p=nn.AvgPool2d(2, ceil_mode=True)), (1, 0)),
    "broadcasts over channels": (Of(lambda m, x: m.a(x) + m.b(x), a=conv(), b=conv(outputs=1)), (2, 0)),
    "different padding modes": (
        Of(lambda m, x: m.a(x) + m.b(x), a=conv(padding_mode="reflect"), b=conv()),
        (2, 0),
    ),
}
# reasons of other kinds than that a merge wouldn't be exact
REFUSED_FOR_ITS_CODE = {
    "used-repeatedly": (Of(lambda m, x: m.n(m.a(x)) + F.relu(m.a(F.relu(x))), a=conv(), n=norm()), (1, 1)),
    "in-place": (Of(lambda m, x: (lambda y: F.relu_(y) + m.n(y))(m.a(x)), a=conv(), n=norm()), (1, 1)),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refuses_with_a_reason(reason):
    network, expected = REFUSED[reason]
    plain = collapsed(network)
    assert layers(plain) == expected
    assert reason in reasons(plain)
    assert kinds(plain) == {"not-exact"}
    with pytest.raises(ub.CollapseError, match=reason):
        ub.collapse(network, IMAGE, strict=True)


@pytest.mark.parametrize("kind", REFUSED_FOR_ITS_CODE)
def test_refuses_with_a_reason_of_its_kind(kind):
    network, expected = REFUSED_FOR_ITS_CODE[kind]
    plain = collapsed(network)
    assert layers(plain) == expected
    assert kind in kinds(plain)
    with pytest.raises(ub.CollapseError):
        ub.collapse(network, IMAGE, strict=True)


def test_one_convolution_feeding_two_norms_keeps_the_convolution():
    """Fusing either norm into it would change what the other reads; two convolutions would cost more."""

    def forward(m, x):
        y = m.a(x)
        return F.relu(m.n(y)) + F.relu(m.k(y))

    network = Of(forward, a=conv(), n=norm(), k=norm())
    assert layers(collapsed(network)) == (1, 2)


def test_shared_weights_stay_shared():
    network = nn.Sequential(conv(), norm(), nn.ReLU(), conv(), norm())
    network[3].weight = network[0].weight
    plain = collapsed(network)
    assert plain[3].weight is plain[0].weight
    assert kinds(plain) == {"shared-weights"}


def test_a_block_used_twice_is_converted_once():
    block = nn.Sequential(conv(), norm(), nn.ReLU())
    plain = collapsed(Of(lambda m, x: m.block(m.block(x)), block=block))
    assert layers(plain) == (1, 0)


def test_hooks_see_what_they_saw():
    network = randomised(nn.Sequential(conv(), norm(), nn.ReLU(), nn.Sequential(conv(), norm())).double())
    seen: list[Tensor] = []
    network[0].register_forward_hook(lambda m, i, o: seen.append(o))
    network[3].register_forward_hook(lambda m, i, o: seen.append(o))
    network(IMAGE)
    plain = ub.collapse(network)
    plain(IMAGE)
    assert len(seen) == 4
    assert torch.allclose(seen[0], seen[2])
    assert torch.allclose(seen[1], seen[3])
    assert kinds(plain) == {"hooked"}
    assert layers(plain) == (2, 1)


def test_padding_by_item_assignment_is_read():
    class Padded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out = x.new_zeros(x.shape[0], x.shape[1], x.shape[2] + 2, x.shape[3] + 2)
            out[:, :, 1:-1, 1:-1] = x
            return out

    network = nn.Sequential(conv(size=1), Padded(), conv(padding=0), norm())
    assert layers(collapsed(network)) == (1, 0)


def test_a_layer_without_a_rule_is_left_alone_or_taught():
    class Padded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.constant_pad_nd(x, (1, 1, 1, 1))

    network = nn.Sequential(conv(size=1), Padded(), conv(padding=0), norm())
    plain = collapsed(network)
    assert layers(plain) == (2, 0)
    ub.register_rule(Padded)(lambda module, x: x.padded([1, 1], [1, 1]))
    assert layers(collapsed(network)) == (1, 0)


def test_control_flow_on_shapes_is_left_alone():
    def forward(m, x):
        y = m.a(x)
        return m.n(y) if x.shape[-1] > 12 else y

    network = Of(forward, a=conv(), n=norm())
    plain = collapsed(network)
    assert layers(plain) == (1, 1)
    small = IMAGE[..., :10]
    assert torch.allclose(plain(small), network(small))


def test_optional_arguments_keep_their_default():
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.n = conv(), norm()

        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            y = self.n(self.a(x))
            return y if mask is None else y * mask

    plain = collapsed(Masked())
    assert layers(plain) == (1, 0)
    assert plain(IMAGE, torch.zeros(1, dtype=torch.float64)).abs().max() == 0


def test_channel_shuffle_is_opaque():
    def forward(m, x):
        y = m.n(m.a(x))
        n, c, h, w = y.shape
        return m.b(y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))

    assert layers(collapsed(Of(forward, a=conv(groups=2), n=norm(), b=conv(groups=2)))) == (2, 0)


def test_several_inputs_and_outputs():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.n, self.k = conv(), conv(), norm(), norm()

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"sum": self.n(self.a(x)) + self.k(self.b(y)), "x": x}

    torch.manual_seed(0)
    network = randomised(Two().double())
    plain = ub.collapse(network, (IMAGE, IMAGE.flip(2)))
    assert layers(plain) == (2, 0)
    assert_same_function(network, plain, (IMAGE, IMAGE.flip(2)))


def test_float16_statistics_from_training_mode():
    """Conversion uses running statistics whatever the mode, and computes in float64 whatever the dtype."""
    network = randomised(nn.Sequential(conv(), norm()).half())
    evaluated = network(IMAGE.half())
    plain = ub.collapse(network.train())
    assert (plain.eval()(IMAGE.half()) - evaluated).abs().max() <= 4e-3 * evaluated.abs().max()


def test_weights_that_are_not_finite_are_not_merged():
    network = randomised(nn.Sequential(conv(), norm()).double())
    with torch.no_grad():
        network[0].weight[0, 0, 0, 0] = float("nan")
    plain = ub.collapse(network)
    assert layers(plain) == (1, 1)


def test_users_layers_can_be_taught():
    class Gain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log = nn.Parameter(torch.linspace(-1, 1, 4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[j] for j in range(x.shape[0])]) * self.log.exp()[:, None, None]  # not traceable

    network = nn.Sequential(conv(), Gain())
    assert not ub.report(collapsed(network)).merges
    ub.register_rule(Gain, layer_input=lambda m: (4, 2, 1))(lambda m, x: x.scaled(m.log.exp()))
    plain = collapsed(network)
    assert layers(plain) == (1, 0)
    assert isinstance(plain[1], nn.Identity)


def test_verify_names_the_first_module_that_differs():
    network = randomised(nn.Sequential(conv(), nn.ReLU(), conv(), nn.ReLU()).double())
    other = randomised(nn.Sequential(conv(), nn.ReLU(), conv(), nn.ReLU()).double())
    other.load_state_dict(network.state_dict())
    with torch.no_grad():
        other[2].weight[0, 0, 0, 0] += 1e-6
    check = ub.verify(network, other, IMAGE)
    assert not check.ok
    assert check.first_difference == "2"
    assert ub.verify(network, network, IMAGE).max_rel == 0


def test_verify_reports_the_noise_floor():
    network = randomised(nn.Sequential(conv(), norm(), nn.ReLU(), conv(), norm()))
    check = ub.verify(network, ub.collapse(network), IMAGE.float())
    assert 0 < check.noise_floor < 1e-5
    assert check.ok
    assert check.native_rel <= 4 * check.noise_floor


@pytest.mark.slow
def test_a_merge_may_start_outside_the_module_it_ends_in():
    """timm's own conversion leaves one: RepViT's third convolution merges with the second, whose output stays."""
    timm = pytest.importorskip("timm")
    converted = timm.utils.reparameterize_model(randomised(timm.create_model("repvit_m1_0"))).double()
    plain = ub.collapse(converted)
    assert any(m.path == "stages.1.downsample" for m in ub.report(plain).merges)
    assert sum(layers(plain)) <= sum(layers(converted))
    assert_same_function(converted, plain, torch.randn(1, 3, 64, 64, dtype=torch.float64))


def test_networks_that_cast_are_verified():
    def forward(m, x):
        gate = (x > 0).float().mean((2, 3), keepdim=True) + torch.arange(4).float()[:, None, None]
        return m.n(m.a(x)) * gate.to(x.dtype)

    assert layers(collapsed(Of(forward, a=conv(), n=norm()))) == (1, 0)


def test_lists_of_tensors_as_arguments():
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.n = conv(8), conv(8, size=1), norm()

        def forward(self, parts: list[Tensor], scale: float = 1.0) -> Tensor:
            x = torch.cat(parts, 1) * scale
            return F.relu(self.n(self.a(x)) + self.b(x))

    network = Of(lambda m, x: m.joined([F.relu(x), F.gelu(x)], scale=2.0), joined=Joined())
    assert layers(collapsed(network)) == (1, 0)


def test_a_module_that_cannot_be_traced_leaves_the_rest_traceable():
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(conv(), norm())

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x)
            return y if float(x.sum()) > 0 else -y

    network = nn.Sequential(nn.Sequential(conv(), norm()), nn.Sequential(Counted(), nn.ReLU()), conv(), norm())
    plain = collapsed(network)
    assert layers(plain) == (3, 0)
    assert not ub.report(plain).refusals  # nothing is lost by it


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weight_norm_in_float32_in_both_its_forms():
    old = nn.Sequential(nn.utils.weight_norm(conv()), norm())
    new = nn.Sequential(nn.utils.parametrizations.weight_norm(conv()), norm())
    for network in (old, new):
        network(IMAGE.float())
        plain = ub.collapse(randomised(network), IMAGE.float())
        assert layers(plain) == (1, 0)


def test_layers_that_are_not_initialised_are_refused():
    plain = ub.collapse(nn.Sequential(nn.LazyConv2d(4, 3), nn.BatchNorm2d(4)))
    assert not ub.report(plain).merges
    assert ub.report(plain).refusals
    assert plain.eval()(torch.randn(1, 3, 5, 5)).shape == (1, 4, 3, 3)


def test_blocks_collapse_on_the_meta_device():
    from unbranch.blocks import ACB, DBB, RepVGG

    for block in (ACB, DBB, RepVGG):
        assert isinstance(ub.collapse(block(8, 8, 3, padding=1).to("meta")), nn.Conv2d)


@pytest.mark.parametrize(
    "activation", [nn.LeakyReLU(0.3, inplace=True), nn.ReLU6(inplace=True), nn.LeakyReLU(1.0, True)]
)
def test_an_activation_in_place_changes_what_others_read(activation):
    """The first value is changed before it is read again, unless the activation is the identity."""

    def forward(m, x):
        y = m.a(x)
        z = m.act(y)
        return m.b(y) + m.c(z)

    collapsed(Of(forward, a=conv(), act=activation, b=norm(), c=norm()))


@pytest.mark.parametrize("watched", ["a", "a.0", "norm"])
def test_what_a_hook_sees_stays_where_a_norm_could_move(watched):
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Sequential(conv(), nn.Identity()), nn.Sequential(conv())
            self.norm = nn.BatchNorm2d(8)

        def forward(self, x):
            return torch.relu(self.norm(torch.cat([self.a(x), self.b(torch.relu(x))], 1)))

    network, seen = randomised(Joined()).double().eval(), []
    network.get_submodule(watched).register_forward_hook(lambda _m, args, output: seen.append((*args, output)))
    plain = ub.collapse(network)
    network(IMAGE.double())
    plain(IMAGE.double())
    assert len(seen) == 2
    for ours, theirs in zip(seen[1], seen[0], strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9)


def test_a_part_with_a_hook_inside_isnt_dropped():
    network = Of(lambda m, x: (m.aux(x), m.a(x))[1], a=conv(), aux=nn.Sequential(conv(), nn.ReLU()))
    seen = []
    network.aux[0].register_forward_hook(lambda *_: seen.append(1))
    plain = collapsed(network)
    plain(IMAGE)
    assert seen == [1]


def test_caches_that_hold_no_tensors_are_left_alone():
    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = conv(), norm()

        def forward(self, x):
            return self.norm(self.conv(x)) * answer(x.dim())

    answer(3)
    collapsed(Asks())
    assert answer.cache_info().currsize >= 1
    misses = answer.cache_info().misses
    answer(3)
    assert answer.cache_info().misses == misses


@functools.cache
def answer(rank):
    return float(rank)


class Learned(nn.Module):
    """A factor that is computed from a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.log.exp()[:, None, None]


def learned(other: str, module: Learned, x: ub.Affine) -> ub.Affine:
    return x.scaled(module.log.exp())


RULES = {"function": lambda module, x: learned("", module, x), "partial": functools.partial(learned, "")}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("rule", RULES)
def test_rule_of_a_user_computes_with_parameters_in_float64(rule: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ub.register_rule(Learned, layer_input=lambda m: (4, 2, 1))(RULES[rule])
    plain = ub.collapse(nn.Sequential(conv(), Learned()).to(dtype).eval())
    assert isinstance(plain[1], nn.Identity)
