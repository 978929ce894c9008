"""Reasons why a merge is skipped, and what to do about each kind."""

from __future__ import annotations


class Reason(str):
    """Why a merge is skipped, with what the user can do about it as ``remedy``."""

    __slots__ = ("remedy",)
    remedy: str

    def __new__(cls, text: str, remedy: str = "") -> Reason:
        made = super().__new__(cls, text)
        made.remedy = remedy
        return made


def remedy_of(reason: str) -> str:
    """Return what to do about a reason, empty if nothing can be done."""
    return reason.remedy if isinstance(reason, Reason) else ""


NO_INPUT = Reason("no input was found to prove it on", "give an example input")
HOOKED = Reason("it has a hook, which would be lost", "remove the hook before the conversion, and put it on afterwards")
SEVERAL_WAYS = Reason("its forward takes another way past it for other inputs")
REACHED = Reason("a forward that can't be read takes it out of what it lies in")
SHARED = Reason("it shares its weights with another module", "give each place a copy of its own: copy.deepcopy(layer)")
READ = Reason("its weights are read by another module", "read them from a copy")
IN_PLACE = Reason("a value it reads is changed in place", "write y = f(x) instead of changing x in place")
SCRIPTED = Reason("it is a ScriptModule, whose forward can't be read", "collapse it before it is scripted")
DEPENDS_ON_ROUNDING = Reason(
    "which outputs it selects depends on rounding, so it can't be compared as a whole",
    "give an example input on which scores don't tie, or trained weights",
)
UNPROVED = Reason("nothing was found to prove it on", "give an example input")


def used_often(times: int) -> Reason:
    """Return the reason for a module that a forward calls several times."""
    return Reason(f"it is used {times} times, so its weights are shared", "give each place a copy of its own")
