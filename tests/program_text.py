"""What random programs are made of: expressions, statements, breaks, and the text that comes before them."""

TENSORS = ("x", "y", "a", "b", "c", "G")
UNARY = (
    "cached({0} + 1)",
    "cached({0}, n)",
    "cached(W).sum() + {0}",
    "{0} + ramp({0}.shape[1])",
    "{0} * ramp({0}.shape[0])[0]",
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
    "not torch.compiler.is_compiling() and ({0} > 1).any()",
    "torch.compiler.is_compiling()",
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
    "ramp(4), {0}",
    "cached({0}), cached({1}, 3)",
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
import contextlib, contextvars, copy, functools, heapq, io, itertools, math, operator, os, random, sys, time, weakref
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

@functools.lru_cache(maxsize=2)
def cached(t, k=2):
    print("cached", k, file=LOG)
    return t * k

@functools.lru_cache(maxsize=1)
def ramp(n):
    return torch.arange(n, dtype=torch.float32) * K

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
