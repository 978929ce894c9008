"""``expand``: replace the convolutions of a network by blocks with branches."""

from __future__ import annotations

import copy
import difflib
import warnings
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch import nn

from unbranch.convert import verify
from unbranch.convert.rewrite.rewrite import copied
from unbranch.errors import CollapseError, InputError
from unbranch.expansion.make_block import BLOCKS, STARTS, make_block, remainder_of, skip_reason
from unbranch.expansion.report import ExpansionReport
from unbranch.expansion.sites import ConvSite, convolutions, find_sites, is_norm
from unbranch.graph.eval_view import deep_copied, unwrap_model
from unbranch.provenance import record_report, record_transform, register_replay
from unbranch.render import Reporting

Where: TypeAlias = str | type[nn.Module] | Callable[[str, nn.Module], bool]
BlockFactory: TypeAlias = Callable[..., nn.Module]
EXPAND = "expand"  # kind of the transform


class Expansion(Reporting):
    """What ``expand`` makes of a network: a report to read first, and the expanded network.

    Made by ``explain_expansion``. The added branches are initialised once, so every network from ``apply`` starts with
    the same weights.

    Attributes:
        report: convolutions that are replaced and skipped, and the parameters before and after.

    Example:
        >>> import unbranch as ub
        >>> expansion = ub.explain_expansion(nn.Conv2d(4, 4, 3, padding=1), "acb")
        >>> expansion.report.summary
        'Replaced 1 convolution with an ACB block; skipped 0'
        >>> type(expansion.apply()).__name__
        'ACB'
    """

    def __init__(self, report: ExpansionReport, network: nn.Module) -> None:
        self.report, self._network = report, network

    def apply(self) -> nn.Module:
        """Return the expanded network, with the weights of the time of the analysis; a new one each time."""
        return deep_copied(self._network, {})


def expand(
    model: nn.Module, block: str | BlockFactory, where: Where | Iterable[Where] | None = None, *, start: str = "zero",
    example_input: Any = None, **options: Any,
) -> nn.Module:  # fmt: skip
    """Return a copy of a network with blocks in place of convolutions, which computes the same function.

    The kernel of each convolution goes into the main branch of its block, and so does the batch norm that is its only
    reader; without such a norm, the main branch has none. Added branches start with γ = 0, which changes nothing in
    training either; or, with ``start="compensated"``, with the weights that they are initialised with, which are
    subtracted from the main kernel (equal in evaluation; in training their norms normalise by the batch). ``collapse``
    returns to the structure and the cost of the collapsed original, except that a convolution with neither bias nor
    norm may get a bias.

    Args:
        model: any network, in any mode; it isn't changed.
        block: a name in ``BLOCKS``, such as ``"acb"``, ``"dbb"``, ``"repvgg"``, ``"replk"`` (a small kernel beside a
            large one) or ``"compactor"``; or a subclass of ``BranchedConv``, or a function with its signature.
        where: convolutions to replace: a pattern of paths (``"layer3.*"``), a class, a predicate of path and module,
            or several of them. By default, all for which the block is meant: those with more than one tap.
        start: how added branches start, ``"zero"`` or ``"compensated"``.
        example_input: a tensor, or a tuple of the forward's arguments, on which the result is compared with ``model``.
        options: further arguments of the block: ``small_kernel=3``, ``internal_channels=…``.

    Returns:
        The network; ``unbranch.report`` reads its ``ExpansionReport``.

    Raises:
        InputError: for an unknown block or option, or if the block can replace no convolution.
        CollapseError: if the result differs from ``model`` on ``example_input``.

    Example:
        >>> import unbranch as ub
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
        >>> print(ub.report(ub.expand(net, "repvgg")))
        Replaced 1 convolution with a RepVGG block; skipped 1
                    before  after
        parameters     276    316
        <BLANKLINE>
        replaced
        convolution  norm
        0            1
        <BLANKLINE>
        skipped
        convolution  reason
        3            its kernel has one tap
    """
    return _expansion_of(model, block, where, start, example_input, options)._network


def explain_expansion(
    model: nn.Module, block: str | BlockFactory, where: Where | Iterable[Where] | None = None, *, start: str = "zero",
    example_input: Any = None, **options: Any,
) -> Expansion:  # fmt: skip
    """Return what ``expand`` would do to a network: the same analysis and checks.

    Args and errors as for ``expand``.

    Returns:
        The expansion: its ``report``, which prints as a table, and ``apply()``, which returns the network.
    """
    return _expansion_of(model, block, where, start, example_input, options)


def _expansion_of(
    model: nn.Module, block: str | BlockFactory, where: Where | Iterable[Where] | None, start: str, example_input: Any,
    options: dict[str, Any],
) -> Expansion:  # fmt: skip
    network, start = unwrap_model(model), _known_start(start)
    name, kind = _find_block(block)
    sites, reasons = _choose_sites(network, name, where, options)
    result, refused = _replace(network, kind, sites, start, options)
    replaced, skipped = tuple(site for site in sites if site.path not in refused), refused | reasons
    if not replaced:
        path, reason = next(iter(skipped.items()))
        raise InputError(f"{type(network).__name__} has no convolution to replace; {path or 'it'}: {reason}")
    before, after = (sum(p.numel() for p in n.parameters()) for n in (network, result))
    report = ExpansionReport(name, replaced, skipped, before, after, getattr(kind, "__name__", name))
    if example_input is not None:
        _check(network, result, example_input)
    places = [[site.path, site.norm] for site in replaced]
    record_transform(network, result, {"kind": EXPAND, "block": name, "options": options, "places": places})
    record_report(result, EXPAND, report)
    vars(result)["expand_report"] = report  # deprecated, as version 0.1 set it
    return Expansion(report, result)


def _known_start(start: str) -> str:
    if start == "subtracted":
        warnings.warn('`start="subtracted"` is deprecated, use `"compensated"`', DeprecationWarning, stacklevel=4)
        return "compensated"
    if start not in STARTS:
        raise InputError(f"`start` must be one of {', '.join(STARTS)}, got {start!r}")
    return start


def _find_block(block: str | BlockFactory) -> tuple[str, BlockFactory]:
    """Return the name and the class of a block."""
    if not isinstance(block, str) and not callable(block):
        raise InputError(f"`block` must be one of {', '.join(BLOCKS)}, or a class or function, got {block!r}")
    if not isinstance(block, str):
        known = next((name for name, kind in BLOCKS.items() if kind is block), None)
        return known or str(getattr(block, "__name__", block)), block
    if block not in BLOCKS:
        close = difflib.get_close_matches(block.lower(), BLOCKS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise InputError(f"`block` must be one of {', '.join(BLOCKS)}, got {block!r}{hint}")
    return block, BLOCKS[block]


def _choose_sites(
    network: nn.Module, name: str, where: Where | Iterable[Where] | None, options: dict[str, Any]
) -> tuple[list[ConvSite], dict[str, str]]:
    """Return the sites that ``where`` selects, and the reason for each selected convolution that must be skipped."""
    selected = _select(network, where)
    possible, skipped = find_sites(network)
    sites, reasons = [], {}
    for path, conv in selected.items():
        reason = skipped.get(path) or (skip_reason(name, conv, options) if where is None else None)
        if reason is None:
            sites.append(possible[path])
        else:
            reasons[path] = reason
    return sites, reasons


def _select(network: nn.Module, where: Where | Iterable[Where] | None) -> dict[str, Any]:
    """Return the convolutions that ``where`` selects, by path."""
    found = convolutions(network)
    if not found:
        raise InputError(f"{type(network).__name__} has no convolution")
    if where is None:
        return found
    several = not isinstance(where, str | type) and isinstance(where, Iterable)
    parts: list[Any] = list(where) if several else [where]  # type: ignore[arg-type]
    chosen = {path: conv for path, conv in found.items() if any(_matches(p, path, conv) for p in parts)}
    if not chosen:
        some = ", ".join(list(found)[:4])
        raise InputError(f"`where` must select a convolution of {type(network).__name__} ({some}, …), got {where!r}")
    return chosen


def _matches(part: Any, path: str, conv: nn.Module) -> bool:
    if isinstance(part, str):
        return fnmatchcase(path, part)
    if not callable(part):
        raise InputError(f"`where` must be a pattern of paths, a class or a predicate of path and module, got {part!r}")
    return isinstance(conv, part) if isinstance(part, type) else bool(part(path, conv))


def _replace(
    network: nn.Module, kind: BlockFactory, sites: list[ConvSite], start: str | None, options: dict[str, Any]
) -> tuple[nn.Module, dict[str, str]]:
    """Return a copy with blocks at the sites, and the reason for each site that the block can't replace."""
    memo: dict[int, Any] = {}
    refused: dict[str, str] = {}
    for site in sites:
        conv = network.get_submodule(site.path)
        norm = None if site.norm is None else network.get_submodule(site.norm)
        try:
            block = make_block(kind, conv, norm, start=start, options=options, memo=memo)
        except InputError as error:
            refused[site.path] = str(error)
            continue
        except TypeError as error:
            raise InputError(f"the block doesn't accept the options {options}: {error}") from error
        memo[id(conv)] = block
        if norm is not None:
            memo[id(norm)] = remainder_of(norm, memo)
    return copied(network, memo), refused


def _check(network: nn.Module, result: nn.Module, example_input: Any) -> None:
    try:
        check = verify(network, result, example_input)
    except InputError:
        raise
    except Exception as error:  # whatever stops a forward
        raise InputError(f"the network must run on `example_input`, got {type(error).__name__}: {error}") from error
    if check.compared and not check.within_noise:
        raise CollapseError(f"the expanded network differs; nothing is returned\n{check}")


@register_replay(EXPAND)
def _replay(network: nn.Module, transform: dict[str, Any]) -> nn.Module:
    """Put the blocks of a recorded expansion into a network; added branches have weights of their own."""
    name, options = transform.get("block"), copy.deepcopy(transform.get("options"))
    if name not in BLOCKS:
        raise InputError(f"it was expanded with a custom block, {name}: expand the network, then load into it")
    sites = _recorded_sites(network, transform.get("places"))
    if sites is None or not isinstance(options, dict):
        raise InputError("its recorded expansion doesn't fit the network, which must be as it was before expanding")
    result, refused = _replace(network, BLOCKS[name], sites, None, options)
    if refused:
        raise InputError(f"its recorded expansion doesn't fit the network: {next(iter(refused.items()))}")
    record_transform(network, result, transform)
    return result


def _recorded_sites(network: nn.Module, recorded: Any) -> list[ConvSite] | None:
    """Return the recorded sites, or None if the network has no such convolutions and norms."""
    convs, modules = convolutions(network), dict(network.named_modules())
    sites = []
    for pair in recorded if isinstance(recorded, list) else []:
        path, norm = pair if isinstance(pair, list) and len(pair) == 2 else (None, None)
        if path not in convs or not (norm is None or is_norm(modules.get(norm))):
            return None
        sites.append(ConvSite(path, norm))
    return sites
