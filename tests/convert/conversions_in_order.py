"""What a part of the corpus converts to, as JSON: run by ``test_order.py`` under several hash seeds."""

from __future__ import annotations

import json
import sys
import warnings

import unbranch as ub
from tests.convert.corpus import ROWS
from tests.convert.test_corpus import network_of


def main(first: int, step: int) -> None:
    """Print what every ``step``-th row becomes, beginning with ``first``."""
    found = {}
    for row in ROWS[first::step]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                plain = ub.collapse(network_of(row))
            except ub.UnbranchError as error:
                found[row.name] = str(error)
                continue
        report = ub.report(plain)
        merges = [(m.path, m.sources, m.layer) for m in report.merges]
        found[row.name] = [repr(plain), list(plain.state_dict()), merges, [(r.path, r.reason) for r in report.refusals]]
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
