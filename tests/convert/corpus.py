"""The corpus: small networks, each of a kind of program that people write around layers.

Its rows are made in ``kinds``; each sentence of the contract in ``docs/converter.md`` has some.
"""

from __future__ import annotations

from tests.convert.kinds import callers, judged, kernels, odd, places, shapes, state, tokens, ways, writes  # noqa: F401
from tests.convert.kinds.table import ROWS, Call, Row

__all__ = ["ROWS", "Call", "Row"]
