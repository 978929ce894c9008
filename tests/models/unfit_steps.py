"""Steps of a manifest that fit a network, and the same with one field wrong."""

from __future__ import annotations

from typing import Any

_EXPAND: dict[str, Any] = {"kind": "expand", "block": "acb", "options": {}, "places": [["stem.conv", "stem.bn"]]}
_NARROW: dict[str, Any] = {
    "kind": "prune",
    "layers": {"stem.conv": {"shapes": {"weight": [1, 3, 3, 3]}, "numbers": {}}},
}


def _narrow(**layer: Any) -> dict[str, Any]:
    return {"kind": "prune", "layers": {"stem.conv": {**_NARROW["layers"]["stem.conv"], **layer}}}


FITTING_STEPS = {"expand": _EXPAND, "prune": _NARROW}
# one field of a step of each kind is wrong: the step, and what the error says
UNFIT_STEPS: dict[str, tuple[dict[str, Any], str]] = {
    "expand by a function": ({**_EXPAND, "block": "os:system"}, "os:system"),
    "expand without a block": ({**_EXPAND, "block": None}, "None"),
    "expand where nothing is": ({**_EXPAND, "places": [["nothing", None]]}, "recorded expansion"),
    "expand what is no convolution": ({**_EXPAND, "places": [["stem.bn", None]]}, "recorded expansion"),
    "expand at a number": ({**_EXPAND, "places": [3]}, "recorded expansion"),
    "expand with a norm that is none": ({**_EXPAND, "places": [["stem.conv", "stem"]]}, "recorded expansion"),
    "expand with options in a list": ({**_EXPAND, "options": ["activation"]}, "recorded expansion"),
    "expand with an unknown option": ({**_EXPAND, "options": {"os.system": 1}}, "the options {'os.system': 1}"),
    "prune nothing": ({"kind": "prune"}, "record of pruning has no layers"),
    "prune where nothing is": ({"kind": "prune", "layers": {"nothing": {}}}, "a layer nothing"),
    "prune without shapes": (_narrow(shapes=3), "doesn't say how narrow stem.conv is"),
    "prune without numbers": (_narrow(numbers=None), "doesn't say how narrow stem.conv is"),
    "prune a tensor that isn't there": (_narrow(shapes={"eval": [1]}), "a tensor stem.conv.eval"),
    "prune to more": (_narrow(shapes={"weight": [10**9, 3, 3, 3]}), "makes stem.conv.weight"),
    "prune to another rank": (_narrow(shapes={"weight": [1]}), "makes stem.conv.weight"),
    "prune a method": (_narrow(numbers={"forward": 1}), "makes stem.conv.forward"),
    "prune to more channels": (_narrow(numbers={"out_channels": 10**9}), "makes stem.conv.out_channels"),
    "compact what is no block": ({"kind": "compact", "blocks": ["stem.conv"]}, "record of compactors"),
    "compact a number": ({"kind": "compact", "blocks": [3]}, "record of compactors"),
    "compact without blocks": ({"kind": "compact"}, "record of compactors"),
}
