"""Cross-layer equalisation: the same network with ranges of channels that are easier to quantise."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from unbranch.convert.faults import as_errors
from unbranch.convert.prove.inputs import as_inputs
from unbranch.convert.rewrite.rewrite import copied
from unbranch.errors import DifferenceError, InputError
from unbranch.graph.eval_view import has_hooks
from unbranch.graph.global_state import without_side_effects
from unbranch.provenance import record_report
from unbranch.quantize.balance import Cluster, Kernel, balance, clusters_of
from unbranch.quantize.calibration import Batch, batches_of, observe_inputs
from unbranch.quantize.labels import distinct
from unbranch.quantize.report import EqualizationReport, EqualizedLayer, SkippedScale
from unbranch.quantize.scales import NetworkScales, read_scales, with_factors
from unbranch.quantize.trials import Trials, readable
from unbranch.render import Reporting

EQUALIZE = "equalize"  # kind of the report
_HOOKED = "a hook sees it"
_ASKED = "`fixed` names the module"
_UNPROVED = "the scaled network differs: "


class Equalization(Reporting):
    """What ``equalize`` makes of a network: a report to read first, and the equalised network.

    Made by ``explain_equalization``.

    Attributes:
        report: kernels that are scaled, and channels that can't be, with the reason.

    Example:
        >>> import torch, unbranch as ub
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
        >>> equalization = ub.quantize.explain_equalization(net, torch.randn(1, 3, 8, 8))
        >>> [layer.path for layer in equalization.report.layers]
        ['0.weight', '2.weight']
        >>> type(equalization.apply()).__name__
        'Sequential'
    """

    def __init__(self, report: EqualizationReport, network: nn.Module) -> None:
        self.report, self._network = report, network

    def apply(self) -> nn.Module:
        """Return the equalised network, with the weights of the time of the analysis; a new one each time."""
        return copied(self._network, {})


def equalize(
    model: nn.Module, example_input: Any, *, data: Any = None, fixed: Iterable[str] = (), power_of_two: bool = False
) -> nn.Module:
    """Return a copy of a network that computes the same function with equalised ranges of channels.

    Every channel between two layers is scaled by some s > 0 in the layer that computes it and by 1/s in the layers that
    read it, wherever the functions in between are positively homogeneous: ReLU, LeakyReLU, PReLU, pooling, sums of
    values with equal scales, and everything that only moves numbers. The scales make the ranges of a channel's row and
    column equal, as far as the noise that quantising is expected to cause falls. The result is what
    ``explain_equalization(model, example_input).apply()`` returns.

    Args:
        model: any network, collapsed or not; it isn't changed. The functions are equal in evaluation mode.
        example_input: a tensor, or a tuple of the forward's arguments.
        data: calibration data for the noise that is expected: a tensor (one batch), or an iterable of tensors and
            tuples, such as a ``DataLoader``. By default the example, which should then be a real one.
        fixed: paths of modules whose inputs and outputs keep their values, for example because they are read elsewhere.
        power_of_two: round scales to powers of two, for which scaled numbers are rounded as the unscaled ones.

    Returns:
        The network; ``unbranch.report`` reads its ``EqualizationReport``.

    Raises:
        InputError: if ``model`` isn't a module or doesn't run on ``example_input``, or ``fixed`` names no module.

    Source:
        Nagel, van Baalen, Blankevoort, Welling: "Data-Free Quantization Through Weight Equalization and Bias
        Correction", ICCV 2019, https://arxiv.org/abs/1906.04721, section 4.1.
    """
    return explain_equalization(model, example_input, data=data, fixed=fixed, power_of_two=power_of_two)._network


def explain_equalization(
    model: nn.Module, example_input: Any, *, data: Any = None, fixed: Iterable[str] = (), power_of_two: bool = False
) -> Equalization:
    """Return what ``equalize`` would do to a network: the same analysis and proof.

    The network is read by running it, on the example and on inputs of other sizes that it accepts, and the result is
    compared with it on these inputs in float64. A network that can't be compared is returned unscaled, and the report
    has the reason.

    Args and errors as for ``equalize``.

    Returns:
        The equalization: its ``report``, which prints as a table, and ``apply()``, which returns the network.
    """
    network, inputs = readable(model), as_inputs(example_input)
    observed = _observed(network, fixed)
    batches = [inputs] if data is None else batches_of(network, data)
    with as_errors(), without_side_effects(network):
        try:
            trials = Trials(network, inputs)
        except DifferenceError as error:
            return _finished(EqualizationReport((), (), refusal=str(error)), copied(network, {}))
        return _equalized(trials, batches, read_scales(trials, observed), power_of_two)


def _observed(network: nn.Module, fixed: Iterable[str]) -> dict[str, str]:
    modules = dict(network.named_modules())
    paths = [fixed] if isinstance(fixed, str) else list(fixed)
    if unknown := [path for path in paths if path not in modules]:
        raise InputError(f"`fixed` must have paths of modules of {type(network).__name__}, got {unknown[0]!r}")
    return {path: _HOOKED for path, m in modules.items() if has_hooks(m)} | dict.fromkeys(paths, _ASKED)


def _equalized(trials: Trials, batches: list[Batch], found: NetworkScales, power_of_two: bool) -> Equalization:
    kernels = found.kernels(observe_inputs(trials.network, batches).layers)
    clusters = clusters_of(kernels, found.free)
    balanced = balance(kernels, clusters, len(found.roots))
    if power_of_two:
        balanced = _rounded(balanced)
    scales, refused = _proved(trials, found, balanced, clusters, kernels)
    factors = found.factors(scales)
    result = with_factors(trials.network, factors)
    reason = trials.fails_rounded(result)
    if reason is not None:
        scales, factors, result = torch.ones_like(scales), {}, copied(trials.network, {})
    report = EqualizationReport(
        tuple(_layers(kernels, found, factors, scales)),
        (*refused, *found.skipped()),
        (float(scales.min()), float(scales.max())),
        bool((scales == _rounded(scales)).all()),
        tuple(tuple(v.shape) for given in trials.given for v in given.args if isinstance(v, Tensor)),
        reason or "",
    )
    return _finished(report, result)


def _finished(report: EqualizationReport, result: nn.Module) -> Equalization:
    record_report(result, EQUALIZE, report)
    return Equalization(report, result)


def _proved(
    trials: Trials, found: NetworkScales, scales: Tensor, clusters: list[Cluster], kernels: dict[str, Kernel]
) -> tuple[Tensor, list[SkippedScale]]:
    """Return scales with which the network is the same; clusters that change it, alone or together, get none."""
    for trial in (scales, _rounded(scales)):  # powers of two, if the outputs select something and depend on rounding
        if _difference(trials, found, trial) is None:
            return trial, []
    kept, refused = torch.ones_like(scales), []
    for cluster in clusters:
        trial = kept.clone()
        trial[cluster.scales] = scales[cluster.scales]
        why = _difference(trials, found, trial)
        if why is None:
            kept = trial
        else:
            name, side = cluster.uses[0]
            channels = "input" if side == "before" else "output"
            share = len(cluster.scales) / len(distinct(kernels[name].index(side)))
            refused.append(SkippedScale(name, channels, share, _UNPROVED + why))
    return kept, refused


def _rounded(scales: Tensor) -> Tensor:
    """Return the nearest powers of two."""
    return scales.log2().round().exp2()


def _difference(trials: Trials, found: NetworkScales, scales: Tensor) -> str | None:
    factors = found.factors(scales)
    return trials.differs(with_factors(trials.network, factors, exact=True)) if factors else None


def _layers(
    kernels: dict[str, Kernel], found: NetworkScales, factors: dict[str, Tensor], scales: Tensor
) -> Iterable[EqualizedLayer]:
    free, ones = found.free, torch.ones_like(scales)
    for name, kernel in kernels.items():
        if name in factors:
            behind, before = (int(free[distinct(side)].sum()) for side in (kernel.behind, kernel.before))
            yield EqualizedLayer(name, behind, before, (kernel.precision(ones), kernel.precision(scales)))
