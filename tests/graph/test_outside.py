"""What a network's code keeps outside its modules stays as it was, whatever is done to the network."""

from __future__ import annotations

import copy
import functools
import sys
import threading
import types
from collections import Counter, OrderedDict, UserDict, deque

import pytest
import torch
from torch import Tensor, nn

import unbranch as ub
from tests.graph import outside_helper
from tests.networks import randomised
from unbranch.graph.outside import Contents

GLOBAL: dict = {}
NAME = None
COUNT = 0
WRITTEN = torch.zeros(3)


class Kept:
    """An object that isn't a module."""

    def __init__(self) -> None:
        self.table, self.last = {}, None

    def get(self, key, make):
        if key not in self.table:
            self.table[key] = make()
        self.last = self.table[key]
        return self.last


OBJECT = Kept()


class Net(nn.Module):
    """Multiplies by something that it keeps in a place."""

    table: dict = {}  # noqa: RUF012
    name = None
    calls = 0

    def __init__(self, get, make, by_size: bool) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.child = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.get, self.make, self.by_size = get, make, by_size
        self.own, self.nested, self.listed, self.kept = {}, [{}], [], None

    def forward(self, x: Tensor) -> Tensor:
        key = (x.shape[-1],) if self.by_size else "all"
        scale = self.get(self, key, lambda: self.make(self, x))
        return self.norm(self.conv(x)) * scale + self.child(x)


def in_dict(table):
    def get(net, key, make):
        found = table(net)
        if key not in found:
            found[key] = make()
        return found[key]

    return get


def in_a_name(net, key, make):
    global NAME
    if NAME is None or NAME[0] != key:
        NAME = (key, make())
    return NAME[1]


def in_a_class(net, key, make):
    kind = type(net)
    if kind.name is None or kind.name[0] != key:
        kind.name = (key, make())
    return kind.name[1]


def in_a_new_attribute(net, key, make):
    kind = type(net)
    if not hasattr(kind, "fresh"):
        kind.fresh = {}
    if key not in kind.fresh:
        kind.fresh[key] = make()
    return kind.fresh[key]


def in_a_default(net, key, make, table={}):  # noqa: B006
    if key not in table:
        table[key] = make()
    return table[key]


def in_a_function(net, key, make):
    if not hasattr(in_a_function, "table"):
        in_a_function.table = {}
    if key not in in_a_function.table:
        in_a_function.table[key] = make()
    return in_a_function.table[key]


def in_a_closure():
    last = None

    def get(net, key, make):
        nonlocal last
        if last is None or last[0] != key:
            last = (key, make())
        return last[1]

    return get


def counting(net, key, make):
    global COUNT
    COUNT += 1
    type(net).calls += 1
    return make()


def writing(net, key, make):
    WRITTEN.add_(1)
    return make()


PLACES = {
    "a global dictionary": in_dict(lambda _net: GLOBAL),
    "a class's dictionary": in_dict(lambda net: net.table),
    "its own dictionary": in_dict(lambda net: net.own),
    "a dictionary in a list": in_dict(lambda net: net.nested[0]),
    "a global name": in_a_name,
    "a class's name": in_a_class,
    "a new attribute of its class": in_a_new_attribute,
    "a default": in_a_default,
    "an attribute of a function": in_a_function,
    "a closure": in_a_closure(),
    "another module's table": lambda _net, key, make: outside_helper.kept(key, make),
    "an object": lambda _net, key, make: OBJECT.get(key, make),
    "counters": counting,
    "a tensor that is written to": writing,
    "a partial's table": functools.partial(in_a_default, table={}),
}
TABLES = {
    "made by size": (lambda _net, x: torch.arange(x.shape[-1]).float() / 9, True),
    "made of a parameter": (lambda net, _x: net.scale * 2, False),
    "made of numbers": (lambda _net, _x: torch.arange(4.0).view(4, 1, 1), False),
    "made of the input": (lambda _net, x: x.mean((0, 2, 3), keepdim=True) * 0 + 1, False),
}
EXAMPLE = torch.randn(2, 4, 9, 11)


def everything(net) -> list:
    """What there is in all places, by identity."""

    def flat(value):
        if isinstance(value, dict):
            return [(key, flat(v)) for key, v in value.items()]
        if isinstance(value, list | tuple):
            return [flat(v) for v in value]
        return value if isinstance(value, int | float | str) else id(value)

    own = [net.own, net.nested, net.listed, net.kept]
    functions = [vars(in_a_function), in_a_default.__defaults__, vars(Net), vars(OBJECT)]
    cells = [cell.cell_contents for cell in PLACES["a closure"].__closure__]
    functions += [PLACES["a partial's table"].keywords, COUNT, WRITTEN.tolist(), cells]
    return [flat(v if isinstance(v, dict | list | tuple) else dict(v) if hasattr(v, "keys") else v) for v in (
        GLOBAL, NAME, outside_helper.TABLE, *own, *functions,
    )]  # fmt: skip


def forget() -> None:
    global NAME
    NAME = None
    Net.name = None
    OBJECT.last = None
    for table in (
        GLOBAL,
        Net.table,
        outside_helper.TABLE,
        OBJECT.table,
        in_a_default.__defaults__[0],
        vars(in_a_function),
    ):
        table.clear()
    PLACES["a partial's table"].keywords["table"].clear()
    if hasattr(Net, "fresh"):
        del Net.fresh
    PLACES["a closure"].__closure__[0].cell_contents = None


WHAT = {
    "collapse": ub.collapse,
    "collapse on an example": lambda net: ub.collapse(net, EXAMPLE),
    "explain": ub.explain,
    "verify": lambda net: ub.verify(net, net, EXAMPLE),
    "expand": lambda net: ub.expand(net, "acb", example_input=EXAMPLE),
}


@pytest.mark.parametrize("place", PLACES)
def test_an_ordinary_run_changes_the_place(place):
    """Otherwise the tests below would compare nothing."""
    forget()
    net = Net(PLACES[place], *TABLES["made by size"]).eval()
    before = everything(net)
    net(EXAMPLE)
    assert everything(net) != before


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("place", PLACES)
def test_conversion_leaves_it_as_it_was_and_is_right(place, table, filled):
    make, by_size = TABLES[table]
    forget()
    net = randomised(Net(PLACES[place], make, by_size)).eval()
    with torch.no_grad():
        if filled:
            net(EXAMPLE)
        before = everything(net)
        plain = ub.collapse(net)
        assert everything(net) == before
        for x in (EXAMPLE, torch.randn(3, 4, 7, 12)):
            forget()
            expected = net(x)
            forget()
            assert torch.allclose(plain(x), expected, atol=1e-4)
    if not by_size and not filled:
        assert sum(isinstance(m, nn.BatchNorm2d) for m in plain.modules()) <= 1


@pytest.mark.parametrize("what", WHAT)
@pytest.mark.parametrize("place", PLACES)
def test_nothing_else_leaves_a_trace_either(place, what):
    forget()
    make, by_size = TABLES["made by size"]
    net = Net(PLACES[place], make, by_size).eval()
    before = everything(net)
    WHAT[what](net)
    assert everything(net) == before
    forget()
    with torch.no_grad():
        assert net(EXAMPLE).dtype == torch.float32  # no table of float64 is left


# --- holders of other kinds: what is kept in them is seen by `seen`, and the network still runs afterwards


class Slotted:
    __slots__ = ("table",)


class Registry(type):
    entries: dict = {}  # noqa: RUF012


class Registered(metaclass=Registry):
    class Inner:
        kept = None


class Locked(dict):
    """Of which Python's own methods alone can change anything."""

    def clear(self):
        raise TypeError("locked")

    update = __setitem__ = clear


class Table(nn.Module):
    """A module that isn't a part of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = None
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        if self.kept is None or self.kept[0] != x.shape[-1]:
            self.kept = (x.shape[-1], torch.arange(x.shape[-1]).float())
        return self.kept[1]


class Value:
    def __init__(self, number: int) -> None:
        self.number = number


class Unreadable:
    @property
    def __class__(self):
        raise RuntimeError("not to be looked at")


SLOTTED, LOCKED, TABLE, HIDDEN = Slotted(), Locked(), Table(), [Unreadable()]  # which pytest would look at
SLOTTED.table = {}
SPACE, USERS, COUNTED = types.SimpleNamespace(kept=None), UserDict(), Counter(a=5)
VALUE, LARGE, BEHIND = Value(0), {j: j for j in range(30_000)}, {}
LOCAL = threading.local()


def in_slots(x):
    SLOTTED.table.setdefault(str(x.dtype), torch.ones(4, 1, 1))
    return SLOTTED.table[str(x.dtype)]


def in_a_metaclass(x):
    Registry.entries[str(x.dtype)] = torch.ones(4, 1, 1)
    return Registry.entries[str(x.dtype)]


def in_an_inner_class(x):
    if Registered.Inner.kept is None:
        Registered.Inner.kept = x.new_ones(4, 1, 1)
    return Registered.Inner.kept


def in_a_locked_dictionary(x):
    dict.__setitem__(LOCKED, str(x.dtype), torch.ones(4, 1, 1))
    return LOCKED[str(x.dtype)]


def in_a_namespace(x):
    if SPACE.kept is None:
        SPACE.kept = x.new_ones(4, 1, 1)
    return SPACE.kept


def in_a_users_dictionary(x):
    USERS[str(x.dtype)] = torch.ones(4, 1, 1)
    return USERS[str(x.dtype)]


def in_a_thread(x):
    LOCAL.kept = x.new_ones(4, 1, 1)
    return LOCAL.kept


def counted(x):
    COUNTED["calls"] += 1
    return x.new_ones(4, 1, 1)


def rebound(x):
    global VALUE
    VALUE = Value(VALUE.number + 1)
    return x.new_ones(4, 1, 1)


def in_a_module_imported_here(x):
    from tests.graph import outside_helper as helper

    helper.TABLE[str(x.dtype)] = x.new_ones(4, 1, 1)
    return helper.TABLE[str(x.dtype)]


def in_a_new_name(x):
    if not hasattr(Value, "fresh"):
        Value.fresh = x.new_ones(4, 1, 1)  # which may be something that can be called
    return Value.fresh


def behind_a_large_table(x):
    assert LARGE[0] == 0
    BEHIND[str(x.dtype)] = x.new_ones(4, 1, 1)
    return BEHIND[str(x.dtype)]


def beside_an_unreadable_object(x):
    assert len(HIDDEN) == 1
    return x.new_ones(4, 1, 1)


HOLDERS = {
    in_slots: lambda: dict(SLOTTED.table), in_a_metaclass: lambda: dict(Registry.entries),
    in_an_inner_class: lambda: Registered.Inner.kept, in_a_locked_dictionary: lambda: dict(LOCKED),
    in_a_namespace: lambda: SPACE.kept, in_a_users_dictionary: lambda: dict(USERS),
    in_a_thread: lambda: vars(LOCAL).copy(), counted: lambda: dict(COUNTED), rebound: lambda: VALUE,
    in_a_module_imported_here: lambda: dict(outside_helper.TABLE), in_a_new_name: lambda: hasattr(Value, "fresh"),
    behind_a_large_table: lambda: dict(BEHIND), beside_an_unreadable_object: lambda: None,
    TABLE: lambda: (TABLE.kept, TABLE.calls.item()),
}  # fmt: skip


def empty() -> None:
    """Take out of all holders what a run has put there."""
    if hasattr(Value, "fresh"):
        del Value.fresh
    for table in (SLOTTED.table, Registry.entries, USERS, BEHIND, vars(LOCAL), outside_helper.TABLE):
        table.clear()
    SPACE.kept = Registered.Inner.kept = TABLE.kept = None
    dict.clear(LOCKED)


class Holds(nn.Module):
    def __init__(self, keep) -> None:
        super().__init__()
        self.conv, self.norm, self.keep = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), None
        vars(self)["keep"] = keep if not isinstance(keep, nn.Module) else (lambda x: TABLE(x))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x))) * self.keep(x)


each_holder = pytest.mark.parametrize("keep", HOLDERS, ids=lambda keep: getattr(keep, "__name__", "a_module"))


@each_holder
def test_an_ordinary_run_changes_the_holder(keep):
    net, seen = Holds(keep).eval(), HOLDERS[keep]
    empty()
    before = seen()
    net(EXAMPLE)
    assert (seen() is not before and seen() != before) or keep is beside_an_unreadable_object
    empty()


@pytest.mark.parametrize("what", WHAT)
@each_holder
def test_holders_of_all_kinds_hold_what_they_did(keep, what):
    empty()
    net, seen = Holds(keep).eval(), HOLDERS[keep]
    before = seen()
    WHAT[what](net)
    assert seen() == before
    with torch.no_grad():
        assert type(net(EXAMPLE)) is Tensor
    empty()


def test_entries_that_stay_are_never_missing_for_other_threads():
    table = {j: object() for j in range(50)}
    contents, missing, done = Contents([table]), [], threading.Event()

    def read():
        while not done.is_set():
            if 49 not in table:
                missing.append(1)

    interval = sys.getswitchinterval()
    reader = threading.Thread(target=read)
    sys.setswitchinterval(1e-6)
    reader.start()
    try:
        for j in range(3000):
            table[f"new {j}"] = table[0] = None
            contents.restore()
    finally:
        sys.setswitchinterval(interval)
        done.set()
        reader.join()
    assert not missing
    assert [*table] == [*range(50)]
    assert None not in table.values()


@pytest.mark.parametrize(
    "container",
    [[1, 2, 3], {1, 2, 3}, deque([1, 2, 3], maxlen=3), {1: 2, 3: 4}, OrderedDict(a=1, b=2), Counter("aab")],
    ids=lambda container: type(container).__name__,
)
def test_containers_of_all_kinds_hold_what_they_did(container):
    before, contents = copy.copy(container), Contents([container])
    if isinstance(container, dict):
        container.pop(next(iter(container)))
        container["new"] = 5
    elif isinstance(container, set):
        container ^= {1, 7}
    else:
        container.append(9)
    assert container != before
    contents.restore()
    assert container == before
    assert [*container] == [*before]
