"""Small random PyTorch programs, for comparing eager and framelift on values, effects and exceptions.

A program is source text that defines `step(x, y, n, flag, items, table, obj)` and module globals. Each side executes
the text in its own namespace with its own copies of all arguments, so that effects can be compared too.
"""

from __future__ import annotations

import copy
import math
import sys
import types
from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st

TENSORS = ("x", "y", "a", "b", "c", "G")
UNARY = (
    "torch.relu({0})",
    "{0}.tanh()",
    "{0} * 2.0",
    "{0} + 1",
    "-{0}",
    "{0}.abs()",
    "torch.sigmoid({0})",
    "{0}.clone()",
    "{0}.transpose(0, 1).contiguous().transpose(0, 1)",
    "{0}.reshape(-1).reshape(3, 4)",
    "{0} - {0}.mean(dim=1, keepdim=True)",
    "torch.softmax({0}, dim=-1)",
    "{0}.clamp(-1.0, 1.0)",
    "F.gelu({0})",
    "{0}.sum(0).expand(3, 4)",
    "torch.cat([{0}[:, :2], {0}[:, 2:]], 1)",
    "{0} / (1 + {0}.abs())",
    "torch.where({0} > 0, {0}, {0} * 0.1)",
    "{0}.flip(0)",
    "{0} @ W",
    "F.layer_norm({0}, (4,))",
    "({0} > 0.2).float()",
    "torch.stack([{0}, {0}]).sum(0)",
    "{0}.sort(dim=1)[0]",
    "obj.lin({0})",
    "helper({0})",
    "{0} * obj.scale",
    "{0} * K",
    "{0} + n",
    "{0} * (2 if flag else 3)",
    "{0} + torch.arange(4, dtype={0}.dtype)",
    "{0}.masked_fill({0} < 0, 0.5)",
    "{0}.view(4, 3).t()",
    "{0}[torch.arange(3), :]",
    "{0} * len(items)",
    "{0} * table.get('k', 1)",
    "obj.method({0}, n)",
    "{0}.to(torch.float64).to(torch.float32)",
    "{0}[[2, 0, 1]]",
    "{0}.pow(2).mean(-1, keepdim=True).rsqrt() * {0}",
)
BINARY = (
    "{0} + {1}",
    "{0} * {1}",
    "{0} - {1}",
    "torch.maximum({0}, {1})",
    "{0} + {1}.mean()",
    "torch.matmul({0}, {1}.t()) @ {1}",
    "torch.where({0} > {1}, {0}, {1})",
    "torch.addcmul({0}, {0}, {1})",
)
INPLACE = (
    "{0}.add_(1.0)",
    "{0}.mul_(0.5)",
    "{0} += {1}",
    "{0}[0] = {1}[1]",
    "{0}[:, 1].zero_()",
    "{0}.copy_({1})",
    "{0}.relu_()",
    "{0}[0].add_({1}[2])",
    "{0}.t().mul_(1.5)",
)
EFFECTS = (
    "items.append(n)",
    "items.append({0}.shape[0])",
    "table['k'] = n + 1",
    "table[n] = {0}",
    "obj.scale = n * 0.5",
    "obj.last = {0}",
    "obj.count += 1",
    "items.insert(0, n)",
    "table.pop('k', None)",
    "COUNTS['calls'] += 1",
    "global K; K = K",
    "obj.buf.add_(1)",
    "obj.buf = {0}.sum()",
    "items[-1:] = []",
    "table.update(z=n)",
    "obj.history.append({0}.mean())",
    "setattr(obj, 'late', n)",
)
CONDITIONS = (
    "n > 2",
    "flag",
    "not flag",
    "len(items) > 2",
    "{0}.shape[0] == 3",
    "'k' in table",
    "{0}.sum() > 0",
    "obj.scale > 1",
    "isinstance(n, int)",
    "n % 2 == 0 and flag",
    "{0}.max().item() > 0.5",
    "K == 2",
    "obj.mode == 'a'",
    "{0}.dim() == 2",
    "items and items[-1] == n",
    "getattr(obj, 'late', None) is None",
    "COUNTS['calls'] < 2",
    "torch.is_grad_enabled()",
    "{0} is x",
    "type(obj).__name__ == 'Obj'",
)
SCALARS = (
    "{0}.sum().item()",
    "float({0}.mean())",
    "int({0}.abs().max())",
    "{0}.shape[1]",
    "len(items)",
    "n * 2 + 1",
    "sum(items)",
    "max([n, 1])",
    "K",
    "obj.scale",
    "{0}.numel()",
    "(lambda q: q + n)(1)",
    "sum(i for i in range(n + 1))",
    "len([i for i in items if i])",
    "int(flag)",
    "table.get('k', 7)",
    "dict(a=n)['a']",
    "min(n, 3)",
    "round(1.25 * n, 1)",
    "divmod(n + 7, 3)[1]",
    "len(f'{{n}}:{{flag}}')",
)
LOOPS = (
    "for i in range({k})",
    "for i in items[:3]",
    "for i, _ in enumerate(items[:2])",
    "for i in reversed(range({k}))",
    "for i, j in zip(range({k}), items)",
    "for i in [j * 2 for j in range({k})]",
    "for i in sorted(items)[:2]",
    "for i in (j for j in range({k}))",
    "for i in obj.weights_list",
)
# Code that is not understood: C functions with effects, sources of numbers, other libraries, and Python under C.
BREAKS = (
    "print(n, {0}.shape, flag, file=LOG)",
    "print('s', type(s).__name__, [n, items], file=LOG)",
    "LOG.write('x')",
    "s = RNG.random()",
    "s = RNG.randint(0, 2)",
    "{2} = {0} * RNG.random()",
    "s = 1 if RNG.random() < 0.5 else 2",
    "s = time.time() > 0",
    "T.append(time.perf_counter())",
    "{2} = torch.from_numpy(np.tanh({0}.numpy()))",
    "{2} = torch.from_numpy({0}.numpy())",
    "{2} = torch.from_numpy({0}.numpy()); {2}.add_(1.0)",
    "np.add({0}.numpy(), 1.0, out={0}.numpy())",
    "np.multiply({0}[0].numpy(), 2.0, out={0}[0].numpy())",
    "s = float({0}.numpy().shape[0])",
    "s = {0}.sum(1).tolist()[0]",
    "operator.iadd(items, [n])",
    "operator.setitem(table, 'k', n + 1)",
    "operator.setitem(table, 'k', n + 1); s = table['k']",
    "operator.setitem(table, 't', {0})",
    "operator.setitem(obj.__dict__, 'scale', 0.25 * n)",
    "operator.delitem(table, 'k')",
    "operator.iadd(obj.history, [{0}])",
    "operator.iadd(ITEMS, [n])",
    "operator.iadd(ITEMS, [n]); s = len(ITEMS)",
    "s = len(ITEMS); ITEMS.append(n); print(ITEMS, file=LOG); s = len(ITEMS)",
    "operator.setitem(TABLE, 'k', n + 1); s = TABLE['k']",
    "TABLE['n'] = n; operator.setitem(TABLE, 'm', TABLE['n']); s = len(TABLE)",
    "TABLE['t'] = {0}; HELD.append({0}); KEEP(TABLE['t']); {2} = TABLE['t'] * 2",
    "KEEP({0}); {2} = {0}.view(4, 3).t().contiguous().reshape(3, 4); {2}.add_(1.0)",
    "KEEP({2}); {2}.add_(1.0)",
    "s = BUMP(obj); {2} = {0} * obj.count",
    "obj.count += 1; s = BUMP(obj)",
    "{2} = METHOD(obj)",
    "s = len([i for i in ITEMS if print(i, file=LOG) is None])",
    "for k, v in TABLE.items():; print(k, file=LOG); s = v",
    "K2 = lambda t: (print('k2', file=LOG), t * 2)[1]; {2} = K2({0})",
    "{2} = operator.iadd({2}, 1)",
    "operator.imul({2}, 0.5)",
    "heapq.heappush(items, n)",
    "s = operator.methodcaller('bump', n)(obj)",
    "obj.count += 1; s = operator.methodcaller('bump', 2)(obj)",
    "{2} = operator.methodcaller('method', {0}, n)(obj)",
    "s = len(copy.deepcopy(items))",
    "{2} = copy.copy({0})",
    "{2} = Square.apply({0})",
    "{2} = obj.noisy({0}, n)",
    "{2} = sum([obj.noisy({0}, i) for i in range(2)])",
    "{2} = noisy({0}, lambda t: t + s * 0.5)",
    "s = [noisy(t, abs).shape[0] for t in ({0}, {1})][0]",
    "obj.last = {0}; print('last', file=LOG); {2} = obj.last + 1",
    "table['t'] = {0}; print('table', file=LOG); {0}.add_(1.0)",
    "COUNTS['calls'] += 1; print('counts', file=LOG); s = COUNTS['calls']",
    "obj.lin.weight = torch.nn.Parameter(torch.full((4, 4), 0.5))",
    "operator.setitem(obj.lin._parameters, 'bias', None)",
    "sys.stdout.isatty()",
    "s = ENV.get('missing', n)",
    "q = {0}[0]; print('view', file=LOG); q.mul_(2.0)",
    "q = {0}.view(4, 3); operator.imul(q, 2.0)",
)
RESULTS = (
    "{0}",
    "({0}, {1})",
    "[{0}, n]",
    "{{'out': {0}, 'n': n}}",
    "Pair({0}, {1})",
    "{0}, obj.scale, items",
    "s",
    "{0}.sum().item()",
    "OrderedDict(a={0}, b={1})",
    "Out({0}, s)",
    "({0}, {0})",
    "x, {0}",
    "{0}[1:], s",
    "{0}.t()",
    "None",
    "tuple([{0}] * 2)",
    "{0}.shape",
    "x[0], {0}",
    "obj.lin.weight, {0}",
    "({0}, ({1}, [s]))",
)

PRELUDE = """
import copy, heapq, io, math, operator, os, random, sys, time
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
import numpy as np
import torch
import torch.nn.functional as F

LOG = io.StringIO()
RNG = random.Random(7)
T = []
ITEMS = [1]
TABLE = {"k": 1}
HELD = []
KEEP = HELD.append
BUMP = operator.methodcaller("bump", 2)
METHOD = operator.methodcaller("method", torch.ones(3, 4), 2)
ENV = os.environ

class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * x

def noisy(t, f):
    total = [t]
    for i, k in enumerate(total):
        print(i, file=LOG)
        total = [f(k), i]
    return total[0]

Pair = namedtuple("Pair", "first second")

@dataclass
class Out:
    value: object
    extra: object = None

K = 2
COUNTS = {"calls": 0}
G = torch.linspace(-1, 1, 12).reshape(3, 4)
W = torch.linspace(-0.5, 0.5, 16).reshape(4, 4)

def helper(t, k=3):
    def inner(u):
        return u * k + K
    return inner(t) if t.shape[0] == 3 else t

class Obj:
    def __init__(self):
        self.scale = 1.5
        self.mode = "a"
        self.count = 0
        self.buf = torch.zeros(())
        self.history = []
        self.weights_list = [1, 2]
        self.lin = torch.nn.Linear(4, 4)
        with torch.no_grad():
            self.lin.weight.copy_(torch.linspace(-1, 1, 16).reshape(4, 4))
            self.lin.bias.copy_(torch.linspace(0, 1, 4))
    @property
    def double(self):
        return self.scale * 2
    def method(self, t, k):
        return t * self.double + k
    def bump(self, k):
        self.count += k
        return self.count
    def noisy(self, t, k):
        local = dict(t=t, k=k)
        print("noisy", k, file=LOG)
        return self.method(local["t"], local["k"])
"""


@dataclass
class Program:
    source: str
    calls: list = field(default_factory=list)  # one dict of changes per call

    def __str__(self):
        return self.source + "\n# calls: " + repr(self.calls)


@st.composite
def _expr(draw, depth=0):
    kind = draw(st.integers(0, 9))
    pick = lambda: draw(st.sampled_from(TENSORS))  # noqa: E731
    if kind < 6 or depth > 1:
        return draw(st.sampled_from(UNARY)).format(pick())
    return draw(st.sampled_from(BINARY)).format(pick(), pick())


@st.composite
def _block(draw, depth):
    lines = []
    for _ in range(draw(st.integers(1, 4 if depth == 0 else 2))):
        lines += draw(_statement(depth))
    return lines


@st.composite
def _statement(draw, depth):
    pick = lambda: draw(st.sampled_from(TENSORS))  # noqa: E731
    kind = draw(st.integers(0, 21))
    if kind > 19:
        line = draw(st.sampled_from(BREAKS)).format(pick(), pick(), draw(st.sampled_from("abc")))
        first, *rest = line.split("; ")
        return [first] + ["    " + r if first.endswith(":") else r for r in rest]
    if kind < 9 or (depth >= 2 and kind >= 15):
        return [f"{draw(st.sampled_from('abc'))} = {draw(_expr())}"]
    if kind < 11:
        return [f"s = {draw(st.sampled_from(SCALARS)).format(pick())}"]
    if kind == 11:
        return [draw(st.sampled_from(INPLACE)).format(draw(st.sampled_from("abcxy")), pick())]
    if kind == 12:
        return [draw(st.sampled_from([e for e in EFFECTS if "global" not in e])).format(pick())]
    if kind == 13:
        return ["a = a * s"] if draw(st.booleans()) else ["a = a + float(s)"]
    if kind == 14:
        return [f"if {draw(st.sampled_from(CONDITIONS)).format(pick())}: return {draw(_result())}"]
    body = ["    " + line for line in draw(_block(depth + 1))]
    if kind in (15, 16):
        lines = [f"if {draw(st.sampled_from(CONDITIONS)).format(pick())}:"] + body
        if draw(st.booleans()):
            lines += ["else:"] + ["    " + line for line in draw(_block(depth + 1))]
        return lines
    if kind == 17:
        return [draw(st.sampled_from(LOOPS)).format(k=draw(st.integers(0, 3))) + ":"] + body
    if kind == 18:
        bad = draw(
            st.sampled_from(
                [
                    "raise ValueError(n)",
                    "table['missing']",
                    "s = 1 / (n - n)",
                    "pass",
                    "a = a @ torch.zeros(3, 3)",
                    "obj.nothing",
                ]
            )
        )
        return (
            ["try:"]
            + body
            + [
                f"    {bad}",
                "except (ValueError, KeyError, ZeroDivisionError) as e:",
                "    s = len(str(e))",
                "finally:",
                "    b = b + 1",
            ]
        )
    return ["with torch.no_grad():"] + body


@st.composite
def _result(draw):
    pick = lambda: draw(st.sampled_from("abcxy"))  # noqa: E731
    return draw(st.sampled_from(RESULTS)).format(pick(), pick())


@st.composite
def programs(draw):
    lines = ["a = x + 0.5", "b = y * 2", "c = a - b", "s = 1"]
    lines += draw(_block(0)) + draw(_block(0))
    lines.append(f"return {draw(_result())}")
    source = PRELUDE + "\ndef step(x, y, n, flag, items, table, obj):\n" + "".join(f"    {ln}\n" for ln in lines)
    change = st.fixed_dictionaries(
        {},
        optional={
            "n": st.integers(0, 4),
            "flag": st.booleans(),
            "seed": st.integers(0, 5),
            "scale": st.sampled_from([0.5, 1.5, 2]),
            "mode": st.sampled_from(["a", "b"]),
            "K": st.sampled_from([2, 2.5]),
            "items": st.lists(st.integers(0, 5), max_size=4),
            "shape": st.sampled_from(["same", "strided", "double"]),
            "weight": st.sampled_from(["inplace", "assign"]),
            "same": st.booleans(),
            "global_tensor": st.booleans(),
        },
    )
    calls = [{}, {}] + draw(st.lists(change, min_size=1, max_size=4))
    return Program(source, calls)


class Side:
    """One execution of a program: a namespace of its own and the state that lives from call to call."""

    def __init__(self, program: Program, wrap):
        module = types.ModuleType("program")
        sys.modules["program"] = module  # dataclasses look their module up
        self.ns = vars(module)
        exec(compile(program.source, "<program>", "exec"), self.ns)
        self.obj = self.ns["Obj"]()
        self.items, self.table = [1, 3], {"k": 2}
        self.step = wrap(self.ns["step"])

    def change(self, call: dict):
        if "scale" in call:
            self.obj.scale = call["scale"]
        if "mode" in call:
            self.obj.mode = call["mode"]
        if "K" in call:
            self.ns["K"] = call["K"]
        if "items" in call:
            self.items = list(call["items"])
        if call.get("global_tensor"):
            self.ns["G"] = torch.full((3, 4), 0.25)
        with torch.no_grad():
            if call.get("weight") == "inplace":
                self.obj.lin.weight.mul_(1.25)
            elif call.get("weight") == "assign":
                self.obj.lin.weight = torch.nn.Parameter(torch.full((4, 4), 0.125))

    def run(self, call: dict):
        self.change(call)
        x, y = _inputs(call)
        n, flag = call.get("n", 3), call.get("flag", True)
        with torch.no_grad():
            try:
                value = self.step(x, y, n, flag, self.items, self.table, self.obj)
            except Exception as e:  # compared below: type and text
                value = (type(e).__name__, str(e))
        state = {k: v for k, v in vars(self.obj).items() if k != "lin"}
        alias = value is x or (isinstance(value, tuple) and any(v is x for v in value))
        return copy.deepcopy(
            {
                "value": _plain(value),
                "x": x,
                "y": y,
                "items": self.items,
                "table": self.table,
                "obj": state,
                "K": self.ns["K"],
                "counts": self.ns["COUNTS"],
                "same": alias,
                "G": self.ns["G"],
                "log": self.ns["LOG"].getvalue(),
                "rng": self.ns["RNG"].getstate(),
                "times": len(self.ns["T"]),
                "globals": (self.ns["ITEMS"], self.ns["TABLE"], self.ns["HELD"]),
            }
        )


def _inputs(call):
    g = torch.Generator().manual_seed(call.get("seed", 0))
    x, y = torch.randn(3, 4, generator=g), torch.randn(3, 4, generator=g)
    if call.get("shape") == "strided":
        x = x.t().contiguous().t()
    elif call.get("shape") == "double":
        x, y = x.double(), y.double()
    return (x, x) if call.get("same") else (x, y)


def _plain(v):
    """The value with its types as part of it."""
    if isinstance(v, torch.Tensor):
        return ("tensor", str(v.dtype), tuple(v.shape), tuple(v.stride()), v.detach())
    if isinstance(v, dict):
        return (type(v).__name__, [(k, _plain(u)) for k, u in v.items()])
    if isinstance(v, (list, tuple)):
        return (type(v).__name__, [_plain(u) for u in v])
    if hasattr(v, "__dataclass_fields__"):
        return (type(v).__name__, [(k, _plain(getattr(v, k))) for k in v.__dataclass_fields__])
    return (type(v).__name__, v)


def difference(a, b, path="result"):
    """None when equal within fp32 rounding, else where and how they differ."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{path}: {a.dtype}{tuple(a.shape)} against {b.dtype}{tuple(b.shape)}"
        if not torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-5, equal_nan=True):
            return f"{path}: {a} against {b}"
        return None
    if type(a) is not type(b):
        return f"{path}: {a!r} against {b!r}"
    if isinstance(a, dict):
        if list(a) != list(b):
            return f"{path}: keys {list(a)} against {list(b)}"
        return next((d for k in a if (d := difference(a[k], b[k], f"{path}[{k!r}]"))), None)
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return f"{path}: {a!r} against {b!r}"
        return next(
            (d for i, (p, q) in enumerate(zip(a, b, strict=True)) if (d := difference(p, q, f"{path}[{i}]"))), None
        )
    if isinstance(a, float):
        same = (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-5)
        return None if same else f"{path}: {a!r} against {b!r}"
    return None if a == b else f"{path}: {a!r} against {b!r}"


def compare(program: Program, wrap):
    """Runs all calls on both sides; None, or (call index, difference)."""
    eager, fast = Side(program, lambda f: f), Side(program, wrap)
    for i, call in enumerate(program.calls):
        if d := difference(eager.run(call), fast.run(call)):
            return i, d
    return None
