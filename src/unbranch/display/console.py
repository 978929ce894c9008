"""Reports as tables on the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from unbranch.convert import NetworkCost, Report, Verification
from unbranch.expansion import ExpansionReport

ROWS = 20
SOURCES = 3


def console(*, stderr: bool = False) -> Console:
    """A console that doesn't fold tables to 80 columns where there is no terminal."""
    plain = Console(stderr=stderr, highlight=False)
    return plain if plain.is_terminal else Console(stderr=stderr, highlight=False, width=140)


def show_report(report: Report) -> RenderableType:
    """Costs before and after, then what was merged, refused and kept."""
    parts: list[RenderableType] = [Text(report.network, style="bold"), cost_table(report.before, report.after)]
    if report.worst_error is not None:
        parts.append(Text(f"worst error of a merge: {report.worst_error:.0e} of its largest output, in float64"))
    if report.merges:
        merged = [(_at(m.path), _sources(m.path, m.sources), _layer(m.layer)) for m in report.merges]
        parts.append(_table(f"{len(merged)} merged", ("at", "from", "into"), merged))
    for title, found in report.skipped():
        reasons = [(_at(refusal.path), refusal.text) for refusal in found]
        parts.append(_table(f"{len(reasons)} {title}", ("at", "reason"), reasons))
    return Group(*parts)


def cost_table(before: NetworkCost, after: NetworkCost) -> Table:
    """Multiply-accumulates, parameters, operations and layers of both forms."""
    table = _grid(("", "training form", "deploy form"))
    table.add_row("MACs", count(before.macs), count(after.macs))
    table.add_row("parameters", count(before.params), count(after.params))
    table.add_row("operations launched", count(before.launches), count(after.launches))
    for kind, number in before.layers.items():
        if number or after.layers.get(kind):
            table.add_row(f"{kind} layers", count(number), count(after.layers.get(kind, 0)))
    return table


def show_expansion(expansion: ExpansionReport) -> RenderableType:
    """What became a block, and what was left alone and why."""
    table = _grid(("", "before", "after"))
    table.add_row("parameters", count(expansion.params_before), count(expansion.params_after))
    taken = [(_at(place.path), place.norm or "") for place in expansion.replaced]
    parts: list[RenderableType] = [table]
    parts.append(_table(f"{len(taken)} convolutions became {expansion.block}", ("at", "with the norm"), taken))
    if expansion.skipped:
        left = [(_at(path), reason) for path, reason in expansion.skipped.items()]
        parts.append(_table(f"{len(left)} left alone", ("at", "reason"), left))
    return Group(*parts)


def show_verification(verification: Verification) -> RenderableType:
    """The verdict, then the differences beside the noise of the network's own dtype."""
    table = _grid(("", "relative", "absolute"))
    table.add_row("float64", f"{verification.max_rel:.1e}", f"{verification.max_abs:.1e}")
    table.add_row("own dtype", f"{verification.native_rel:.1e}", f"{verification.native_abs:.1e}")
    table.add_row("noise of the own dtype", f"{verification.noise_floor:.1e}", "")
    told = verification.compared > 0 and verification.unproved is None
    colour = "green" if verification.ok else "red" if told else "yellow"
    parts: list[RenderableType] = [Text(verification.verdict, style=f"bold {colour}"), table]
    if verification.unproved is not None:
        parts.insert(1, Text(verification.unproved))
    if verification.first_difference is not None:
        parts.append(Text(f"first module that differs: {verification.first_difference}"))
    return Group(*parts)


def show_files(paths: Iterable[Path]) -> RenderableType:
    """One line for each file that was written."""
    return Text("\n".join(f"wrote {path} ({_size(path)})" for path in paths))


def count(number: int | None) -> str:
    """``1,234``, ``12.3 M`` or ``1.36 G``; ``?`` if unknown."""
    if number is None:
        return "?"
    for unit, size in (("G", 10**9), ("M", 10**6)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:,}"


def _size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.0f} KiB"


def _at(path: str) -> str:
    return path or "(the network)"


def _sources(path: str, sources: tuple[str, ...]) -> str:
    """The first few, without what ``path`` already says."""
    more = f" and {len(sources) - SOURCES} more" if len(sources) > SOURCES else ""
    return ", ".join(source.removeprefix(f"{path}.") for source in sources[:SOURCES]) + more


def _layer(words: str) -> str:
    """``Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))`` as ``Conv2d(3, 8, 3×3)``."""
    words = re.sub(r", (stride|dilation)=\(1(, 1)*,?\)", "", words)
    return re.sub(r"kernel_size=\(([\d, ]+?),?\)", lambda found: found[1].replace(", ", "×"), words)


def _grid(header: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for n, name in enumerate(header):
        table.add_column(name, justify="right" if n else "left")
    return table


def _table(title: str, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table(title=f"\n{title}", title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.header_style = "dim"
    for name in header:
        table.add_column(name)
    for row in rows[:ROWS]:
        table.add_row(*map(Text, row))
    if len(rows) > ROWS:
        table.add_row(f"… and {len(rows) - ROWS} more; --json lists all", *[""] * (len(header) - 1))
    return table
