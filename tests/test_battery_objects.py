"""Containers and objects outside the call: compiled, a program is what it is plainly (battery.py)."""

import collections
import functools
import threading
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import battery

CASES = battery.Cases()
case, x = CASES.add, battery.x


@case
def containers_of_every_kind(compile, call):
    class Deque(collections.deque):
        pass

    class List(list):
        pass

    class Dict(dict):
        def __missing__(self, key):
            return 11.0

    state = SimpleNamespace(
        deque=collections.deque([1.0, 2.0]),
        sub=Deque([1.0]),
        lst=List([1.0]),
        d=Dict(a=1.0),
        raw=bytearray(b"a"),
        counter=collections.Counter("aab"),
        default=collections.defaultdict(int, k=1),
        odict=collections.OrderedDict(a=1),
        chain=collections.ChainMap({"a": 1.0}, {"b": 2.0}),
        user=collections.UserDict(a=1.0),
        fset=frozenset([1]),
    )
    state.keys = state.odict.keys()
    state.values = {"p": 1.0}
    state.view = state.values.values()

    def f(t):
        return [
            t * sum(state.deque),
            t * len(state.sub),
            t * sum(state.sub),
            t * sum(state.lst),
            t * state.d["a"],
            t * state.d["zz"],
            t * len(state.raw),
            t * state.raw[0],
            t * state.counter["a"],
            t * state.counter["q"],
            t * state.default["k"],
            t * len(state.odict),
            t * state.chain["b"],
            t * state.user["a"],
            t * len(list(state.odict)),
            t * (3.0 in state.deque),
            t * sum(v for v in state.deque),
            "".join(state.odict),
            list(reversed(state.deque)),
            sorted(state.d),
            max(state.lst),
            t * any(s > 5 for s in state.sub),
        ]

    fast = compile(f)
    call(fast, x())
    changes = [
        lambda: state.deque.append(3.0),
        lambda: state.deque.rotate(),
        lambda: state.sub.append(9.0),
        lambda: state.lst.append(4.0),
        lambda: state.d.update(a=3.0),
        lambda: state.d.update(zz=3.0),
        lambda: state.raw.extend(b"b"),
        lambda: state.raw.__setitem__(0, 7),
        lambda: state.counter.update("aq"),
        lambda: state.default.update(k=4),
        lambda: state.odict.update(b=1),
        lambda: state.odict.move_to_end("a"),
        lambda: state.chain.maps[1].update(b=5.0),
        lambda: state.chain.update(b=8.0),
        lambda: state.user.update(a=3.0),
    ]
    for change in changes:
        change()
        call(fast, x())


@case
def bytearrays_outside(compile, call):
    raw = bytearray(b"ab")
    fast = compile(lambda t: t * len(raw))
    call(fast, x())
    raw.append(1)
    call(fast, x())
    second = compile(lambda t: t * raw[0])
    call(second, x())
    raw[0] = 3
    call(second, x())
    third = compile(lambda t: [t * v for v in raw])
    call(third, x())
    raw[1] = 5
    call(third, x())


@case
def deque_subclasses_outside(compile, call):
    class Deque(collections.deque):
        pass

    ring = Deque([1.0])
    fast = compile(lambda t: t * sum(ring))
    call(fast, x())
    ring.append(9.0)
    call(fast, x())
    second = compile(lambda t: t * ring[0])
    call(second, x())
    ring[0] = 5.0
    call(second, x())


@case
def views_outside(compile, call):
    table = {"a": 1.0}
    view, keys, items = table.values(), table.keys(), table.items()
    memory = memoryview(bytearray(b"ab"))
    programs = [
        lambda t: [t * v for v in view],
        lambda t: t * len(keys),
        lambda t: t * sum(view),
        lambda t: t * ("b" in keys),
        lambda t: [t * v for _, v in items],
        lambda t: t * memory[0],
        lambda t: t * sum(memory),
        lambda t: t * len(list(keys)),
        lambda t: t * len([*view]),
        lambda t: (t, *keys),
    ]
    fast = [compile(p) for p in programs]
    for i in range(3):
        for f in fast:
            call(f, x())
        table["abc"[i]] = 5.0 + i
        memory[0] = i


@case
def nested_containers(compile, call):
    tree = {"a": [{"b": [1.0, (2.0, [3.0])]}]}
    fast = compile(lambda t: t * tree["a"][0]["b"][1][1][0])
    call(fast, x())
    tree["a"][0]["b"][1][1][0] = 5.0
    call(fast, x())
    deep = [[[[[[[1.0]]]]]]]
    second = compile(lambda t: t * (deep == [[[[[[[1.0]]]]]]]))
    call(second, x())
    deep[0][0][0][0][0][0][0] = 2.0
    call(second, x())
    third = compile(lambda t: t * len(repr(deep)))
    call(third, x())
    deep[0][0][0][0][0][0][0] = 222.0
    call(third, x())


@case
def partials(compile, call):
    def g(t, a, b=1.0):
        return t * a + b

    part = functools.partial(g, a=2.0)
    fast = compile(lambda t: part(t))
    direct = compile(functools.partial(g, a=2.0, b=3.0))
    for _ in range(2):
        call(fast, x())
        call(direct, x())
    part.keywords["a"] = 5.0
    call(fast, x())
    part.__setstate__((g, (), {"a": 1.0, "b": 9.0}, {}))
    call(fast, x())


@case
def cached_functions(compile, call):
    value = [1.0]

    @functools.lru_cache
    def scale(n):
        return value[0] * n

    fast = compile(lambda t: t * scale(t.shape[0]))
    call(fast, x())
    value[0] = 5.0
    call(fast, x())
    scale.cache_clear()
    call(fast, x())
    call(fast, x())


@case
def cached_functions_that_do_more_than_answer(compile, call):
    made = []

    @functools.lru_cache(maxsize=2)
    def table(n):
        made.append(n)
        return torch.arange(n, dtype=torch.float32)

    def f(t, n):
        return t * table(n)[-1], table(n), len(made)

    fast = compile(f)
    for n in (2, 2, 3, 2, 3, 4, 4, 2):
        call(fast, x(), n)
        call.show(made)
    table(2).mul_(3)
    call(fast, x(), 2)
    call(fast, x(), 2)
    table.cache_clear()
    call(fast, x(), 2)
    call(fast, x(), 2)


@case
def cached_functions_that_raise_at_first(compile, call):
    found = []

    @functools.lru_cache
    def scale(n):
        return found[0] * n

    def f(t):
        try:
            return t * scale(2)
        except IndexError as error:
            return t, str(error)

    fast = compile(f)
    for k in range(6):
        call(fast, x())
        if k == 2:
            found.append(3.0)


@case
def cached_functions_of_tensors(compile, call):
    """Made in the call, an argument, a weight: who has an answer, and whose it is."""
    weight, made = torch.arange(4.0), []

    @functools.lru_cache(maxsize=2)
    def scaled(t, k=2):
        made.append(tuple(t.shape))
        return t * k

    def of_its_own(t):
        return scaled(t + 1) - scaled(t - 1, k=3)

    def of_an_argument(t):
        return scaled(t) + 1, scaled(t)

    def of_a_weight(t):
        return t + scaled(weight)

    def twice(t):
        y = t + 1
        first = scaled(y)
        y.mul_(2)
        return first - t, scaled(y) is first

    def of_a_view(t):
        return scaled(t[0]) + 1

    for f in (of_its_own, of_an_argument, of_a_weight, twice, of_a_view):
        fast, t = compile(f), x()
        for k in range(6):
            call(fast, t)
            call.show(list(made))
            if k == 2:
                t.add_(1)
                weight.add_(1)
            if k == 3:
                scaled.cache_clear()
        call(fast, x())


@case
def cached_functions_that_forget(compile, call):
    """Each answer drops another one: equal, but a new tensor in each call."""

    @functools.lru_cache(maxsize=1)
    def ramp(net, shape, dtype):
        return torch.arange(shape[-1], dtype=dtype) * net.scale

    class Net(nn.Module):
        scale = 2.0

        def forward(self, t):
            return t * ramp(self, t.shape, t.dtype) + ramp(self, t.T.shape, t.dtype)[0]

    net = Net()
    fast = compile(net)
    for k in range(12):
        call(fast, x() if k % 3 else x(2, 4))
        if k == 5:
            net.scale = 3.0
        if k == 8:
            ramp(net, torch.Size([3, 4]), torch.float32).mul_(5)


@case
def cached_functions_whose_answers_leave(compile, call):
    @functools.lru_cache(maxsize=1)
    def ramp(n):
        return torch.arange(n, dtype=torch.float32)

    def given_back(t):
        return ramp(3), ramp(t.shape[-1]), t * ramp(2)[0]

    def written(t):
        ramp(t.shape[0])
        return t * ramp(t.shape[-1]).add_(1)

    kept = {}

    def stored(t):
        kept["ramp"] = ramp(2)
        return t * ramp(t.shape[-1])

    for f in (given_back, written, stored):
        fast = compile(f)
        for _ in range(5):
            call(fast, x())
            call.show(kept, ramp(4))


@case
def cached_functions_with_another_function_named(compile, call):
    @functools.lru_cache
    def scaled(t):
        return t * 2

    scaled.__wrapped__ = lambda t: t * 3
    fast = compile(lambda t: scaled(t + 1))
    for _ in range(4):
        call(fast, x())


@case
def cached_functions_that_print(compile, call):
    said = []

    @functools.lru_cache
    def scaled(t, how):
        said.append(how)
        return t * 2

    def f(t, how):
        y = scaled(t + 1, how)
        print(end="")
        return y - scaled(t + 2, how=how)

    fast = compile(f)
    for how in ("a", "a", "b", "a", "b"):
        call(fast, x(), how)
        call.show(said)


@case
def cached_properties(compile, call):
    class Net(nn.Module):
        k = 2.0

        @functools.cached_property
        def scale(self):
            return self.k * 3

        def forward(self, t):
            return t * self.scale

    net = Net()
    fast = compile(net)
    call(fast, x())
    net.k = 5.0
    call(fast, x())
    del net.scale
    call(fast, x())
    call(fast, x())


@case
def weak_references(compile, call):
    class Node:
        k = 3.0

    node = Node()
    ref = weakref.ref(node)
    table = weakref.WeakValueDictionary(a=node)
    fast = compile(lambda t: t * (ref().k if ref() is not None else -1.0) + len(table))
    call(fast, x())
    node.k = 5.0
    call(fast, x())


@case
def environment(compile, call):
    import os

    fast = compile(lambda t: t * float(os.environ.get("FL_BATTERY", "1")))
    os.environ.pop("FL_BATTERY", None)
    call(fast, x())
    os.environ["FL_BATTERY"] = "3"
    call(fast, x())
    del os.environ["FL_BATTERY"]
    call(fast, x())


@case
def context_variables(compile, call):
    import contextvars

    var = contextvars.ContextVar("var", default=1.0)
    fast = compile(lambda t: t * var.get())
    call(fast, x())
    token = var.set(4.0)
    call(fast, x())
    var.reset(token)
    call(fast, x())
    context = contextvars.copy_context()
    context.run(var.set, 9.0)
    call(lambda t: context.run(fast, t), x())
    call(fast, x())


@case
def thread_identity(compile, call):
    table = {}
    local = threading.local()
    local.k = 1.0
    fast = compile(lambda t: t * table[threading.get_ident()])
    second = compile(lambda t: t * getattr(local, "k", 7.0))
    third = compile(lambda t: (t, threading.current_thread().name))

    def body(k, name):
        with torch.no_grad():
            table[threading.get_ident()] = k
            for f in (fast, second, third):
                call(f, x())
                call(f, x())

    for k in (1.0, 2.0, 3.0):
        thread = threading.Thread(target=body, args=(k, "t"), name=f"thread {k}")
        body(10 * k, "main")
        thread.start()
        thread.join()


@case
def time_and_random_numbers(compile, call):
    import random

    random.seed(3)
    fast = compile(lambda t: t * random.random() + random.randint(0, 9))
    for _ in range(3):
        call(fast, x())
    import numpy as np

    np.random.seed(3)
    fast = compile(lambda t: t * float(np.random.rand()))
    for _ in range(3):
        call(fast, x())
    items = [1.0, 2.0, 3.0]
    fast = compile(lambda t: t * random.choice(items))
    for _ in range(3):
        call(fast, x())


@pytest.mark.parametrize("program", CASES, ids=lambda program: program.__name__)
def test_as_eager(program):
    battery.check(program)
