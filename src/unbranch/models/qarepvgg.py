"""QARepVGG, a RepVGG whose blocks keep their accuracy when they are quantized.

Chu, Li, Zhang: "Make RepVGG Greater Again: A Quantization-Aware Approach", AAAI 2024,
https://arxiv.org/abs/2212.01593. The networks are those of RepVGG with other blocks.
"""

from __future__ import annotations

from typing import Any

from unbranch.models.registry import register_models
from unbranch.models.repvgg import VARIANTS as REPVGG
from unbranch.models.repvgg import repvgg

VARIANTS: dict[str, dict[str, Any]] = {
    f"qa{name}": {**row, "unit": "qarepvgg"}
    for name, row in REPVGG.items()
    if name.startswith(("repvgg_a", "repvgg_b"))
}

register_models(
    VARIANTS,
    family="QARepVGG",
    paper="Make RepVGG Greater Again: A Quantization-Aware Approach, AAAI 2024, https://arxiv.org/abs/2212.01593",
    renamed_options={"widths": "width_multipliers"},
)(repvgg)
