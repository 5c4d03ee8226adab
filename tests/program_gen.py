"""Small random PyTorch programs, for comparing eager and framelift on values, effects and exceptions.

A program is source text that defines `step(x, y, n, flag, items, table, obj)` and module globals. Each side executes
the text in its own namespace with its own copies of all arguments, so that effects can be compared too.
"""

from __future__ import annotations

import contextlib
import copy
import math
import re
import sys
import traceback
import types
import warnings
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
    "torch.cat({0}.chunk(2, 1)[::-1], 1)",
    "torch.stack({0}.unbind(0)[::-1])",
    "F.linear({0}, W, W[0])",
    "torch.einsum('ij,kj->ik', {0}, W)",
    "F.scaled_dot_product_attention({0}[None], {0}[None], {0}[None])[0]",
    "{0}.to(torch.bfloat16)",
    "{0}.bfloat16() * 1.7",
    "{0}.half() / 3",
    "{0}.to(torch.int64)",
    "{0} // 2",
    "{0} % 3",
    "torch.div({0}, 3, rounding_mode='trunc')",
    "{0}.cumsum(1)",
    "{0}.topk(4)[0]",
    "{0}.gather(1, torch.tensor([[1, 0, 3, 3]] * 3))",
    "{0}.index_add(0, torch.tensor([0, 0]), {0}[:2])",
    "torch.zeros_like({0}).scatter(1, torch.tensor([[1, 0, 3, 2]] * 3), {0})",
    "torch.lerp({0}, {0}.flip(0), 0.3)",
    "{0}.expand(2, 3, 4)[1]",
    "F.pad({0}, (1, 0))[:, :4]",
    "{0} + torch.rand(3, 4)",
    "F.dropout({0}, 0.5)",
    "obj.block({0})",
    "torch.vmap(lambda r: r * n)({0})",
    "torch.func.grad(lambda t: (t * t).sum())({0})",
    "{0} + HELPERS['f']({0})",
    "{0} * CV.get()",
    "{0} * next(v for v in items if v is not None)",
    "{0} @ obj.lin.weight",
    "torch.full((3, 4), K) * {0}",
    "{0} * torch.tensor(1.5)",
    "{0} * True + 2**20",
    "torch.cond({0}.sum() > 0, lambda t: t + 1, lambda t: t - 1, ({0},))",
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
    "{0} / {1}",
    "torch.cat([{0}, {1}], 0)[1:4]",
    "({0} == {1}) * {0}",
    "{0} + ({0} is {1})",
    "torch.remainder({0}, {1}.abs() + 7.3)",  # not near its jumps: sums may differ in their last bit
    "({0} @ {1}.T).softmax(-1) @ {1}",
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
    "[q.add_(1) for q in {0}.chunk(2, 1)]",
    "torch.add({0}, 1, out={0})",
    "{0}[{0} > 0] = 0.0",
    "{0}.index_fill_(0, torch.tensor([1]), 2.0)",
    "{0}.unsqueeze(0).mul_(2)",
    "{0}.detach().add_(1)",
    "{0}.view(-1)[::3] = 1.0",
    "{0}.as_strided((2, 2), (4, 1)).add_(1)",
    "{0}[1:].copy_({0}[:-1].clone())",
    "{0}.lerp_({1}, 0.5)",
    "{0}.uniform_()",
    "{0}.t_()",
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
    "CV.set(n)",
    "obj.block.extra = n",
    "obj.block[1].running_mean.add_(n)",
    "HELPERS['f'] = (torch.relu, torch.tanh)[n % 2]",
    "WEAK['t'] = {0}",
    "ROWS.append({0}[0]); del ROWS[:-2]",
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
    "obj.training",
    "torch.is_inference_mode_enabled()",
    "{0}.dtype == torch.float32",
    "{0}.is_contiguous()",
    "'t' in WEAK",
    "x is y",
    "torch.get_default_dtype() == torch.float64",
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
    "{0}.argmax().item()",
    "tuple(kw.values())[-1] if kw else 1",
    "list(kw).index('p') if 'p' in kw else 0",
    "LATE()",
    "next(COUNTER)",
    "len(ROWS)",
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
CONTEXTS = (
    "torch.no_grad()",
    "torch.no_grad()",
    "torch.inference_mode()",
    "torch.inference_mode(False)",
    'torch.autocast("cpu", dtype=torch.bfloat16)',
    'torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False)',
    'torch.autocast("cpu", enabled=False)',
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
    "{0}.view(-1), {0}.detach()",
    "W[0], {0}",
    "[*{0}]",
    "{0}.unbind(0)",
    "{0}.T, {0}[:, 1:], {1}",
    "{0}.requires_grad, {0}.is_inference()",
    "obj.block[0].weight, obj.block[0].weight.T",
    "kw, {0}",
)

PRELUDE = """
import contextlib, contextvars, copy, heapq, io, itertools, math, operator, os, random, sys, time, weakref
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
HELPERS = {"f": torch.relu}
CV = contextvars.ContextVar("CV", default=2)
WEAK = weakref.WeakValueDictionary()
ROWS = []
COUNTER = itertools.count()

def LATE(limit=3):
    return limit

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
        self.block = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.GELU()).eval()
        for p in self.block.parameters():
            p.requires_grad_(False).copy_(torch.linspace(-1, 1, p.numel()).reshape(p.shape))
        self.lin = torch.nn.Linear(4, 4)
        with torch.no_grad():
            self.lin.weight.copy_(torch.linspace(-1, 1, 16).reshape(4, 4))
            self.lin.bias.copy_(torch.linspace(0, 1, 4))
    @property
    def training(self):
        return self.block.training
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
    kind = draw(st.integers(0, 23))
    if kind > 21 and depth < 2:
        return draw(_suspended(depth))
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
    return [f"with {draw(st.sampled_from(CONTEXTS))}:"] + body


@st.composite
def _suspended(draw, depth):
    """A generator that a loop drives, or a context manager made of one, with blocks around its yield."""
    name = f"g{depth}"
    block = lambda: ["    " + line for line in draw(_block(depth + 1))]  # noqa: E731
    body = block() + ["    yield a * 2"] + block()
    if draw(st.booleans()):
        head = ["@contextlib.contextmanager"]
        use = [f"with {name}(a, b, c, s) as b:"]
        if draw(st.booleans()):
            body = ["    try:"] + ["    " + line for line in body] + ["    finally:", "        LOG.write('left')"]
    else:
        head, use = [], [f"for a in {name}(a, b, c, s):"]
        body += ["    yield b"]
    return head + [f"def {name}(a, b, c, s):"] + body + use + block()


@st.composite
def _result(draw):
    pick = lambda: draw(st.sampled_from("abcxy"))  # noqa: E731
    return draw(st.sampled_from(RESULTS)).format(pick(), pick())


@st.composite
def programs(draw):
    lines = ["a = x + 0.5", "b = y * 2", "c = a - b", "s = 1"]
    lines += draw(_block(0)) + draw(_block(0))
    lines.append(f"return {draw(_result())}")
    source = PRELUDE + "\ndef step(x, y, n, flag, items, table, obj, **kw):\n" + "".join(f"    {ln}\n" for ln in lines)
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
            "shape": st.sampled_from(
                ["same", "strided", "double", "half", "bf16", "int", "view", "overlap", "weight", "expanded", "state"]
            ),
            "values": st.sampled_from(["nan", "inf", "zero", "ties", "large"]),
            "under": st.sampled_from(["inference", "autocast", "float64", "autocast half", "threads"]),
            "patch": st.sampled_from(
                [
                    "helper",
                    "method",
                    "forward",
                    "hook",
                    "unhook",
                    "class",
                    "module",
                    "train",
                    "eval",
                    "late",
                    "sum",
                    "code",
                ]
            ),
            "kw": st.sampled_from([{"p": 1}, {"p": 1, "q": 2}, {"q": 2, "p": 1}, {"p": True}, {"p": 1.0}]),
            "weight": st.sampled_from(["inplace", "assign", "data", "block", "load", "double"]),
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
        with torch.no_grad():
            exec(compile(program.source, "<program>", "exec"), self.ns)
        with torch.no_grad():
            self.obj = self.ns["Obj"]()
        self.items, self.table, self.hooks = [1, 3], {"k": 2}, []
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
            self.change_weights(call.get("weight"))
        self.patch(call.get("patch"))

    def change_weights(self, kind):
        lin, block = self.obj.lin, self.obj.block
        if kind == "inplace" and not lin.weight.is_inference():  # a program may have put one there
            lin.weight.mul_(1.25)
        elif kind == "assign":
            lin.weight = torch.nn.Parameter(torch.full((4, 4), 0.125))
        elif kind == "data":
            lin.weight.data = torch.full((4, 4), 0.375)
        elif kind == "block":
            block[0].weight.copy_(block[0].weight.flip(0))
        elif kind == "load":
            block.load_state_dict({k: v * 2 for k, v in block.state_dict().items()})
        elif kind == "double":
            block.to(torch.float64 if block[0].weight.dtype == torch.float32 else torch.float32)

    def patch(self, kind):
        ns, obj = self.ns, self.obj
        if kind == "helper":
            ns["helper"] = lambda t, k=3: t - k
        elif kind == "method":
            type(obj).method = lambda self, t, k: t - k
        elif kind == "forward":
            obj.lin.forward = lambda t: t * 0.25
        elif kind == "hook":
            self.hooks.append(obj.block[0].register_forward_hook(lambda m, args, out: out + 1))
        elif kind == "unhook" and self.hooks:
            self.hooks.pop().remove()
        elif kind == "class":
            obj.__class__ = type("Obj", (type(obj),), {"method": lambda self, t, k: t * k, "double": 0.5})
        elif kind == "module":
            obj.block[2] = torch.nn.Tanh()
        elif kind in ("train", "eval"):
            obj.block.train(kind == "train")
        elif kind == "late":
            ns["LATE"].__defaults__ = (7,)
        elif kind == "sum":
            ns["sum"] = lambda values: 11
        elif kind == "code":
            ns["LATE"].__code__ = (lambda limit=3: limit * 2).__code__

    def inputs(self, call):
        g = torch.Generator().manual_seed(call.get("seed", 0))
        x, y = torch.randn(3, 4, generator=g), torch.randn(3, 4, generator=g)
        special = {"nan": float("nan"), "inf": -float("inf"), "zero": -0.0, "large": 1e30}
        if call.get("values") == "ties":
            x, y = x.round(), y.round()
        elif "values" in call:
            x[1, 2] = y[0, 0] = special[call["values"]]
        kind = call.get("shape")
        if kind == "strided":
            x = x.t().contiguous().t()
        elif kind in ("double", "half", "bf16", "int"):
            dtype = {"double": torch.float64, "half": torch.float16, "bf16": torch.bfloat16, "int": torch.int64}[kind]
            x, y = x.to(dtype), y.to(dtype)
        elif kind == "view":
            y = x.view(-1).view(3, 4)
        elif kind == "overlap":
            base = torch.cat([x, y])
            x, y = base[0:3], base[1:4]
        elif kind == "weight":
            x = self.obj.lin.weight
            x = (x.clone() if x.is_inference() else x).detach()[:3]
        elif kind == "expanded":
            x = x[:1].expand(3, 4)
        elif kind == "state":
            x = self.ns["G"]
        return (x, x) if call.get("same") else (x, y)

    def call(self, call, x, y):
        n, flag = call.get("n", 3), call.get("flag", True)
        return self.step(x, y, n, flag, self.items, self.table, self.obj, **call.get("kw", {}))

    def run(self, call: dict):
        self.change(call)
        x, y = self.inputs(call)
        torch.manual_seed(call.get("seed", 0))
        with warnings.catch_warnings(record=True) as warned, torch.no_grad(), under(call.get("under")):
            warnings.simplefilter("always")
            try:
                value = self.call(call, x, y)
            except Exception as e:  # compared below: type, text and the program's line
                value = (type(e).__name__, _message(e), _line(e))
        state = {k: v for k, v in vars(self.obj).items() if k not in ("lin", "block")}
        return copy.deepcopy(
            {
                "value": _plain(value),
                "x": x,
                "y": y,
                "items": self.items,
                "table": self.table,
                "obj": state,
                "block": {k: v.clone() for k, v in self.obj.block.state_dict().items()},
                "K": self.ns["K"],
                "counts": self.ns["COUNTS"],
                "memory": self.memory(value, x, y),
                "G": self.ns["G"],
                "log": self.ns["LOG"].getvalue(),
                "rng": (self.ns["RNG"].getstate(), torch.get_rng_state().sum().item()),
                "times": len(self.ns["T"]),
                "globals": (self.ns["ITEMS"], self.ns["TABLE"], self.ns["HELD"], self.ns["ROWS"]),
                "context": self.ns["CV"].get(),
                "warned": [w.category.__name__ for w in warned if "prim" not in str(w.message)],
            }
        )

    def memory(self, value, x, y):
        """Which tensors a caller can see share memory or are the same."""
        block = self.obj.block[0].weight
        seen = [x, y, self.ns["G"], self.ns["W"], self.obj.lin.weight, block, *_tensors(value)]
        seen += _tensors(
            [v for k, v in vars(self.obj).items() if k not in ("lin", "block")] + [self.table, self.ns["ROWS"]]
        )
        places, objects = {}, {}
        return [
            (
                places.setdefault(t.untyped_storage().data_ptr(), len(places)),
                objects.setdefault(id(t), i),
            )
            for i, t in enumerate(seen)
            if t.numel()
        ]


@contextlib.contextmanager
def under(kind):
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    try:
        if kind == "float64":
            torch.set_default_dtype(torch.float64)
        elif kind == "threads":
            torch.set_num_threads(2 if threads == 1 else 1)
        if kind == "inference":
            with torch.inference_mode():
                yield
        elif kind in ("autocast", "autocast half"):
            with torch.autocast("cpu", dtype=torch.float16 if "half" in kind else torch.bfloat16):
                yield
        else:
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)


def _message(e):
    return re.sub(r"0x[0-9a-f]+", "0x", str(e))


def _line(e):
    """The last line of the program in the traceback, if there is one."""
    if isinstance(e, UnboundLocalError):
        return None  # a warm CPython stores a name and loads the next in one instruction, of the first one's line
    lines = [entry.lineno for entry in traceback.extract_tb(e.__traceback__) if entry.filename == "<program>"]
    return lines[-1] if lines else None


def _tensors(v):
    if isinstance(v, torch.Tensor):
        return [v]
    if isinstance(v, dict):
        return [t for u in v.values() for t in _tensors(u)]
    if isinstance(v, (list, tuple)):
        return [t for u in v for t in _tensors(u)]
    return []


def _plain(v):
    """The value with its types as part of it."""
    if isinstance(v, torch.Tensor):
        marks = str(v.dtype), tuple(v.shape), tuple(v.stride()), v.requires_grad, v.is_inference()
        return ("tensor", *marks, v.detach().clone())
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
        low = max((torch.finfo(t.dtype).eps for t in (a, b) if t.dtype in (torch.float16, torch.bfloat16)), default=0)
        top = b.double().abs().nan_to_num(0, 0, 0).max().item() if b.numel() else 0
        rtol, atol = max(1e-4, 4 * low), max(1e-5, 1e-5 * top, 4 * low * top)
        if not torch.allclose(a.double(), b.double(), rtol=rtol, atol=atol, equal_nan=True):
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
        try:
            want = eager.run(call)
        except Exception:  # not the program's, which are values: its state forbids what is done around it
            return None
        if d := difference(want, fast.run(call)):
            return i, d
    return None
