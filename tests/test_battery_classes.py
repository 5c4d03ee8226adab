"""Classes, functions and methods that change between calls: compiled, a program is what it is plainly (battery.py)."""

import collections

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import battery

CASES = battery.Cases()
case, x = CASES.add, battery.x


@case
def dunders_added_later(compile, call):
    class Holder:
        def __init__(self):
            self.k = 2.0

    class Seq:
        def __init__(self):
            self.items = [1.0, 2.0]

        def __iter__(self):
            return iter(self.items)

    holder, seq = Holder(), Seq()

    def f(t):
        t = t * (2 if holder else 3)
        for s in seq:
            t = t + s
        return t * holder.k * (1 if holder == 5 else 2)

    fast = compile(f)
    call(fast, x())
    Holder.__bool__ = lambda self: False
    call(fast, x())
    Holder.__eq__ = lambda self, other: True
    call(fast, x())
    Seq.__iter__ = lambda self: iter([10.0])
    call(fast, x())
    Holder.__getattribute__ = lambda self, name: 100.0
    call(fast, x())
    del Holder.__getattribute__
    Holder.k = property(lambda self: -1.0)
    call(fast, x())
    Holder.k = property(lambda self: -2.0)
    call(fast, x())


@case
def class_of_the_target_changed(compile, call):
    class A:
        def __call__(self, t):
            return t + 1

    class B:
        def __call__(self, t):
            return t + 2

    a = A()
    fast = compile(a)
    call(fast, x())
    call(fast, x())
    A.__call__ = lambda self, t: t * 7
    call(fast, x())
    a.__class__ = B
    call(fast, x())
    B.__call__ = lambda self, t: t * 9
    call(fast, x())


@case
def class_of_a_module_changed(compile, call):
    net = nn.Sequential(nn.ReLU(), nn.Linear(4, 4))
    fast = compile(net)
    call(fast, x())
    net[0].__class__ = nn.Tanh
    call(fast, x())
    net[1].__dict__ = dict(net[1].__dict__, bias=None)
    call(fast, x())


@case
def module_call_patched(compile, call):
    net = nn.Sequential(nn.ReLU(), nn.Linear(4, 4))
    fast = compile(net)
    call(fast, x())
    old = nn.Module.__call__
    try:
        nn.Module.__call__ = lambda self, *a, **k: old(self, *a, **k) + 1
        call(fast, x())
    finally:
        nn.Module.__call__ = old
    call(fast, x())


@case
def functions_patched(compile, call):
    net = nn.Sequential(nn.ReLU(), nn.Linear(4, 4))
    fast = compile(net)
    call(fast, x())
    old = F.relu
    try:
        F.relu = lambda t, inplace=False: t * 100
        call(fast, x())
    finally:
        F.relu = old
    old = torch.relu
    try:
        torch.relu = torch.tanh
        call(fast, x())
    finally:
        torch.relu = old
    call(fast, x())


@case
def tensor_methods_patched(compile, call):
    fast = compile(lambda t: t.relu() + (t * 2).flip(0))
    call(fast, x())
    torch.Tensor.relu = lambda self: self * 100
    try:
        call(fast, x())
        call(fast, x())
    finally:
        del torch.Tensor.relu
    call(fast, x())


@case
def inherited_attributes(compile, call):
    class Base:
        k = 1.0

    class Mid(Base):
        pass

    class Leaf(Mid):
        pass

    leaf = Leaf()
    fast = compile(lambda t: t * leaf.k)
    call(fast, x())
    Base.k = 2.0
    call(fast, x())
    Mid.k = 3.0
    call(fast, x())
    leaf.k = 4.0
    call(fast, x())
    del leaf.k
    call(fast, x())

    class Other(Base):
        k = 7.0

    Leaf.__bases__ = (Other,)
    call(fast, x())


@case
def metaclass_state(compile, call):
    class Meta(type):
        factor = 2.0

        def __instancecheck__(cls, o):
            return cls.__dict__.get("yes", False)

        def __contains__(cls, o):
            return False

    class K(metaclass=Meta):
        pass

    fast = compile(lambda t: t * K.factor + isinstance(t, K) + (3 in K))
    call(fast, x())
    K.yes = True
    call(fast, x())
    Meta.factor = 5.0
    call(fast, x())
    K.factor = 6.0
    call(fast, x())
    Meta.__contains__ = lambda cls, o: True
    call(fast, x())


@case
def abstract_classes_registered_later(compile, call):
    class Thing:
        pass

    class Abstract(collections.abc.Sized):
        pass

    thing = Thing()
    fast = compile(lambda t: t + 1 if isinstance(thing, Abstract) else t - 1)
    call(fast, x())
    call(fast, x())
    Abstract.register(Thing)
    call(fast, x())


@case
def subclasses_made_later(compile, call):
    class Base:
        pass

    fast = compile(lambda t: t + len(Base.__subclasses__()))
    call(fast, x())
    kept = type("More", (Base,), {})
    call(fast, x())
    call.show(kept.__name__)


@case
def slots_and_properties(compile, call):
    class Slotted:
        __slots__ = ("a", "b")

    s = Slotted()
    s.a = 1.0
    fast = compile(lambda t: t * s.a + getattr(s, "b", 5.0))
    call(fast, x())
    s.a = 2.0
    call(fast, x())
    s.b = 3.0
    call(fast, x())
    del s.b
    call(fast, x())


@pytest.mark.parametrize("program", CASES, ids=lambda program: program.__name__)
def test_as_eager(program):
    battery.check(program)
