"""Short turns: tests don't look at times."""

from __future__ import annotations

import pytest

from unbranch.runtimes import measure


@pytest.fixture(autouse=True)
def _short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "TURN_MS", 1.0)
