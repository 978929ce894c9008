"""A dozen rows of the atlas: real networks, of which ``python -m benchmarks.atlas`` measures hundreds."""

from __future__ import annotations

import pytest

pytest.importorskip("timm")
pytest.importorskip("torchvision")

from benchmarks import atlas

pytestmark = pytest.mark.slow

# row: number of norms that are left
ROWS = {
    "torchvision:squeezenet1_1": 0,
    "torchvision:shufflenet_v2_x0_5": 0,
    "torchvision:mnasnet0_5": 0,
    "torchvision:mobilenet_v3_small": 0,
    "torchvision:lraspp_mobilenet_v3_large": 0,
    "timm:resnet10t": 0,
    "timm:repghostnet_050": 0,
    "timm:mobilenetv3_small_050": 0,
    "timm:tf_mobilenetv3_small_minimal_100": 0,
    "timm:levit_128s": 0,
    "timm:convnext_atto": 0,
    "timm:lcnet_035": 0,
}


@pytest.mark.sweep(3)
@pytest.mark.parametrize("row", ROWS)
def test_row_is_measured_exact_and_no_larger_than_its_own_conversion(row):
    found = atlas.measured(row)
    assert found["after"][1] == ROWS[row]
    assert found["after"][0] <= found.get("own", found["before"])[0]
    assert any(error is not None for error in found["errors"])
    assert all(error is None or error <= 1e-10 for error in found["errors"])


def test_the_table_lists_what_was_measured_and_what_failed():
    done = {
        "row": "timm:a", "before": (3, 2), "own": (3, 2), "own_differs": True, "after": (3, 0), "errors": [1e-15, None],
        "seconds": 1.0, "reasons": {"it is | shared": 2}, "macs": [1.0, 0.9],
    }  # fmt: skip
    text = atlas.table([done, {"row": "timm:c", "failed": "longer than 600 s"}])
    lines = text.splitlines()
    assert "| timm:a | 3 / 2 | 3 / 2 ≠ | 3 / 0 | 1.00 → 0.90 |" in lines[-2]
    assert "1e-15 –" in lines[-2]
    assert "**failed**: longer than 600 s" in lines[-1]
    assert len({line.replace("\\|", "").count("|") for line in lines[-4:]}) == 1
