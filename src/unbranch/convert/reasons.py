"""Reasons why a merge is skipped: the words, a kind that code can compare, and a remedy where there is one."""

from __future__ import annotations

NOT_EXACT = "not-exact"  # a law or a rule doesn't hold; the kind of reasons that are plain text
COSTS_MORE = "costs-more"
NO_NEIGHBOUR = "no-neighbour"  # of a batch norm: no layer beside it that could absorb it
UNTRACED = "untraced"
INTERNAL_ERROR = "internal-error"


class Reason(str):
    """Why a merge is skipped.

    Args:
        text: why, in words.
        remedy: what a user can do about it, in words.
        kind: a short name that stays the same when the words change.
    """

    __slots__ = ("kind", "remedy")
    remedy: str
    kind: str

    def __new__(cls, text: str, remedy: str = "", kind: str = NOT_EXACT) -> Reason:
        made = super().__new__(cls, text)
        made.remedy, made.kind = remedy, kind
        return made


def remedy_of(reason: str) -> str:
    """Return what to do about a reason, empty if nothing can be done."""
    return reason.remedy if isinstance(reason, Reason) else ""


def kind_of(reason: str) -> str:
    """Return the kind of a reason."""
    return reason.kind if isinstance(reason, Reason) else NOT_EXACT


NO_INPUT = Reason("no input was found to prove it on", "give an example input", "no-input")
HOOKED = Reason(
    "it has a hook, which would be lost", "remove the hook before the conversion, and put it on afterwards", "hooked"
)
SEVERAL_WAYS = Reason("its forward takes another way past it for other inputs", kind="several-paths")
REACHED = Reason("a forward that can't be read takes it out of what it lies in", kind="reached-by-untraced")
SHARED = Reason(
    "it shares its weights with another module", "give each place a copy of its own: copy.deepcopy(layer)",
    "shared-weights",
)  # fmt: skip
READ = Reason("its weights are read by another module", "read them from a copy", "weights-read-elsewhere")
IN_PLACE = Reason("a value it reads is changed in place", "write y = f(x) instead of changing x in place", "in-place")
SCRIPTED = Reason(
    "it is a ScriptModule, whose forward can't be read", "collapse it before it is scripted", "script-module"
)
DEPENDS_ON_ROUNDING = Reason(
    "which outputs it selects depends on rounding, so it can't be compared as a whole",
    "give an example input on which scores don't tie, or trained weights",
    "depends-on-rounding",
)
UNPROVED = Reason("nothing was found to prove it on", "give an example input", "unproved")
RANDOM = Reason("it draws random numbers in evaluation", kind="random")
NOT_REPEATABLE = Reason("its output differs between two runs on one input", kind="not-repeatable")


def side_effects_of(name: str) -> Reason:
    """Return the reason for a forward that might write to files or to the process with options that no call passes."""
    return Reason(f"{name}.forward may have side effects with other options", kind="side-effects")


def untraced(reason: str) -> Reason:
    """Return the reason for a forward that can't be traced; the kind is that of its own reason where it has one."""
    words = f"its forward can't be traced ({reason}), so its parts were converted separately"
    return Reason(words, kind=reason.kind if isinstance(reason, Reason) else UNTRACED)


def used_often(times: int) -> Reason:
    """Return the reason for a module that a forward calls several times."""
    words = f"it is used {times} times, so its weights are shared"
    return Reason(words, "give each place a copy of its own", "used-repeatedly")
