"""What an expansion replaced and skipped."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

from unbranch.deprecation import RenamedAttribute
from unbranch.expansion.sites import ConvSite
from unbranch.render import Block, Paragraph, Renderable, Table, count


@dataclass(frozen=True)
class ExpansionReport(Renderable):
    """What ``expand`` did.

    Args:
        block: name of the block in ``BLOCKS``, or of the caller's class or function.
        replaced: convolutions that a block replaced, with the norms that went into it.
        skipped: reason for each convolution that was skipped, by path.
        params_before: parameters of the network before.
        params_after: parameters of the network with the blocks.
        block_class: name of the block's class or function.
    """

    block: str
    replaced: tuple[ConvSite, ...]
    skipped: dict[str, str]
    params_before: int
    params_after: int
    block_class: str = ""

    taken = RenamedAttribute("replaced")

    @property
    def left(self) -> tuple[tuple[str, str], ...]:
        """Deprecated: the items of ``skipped``."""
        warnings.warn(
            "`ExpansionReport.left` is deprecated, use `skipped`, a dictionary", DeprecationWarning, stacklevel=2
        )
        return tuple(self.skipped.items())

    @property
    def summary(self) -> str:
        """One line: how many convolutions were replaced and skipped."""
        name, many = self.block_class or self.block, len(self.replaced)
        article = "an" if name[:1] in "AEIOUaeiou" else "a"
        what = f"1 convolution with {article} {name} block" if many == 1 else f"{many} convolutions with {name} blocks"
        return f"Replaced {what}; skipped {len(self.skipped)}"

    def blocks(self) -> Iterable[Block]:
        """A summary, the parameters, and a row for each convolution."""
        yield Paragraph(self.summary)
        costs = [("parameters", count(self.params_before), count(self.params_after))]
        yield Table(("", "before", "after"), costs, numeric=True)
        rows = [(site.path or "(the network)", site.norm or "") for site in self.replaced]
        yield Table(("convolution", "norm"), rows, title="replaced")
        if self.skipped:
            skipped = [(path or "(the network)", reason) for path, reason in self.skipped.items()]
            yield Table(("convolution", "reason"), skipped, title="skipped")
