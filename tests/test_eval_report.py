"""What the evaluator reports: the next call notices that state read from outside has changed, and what cannot be
followed stays eager. Each program is compiled, called, disturbed, and compared with eager."""

import collections
import contextvars
import functools

import pytest

torch = pytest.importorskip("torch")
_C = pytest.importorskip("framelift._C")
if not _C._eval_supported()[0]:
    pytest.skip(_C._eval_supported()[1], allow_module_level=True)

SCALE = 2.0
TABLE = {"a": 1.0, "b": 5.0}
LIST = [1.0, 2.0]
VAR = contextvars.ContextVar("VAR", default=3.0)


def double(x):
    return x * 2


class Config:
    factor = 3.0

    def __init__(self):
        self.bias = 1.0


class Slots:
    __slots__ = ("v",)

    def __init__(self, v):
        self.v = v


class Hooked:
    def __init__(self):
        self.store = {"w": 4.0}

    def __getattr__(self, name):
        try:
            return self.__dict__["store"][name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def prop(self):
        return self.store["w"] + 1

    def __len__(self):
        return len(self.store)

    def __iter__(self):
        return iter(self.store.values())


def make(body, **state):
    """A module whose forward is body(self, x)."""
    module = type("Program", (torch.nn.Module,), {"forward": body})()
    for name, value in state.items():
        setattr(module, name, value)
    return module.eval()


def call(fn, x):
    with torch.no_grad():
        return fn(x)


def set_global(name, value):
    globals()[name] = value


def closure_module():
    factor = 2.0

    def forward(self, x):
        return x * factor

    def disturb(m):
        nonlocal factor
        factor = 7.0

    return make(forward), disturb


def defaulted(self, x, k=2.0):
    return x * k


def patched_defaults(m):
    type(m).forward.__defaults__ = (9.0,)


CASES = {
    "global": (lambda: make(lambda s, x: x * SCALE), lambda m: set_global("SCALE", 3.0)),
    "global function": (lambda: make(lambda s, x: double(x)), lambda m: set_global("double", lambda x: x * 5)),
    "instance attribute": (lambda: make(lambda s, x: x * s.c.bias, c=Config()), lambda m: setattr(m.c, "bias", 4.0)),
    "class attribute": (lambda: make(lambda s, x: x * s.c.factor, c=Config()),
                        lambda m: setattr(Config, "factor", 8.0)),
    "shadowed class attribute": (lambda: make(lambda s, x: x * s.c.factor, c=Config()),
                                 lambda m: setattr(m.c, "factor", 6.0)),
    "slot": (lambda: make(lambda s, x: x * s.c.v, c=Slots(2.0)), lambda m: setattr(m.c, "v", 5.0)),
    "dict item": (lambda: make(lambda s, x: x * TABLE["a"]), lambda m: TABLE.update(a=9.0)),
    "dict get": (lambda: make(lambda s, x: x * s.t.get("z", 1.0), t={}), lambda m: m.t.update(z=2.0)),
    "dict contains": (lambda: make(lambda s, x: x * 2 if "z" in s.t else x, t={}), lambda m: m.t.update(z=2.0)),
    "list item": (lambda: make(lambda s, x: x * s.v[0], v=[2.0]), lambda m: m.v.__setitem__(0, 4.0)),
    "list length": (lambda: make(lambda s, x: x * len(s.v), v=[2.0]), lambda m: m.v.append(1)),
    "list truth": (lambda: make(lambda s, x: x * 2 if s.v else x, v=[]), lambda m: m.v.append(1)),
    "loop over a list": (lambda: make(lambda s, x: x * sum(i for i in s.v), v=[2.0]), lambda m: m.v.append(1.0)),
    "set": (lambda: make(lambda s, x: x * (2 if 3 in s.v else 5), v={1}), lambda m: m.v.add(3)),
    "deque": (lambda: make(lambda s, x: x * max(s.v), v=collections.deque([2.0])), lambda m: m.v.append(9.0)),
    "nested list to C": (lambda: make(lambda s, x: x * sum(map(sum, s.v)), v=[[1.0], [2.0]]),
                         lambda m: m.v[1].append(3.0)),
    "closure": (closure_module, None),
    "defaults": (lambda: make(defaulted), patched_defaults),
    "__getattr__": (lambda: make(lambda s, x: x * s.h.w, h=Hooked()), lambda m: m.h.store.update(w=1.5)),
    "property": (lambda: make(lambda s, x: x * s.h.prop, h=Hooked()), lambda m: m.h.store.update(w=2.5)),
    "__len__": (lambda: make(lambda s, x: x * len(s.h), h=Hooked()), lambda m: m.h.store.update(q=1.0)),
    "__iter__": (lambda: make(lambda s, x: x * sum(s.h), h=Hooked()), lambda m: m.h.store.update(w=6.0)),
    "isinstance": (lambda: make(lambda s, x: x * 2 if isinstance(s.c, Config) else x, c=Config()),
                   lambda m: setattr(m.c, "__class__", type("Other", (), {}))),
    "hasattr": (lambda: make(lambda s, x: x * 2 if hasattr(s.c, "extra") else x, c=Config()),
                lambda m: setattr(m.c, "extra", 1)),
    "getattr default": (lambda: make(lambda s, x: x * getattr(s.c, "extra", 1.0), c=Config()),
                        lambda m: setattr(m.c, "extra", 5.0)),
    "partial": (lambda: make(lambda s, x: s.p(x), p=functools.partial(lambda k, x: x * k["v"], {"v": 2.0})),
                lambda m: m.p.args[0].update(v=3.0)),
    "context variable": (lambda: make(lambda s, x: x * VAR.get()), lambda m: VAR.set(11.0)),
    "method": (lambda: make(lambda s, x: s.step(x), step=double), lambda m: setattr(m, "step", lambda x: x * 13)),
    "submodule": (lambda: make(lambda s, x: s.act(x) * 2, act=torch.nn.ReLU()),
                  lambda m: setattr(m, "act", torch.nn.Sigmoid())),
    "train mode": (lambda: make(lambda s, x: x * 2 if s.training else x), lambda m: m.train()),
    "forward hook": (lambda: make(lambda s, x: s.act(x), act=torch.nn.ReLU()),
                     lambda m: m.act.register_forward_hook(lambda mod, a, out: out * 3)),
}  # fmt: skip


@pytest.fixture(autouse=True)
def restore():
    saved = {k: globals()[k] for k in ("SCALE", "double")}
    table, factor, token = dict(TABLE), Config.factor, VAR.set(3.0)
    yield
    globals().update(saved)
    TABLE.clear()
    TABLE.update(table)
    Config.factor = factor
    VAR.reset(token)


@pytest.mark.parametrize("name", CASES)
def test_a_change_outside_is_seen(name):
    build, disturb = CASES[name]
    made = build()
    module, disturb = made if disturb is None else (made, disturb)
    fast = _C.compile(module, {})
    x = torch.randn(3, 4)
    for _ in range(3):
        torch.testing.assert_close(call(fast, x), call(module, x))
    report = _C.report(fast)
    assert report["replayed"] >= 1, report["native_reason"]
    before = call(module, x)
    disturb(module)
    after = call(module, x)
    assert not torch.equal(before, after), "the test disturbs nothing"
    for _ in range(3):
        torch.testing.assert_close(call(fast, x), after)


def counter(s, x):
    s.n = s.n + 1
    return x * s.n


def appends(s, x):
    s.log.append(1)
    return x * len(s.log)


def outside_iterator(s, x):
    return x * next(s.it)


EAGER = {
    "own counter": (lambda: make(counter, n=0), None),
    "grows a list": (lambda: make(appends, log=[]), None),
    "iterator": (lambda: make(outside_iterator, it=iter([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])), "iterator from outside"),
}


@pytest.mark.parametrize("name", EAGER)
def test_what_cannot_be_followed_stays_eager(name):
    build, reason = EAGER[name]
    module, twin = build(), build()
    fast = _C.compile(module, {})
    x = torch.randn(3, 4)
    for _ in range(4):
        torch.testing.assert_close(call(fast, x), call(twin, x))
    report = _C.report(fast)
    assert report["replayed"] == 0
    if reason:
        assert any(g["reason"].startswith(reason) for g in report["give_ups"])


def generator_read(s, x):
    return x * next(v for v in s.v if v > 1)


def makes_objects(s, x):
    c = Config()
    c.bias = 4.0
    d = collections.defaultdict(list)
    d["k"].append(c.bias)
    out = [v * 2 for v in d["k"]]
    out.extend(sorted({"b": 1.0, "a": 2.0}.values()))
    return x * sum(out) * len(dict(out=out)["out"])


def temporary_state(s, x):
    token = VAR.set(5.0)
    try:
        return x * VAR.get()
    finally:
        VAR.reset(token)


def nested_no_grad(s, x):
    with torch.no_grad():
        y = x * 2
    with torch.enable_grad():
        return y if torch.is_grad_enabled() else y * 3


@pytest.mark.parametrize("body", [generator_read, makes_objects, temporary_state, nested_no_grad])
def test_what_a_call_makes_for_itself_is_no_obstacle(body):
    module = make(body, v=[1.0, 2.0, 3.0])
    fast = _C.compile(module, {})
    x = torch.randn(3, 4)
    for _ in range(3):
        torch.testing.assert_close(call(fast, x), call(module, x))
    report = _C.report(fast)
    assert report["recorded"] == 1 and report["replayed"] == 2, report["native_reason"]
