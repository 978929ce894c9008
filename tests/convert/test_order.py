"""A conversion doesn't depend on the order of sets: the same in processes with other hash seeds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
STEP = 48  # of the corpus's rows, every so many


def converted(seed: int) -> Any:
    command = [sys.executable, "-m", "tests.convert.conversions_in_order", "3", str(STEP)]
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_the_same_under_other_hash_seeds() -> None:
    first, second = converted(1), converted(2)
    assert len(first) > 8
    assert first == second
