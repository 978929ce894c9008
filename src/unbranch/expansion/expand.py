"""``expand``: blocks in place of a network's convolutions."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch import nn

from unbranch.convert import verify
from unbranch.convert.rewrite import copied
from unbranch.errors import CollapseError, InputError
from unbranch.expansion.adopt import BLOCKS, STARTS, adopted, left_of, why_pointless
from unbranch.expansion.places import Place, convolutions, is_norm, places_in
from unbranch.graph.shadow import unwrapped
from unbranch.provenance import record_report, record_transform, register_replay

Where: TypeAlias = str | type[nn.Module] | Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class Expansion:
    """What ``expand`` did: the convolutions that became blocks, and those that were left alone with the reason."""

    block: str
    taken: tuple[Place, ...]
    left: tuple[tuple[str, str], ...]
    params_before: int
    params_after: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{len(self.taken)} convolutions became {self.block} blocks, {len(self.left)} were left alone; "
            f"parameters {self.params_before:,} to {self.params_after:,}"
        ]
        lines += [f"  {p.path}" + (f" with {p.norm}" if p.norm else "") for p in self.taken]
        lines += [f"  {path} left: {reason}" for path, reason in self.left]
        return "\n".join(lines)


def expand(
    model: nn.Module, block: str | Callable[..., nn.Module], where: Where | Iterable[Where] | None = None,
    *, start: str = "zero", example_input: Any = None, **options: Any,
) -> nn.Module:  # fmt: skip
    """A copy of a network with blocks in place of convolutions, which computes the same function.

    The kernel of each convolution stays, in the main branch of its block, and takes the batch norm along that alone
    reads it; where there is none, the main branch has no norm either. Added branches start with γ = 0, so that
    nothing changes in training either, or, with ``start="subtracted"``, at work from the first step, with what they
    compute taken out of the main kernel (equal in evaluation; in training their norms see the batch). ``collapse``
    leads back to the structure and the cost that the network's own collapsed form has, but for the bias of a
    convolution that had neither bias nor norm.

    Args:
        model: any network, in any mode; it isn't changed.
        block: ``"acb"``, ``"dbb"``, ``"repvgg"``, ``"replk"`` (a small kernel beside a large one) or
            ``"compactor"``; or a subclass of ``BranchedConv``, or a function with its signature.
        where: which convolutions: a pattern of paths (``"layer3.*"``), a class, a predicate of path and module, or
            several of them. Without it all that the block is for: those with more than one tap.
        start: how added branches start.
        example_input: with it, the result is compared with the network on it.
        options: for the block: ``small_kernel=3``, ``internal_channels=…``.

    Returns:
        The network, with its ``Expansion`` as ``expand_report``: what was taken and what was left alone, and why.

    Raises:
        InputError: for an unknown block or option, or if no convolution was found that can become a block.

    Example:
        >>> import unbranch as ub
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
        >>> print(ub.expand(net, "repvgg").expand_report)
        1 convolutions became repvgg blocks, 1 were left alone; parameters 276 to 316
          0 with 1
          3 left: its kernel has one tap
    """
    network = unwrapped(model)
    name, kind = _named(block)
    if start not in STARTS:
        raise InputError(f"start={start!r} is none of {', '.join(STARTS)}")
    wanted = _wanted(network, where)
    possible, left = places_in(network)
    reasons: dict[str, str] = {}
    places: list[Place] = []
    for path, conv in wanted.items():
        reason = left.get(path) or (why_pointless(name, conv, options) if where is None else None)
        if reason is None:
            places.append(possible[path])
        else:
            reasons[path] = reason
    result, refused = _expanded(network, kind, places, start, options)
    taken, reasons = tuple(p for p in places if p.path not in refused), refused | reasons
    if not taken:
        path, reason = next(iter(reasons.items()))
        raise InputError(f"nothing in {type(network).__name__} can become a {name} block; {path or 'it'}: {reason}")
    counts = [sum(p.numel() for p in n.parameters()) for n in (network, result)]
    result.expand_report = Expansion(name, taken, tuple(reasons.items()), *counts)  # type: ignore[assignment]
    if example_input is not None:
        _check(network, result, example_input)
    step = {"kind": "expand", "block": name, "options": options, "places": [[p.path, p.norm] for p in taken]}
    record_transform(network, result, step)
    record_report(result, "expand", result.expand_report)
    return result


def _named(block: str | Callable[..., nn.Module]) -> tuple[str, Callable[..., nn.Module]]:
    if not isinstance(block, str) and not callable(block):
        raise InputError(f"block={block!r} is none of {', '.join(BLOCKS)}, and no class or function either")
    if not isinstance(block, str):
        known = next((name for name, kind in BLOCKS.items() if kind is block), None)
        return known or str(getattr(block, "__name__", block)), block
    if block not in BLOCKS:
        close = difflib.get_close_matches(block.lower(), BLOCKS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise InputError(f"block={block!r} is none of {', '.join(BLOCKS)}{hint}")
    return block, BLOCKS[block]


def _wanted(network: nn.Module, where: Where | Iterable[Where] | None) -> dict[str, Any]:
    """The convolutions that ``where`` names, by path."""
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
        raise InputError(f"where={where!r} names no convolution of {type(network).__name__}, which has {some}, …")
    return chosen


def _matches(part: Any, path: str, conv: nn.Module) -> bool:
    if isinstance(part, str):
        return fnmatchcase(path, part)
    if not callable(part):
        raise InputError(f"where={part!r} is neither a pattern of paths nor a class nor a function of path and module")
    return isinstance(conv, part) if isinstance(part, type) else bool(part(path, conv))


def _expanded(
    network: nn.Module, kind: Callable[..., nn.Module], places: list[Place], start: str | None, options: dict[str, Any]
) -> tuple[nn.Module, dict[str, str]]:
    """The copy with blocks at the places, and the places that the block refused with the reason."""
    memo: dict[int, Any] = {}
    refused: dict[str, str] = {}
    for place in places:
        conv = network.get_submodule(place.path)
        norm = None if place.norm is None else network.get_submodule(place.norm)
        try:
            new = adopted(kind, conv, norm, start, options, memo)
        except InputError as error:
            refused[place.path] = str(error)
            continue
        except TypeError as error:
            raise InputError(f"the block doesn't take {options}: {error}") from error
        memo[id(conv)] = new
        if norm is not None:
            memo[id(norm)] = left_of(norm, memo)
    return copied(network, memo), refused


def _check(network: nn.Module, result: nn.Module, example_input: Any) -> None:
    try:
        check = verify(network, result, example_input)
    except InputError:
        raise
    except Exception as error:  # whatever stops a forward
        raise InputError(f"the network can't be run on example_input, before or after: {error}") from error
    if check.compared and not check.within_noise:
        raise CollapseError(f"the expanded network differs; nothing is returned\n{check}")


@register_replay("expand")
def _replay(network: nn.Module, step: dict[str, Any]) -> nn.Module:
    """Put the blocks of a recorded step into a network again; added branches have weights of their own."""
    name, options = step.get("block"), copy.deepcopy(step.get("options"))
    if name not in BLOCKS:
        raise InputError(f"it was expanded with a block of its author's, {name}: expand the network, then load into it")
    places = _places(network, step.get("places"))
    if places is None or not isinstance(options, dict):
        raise InputError(
            "its record of an expansion doesn't fit the network, which has to be as it was before expanding"
        )
    result, refused = _expanded(network, BLOCKS[name], places, None, options)
    if refused:
        raise InputError(f"its expansion doesn't fit the network: {next(iter(refused.items()))}")
    record_transform(network, result, step)
    return result


def _places(network: nn.Module, recorded: Any) -> list[Place] | None:
    """Recorded places, if there are such convolutions and norms."""
    convs, modules = convolutions(network), dict(network.named_modules())
    places = []
    for pair in recorded if isinstance(recorded, list) else []:
        path, norm = pair if isinstance(pair, list) and len(pair) == 2 else (None, None)
        if path not in convs or not (norm is None or is_norm(modules.get(norm))):
            return None
        places.append(Place(path, norm))
    return places
