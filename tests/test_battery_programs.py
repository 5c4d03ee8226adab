"""Control flow, exceptions, callers and targets: compiled, a program is what it is plainly (battery.py)."""

import copy
import functools
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import battery

CASES = battery.Cases()
case, x = CASES.add, battery.x


@case
def control_flow(compile, call):
    def f(t):
        n = 0
        while t.sum() < 10 and n < 20:
            t = t + 0.5
            n += 1
        if t.max() > 3:
            t = t * 2
        elif bool((t < 0).any()):
            t = t - 1
        return t, n, t.argmax().item(), t.shape[0]

    fast = compile(f)
    for k in (0, 1, 2, -1, 0, 5, 5, 2, 1):
        call(fast, x() * 0.1 + k)


@case
def shapes_that_depend_on_data(compile, call):
    def f(t):
        chosen = t[t > 0]
        return chosen, chosen.shape[0], t.nonzero(), torch.unique(t.round()), chosen.sum(), t.masked_select(t < 0)

    fast = compile(f)
    for _ in range(4):
        call(fast, x())


@case
def numbers_out_of_tensors(compile, call):
    fast = compile(lambda t: (t.sum().item(), t.tolist(), float(t[0, 0]), int(t.argmax()), t.numpy().sum().item()))
    for _ in range(3):
        call(fast, x())
    fast = compile(lambda t: t * t.sum().item())
    for _ in range(4):
        call(fast, x())
    fast = compile(lambda t: f"{t.mean():.2f} {t}")
    for _ in range(3):
        call(fast, x())
    fast = compile(lambda t: torch.tensor([t.sum().item(), 1.0]) + torch.tensor(t.tolist())[0, 0])
    for _ in range(3):
        call(fast, x())


@case
def tensors_made_of_tensors(compile, call):
    def f(t):
        return (
            torch.tensor(t.shape),
            torch.as_tensor(t),
            t.new_tensor([1.0, 2.0]),
            t.new_zeros(2),
            t.data + 1,
            torch.nn.Parameter(t) + 1,
            torch.stack([t, t]),
            torch.full((2,), t.shape[0]),
            torch.asarray(t),
            torch.clone(t),
            t.contiguous(),
            t.to(torch.float32),
            t.cpu(),
            torch.tensor(3.5) * t,
        )

    fast = compile(f)
    for _ in range(3):
        call(fast, x())
    constant = compile(lambda t: torch.tensor([1.0, 2.0, 3.0, 4.0]).add_(t.sum()))
    for _ in range(3):
        call(constant, x())


@case
def exceptions(compile, call):
    def f(t, mode):
        if mode == 1:
            raise ValueError("mode 1")
        if mode == 2:
            return t.view(5, 7)
        if mode == 3:
            return t.undefined
        if mode == 4:
            try:
                return t.view(5, 7)
            except RuntimeError as error:
                return t + len(str(error)[:10])
            finally:
                t.add_(1)
        if mode == 5:
            if not (t > 100).all():
                raise AssertionError("too small")
        return t + 1

    fast = compile(f)
    for _ in range(2):
        for mode in range(6):
            call(fast, x(), mode)
    linear = compile(nn.Linear(4, 2))
    for sizes in ((3, 4), (3, 5), (3, 4), (4,), (2, 3, 4), (3, 5)):
        call(linear, torch.randn(sizes))


@case
def exceptions_of_data(compile, call):
    embedding = compile(nn.Embedding(5, 3))
    for ids in ([0, 4], [1, 5], [2, 3], [-1, 0]):
        call(embedding, torch.tensor(ids))
    pick = compile(lambda t, i: (t.gather(0, i), t.index_select(0, i.view(-1)), t[i.view(-1)]))
    for i in ([[0, 1, 2, 0]], [[0, 1, 3, 0]], [[-1, 0, 1, 1]], [[2, 2, 2, 2]]):
        call(pick, x(), torch.tensor(i))
    for op in (
        lambda a, b: a.gather(0, b.view(1, -1)),
        lambda a, b: a.index_select(0, b),
        lambda a, b: a[b],
        lambda a, b: F.one_hot(b, 4),
        lambda a, b: F.embedding(b, a),
        lambda a, b: torch.take(a, b),
        lambda a, b: a.scatter(0, b.view(1, -1), 1.0),
        lambda a, b: F.nll_loss(a[:, :4], b[:3]),
        lambda a, b: a.index_add(0, b[:3], a),
        lambda a, b: F.cross_entropy(a, b[:3]),
        lambda a, b: a.take_along_dim(b.view(1, -1), 0),
        lambda a, b: a[:, b],
    ):
        fast = compile(op)
        for ids in ([0, 1, 2, 0], [0, 1, 7, 0], [0, 1, -1, 2], [-9, 1, 1, 1], [2, 2, 1, 0]):
            call(fast, x(), torch.tensor(ids))
    divide = compile(lambda a, b: (a // b, a % b))
    for b in ([1, 2, 3], [1, 0, 3], [-1, 2, -3]):
        call(divide, torch.tensor([7, -7, 5]), torch.tensor(b))
    inverse = compile(lambda t: torch.linalg.inv(t))
    for t in (torch.eye(3), torch.zeros(3, 3), torch.eye(3) * 2):
        call(inverse, t)


@case
def recursion_and_generators(compile, call):
    def tree(t, depth):
        return t if depth == 0 else tree(t * 2, depth - 1) + tree(t + 1, depth - 1)

    def pieces(t):
        for i in range(t.shape[0]):
            got = yield t[i] * i
            if got:
                return

    def f(t, depth):
        total = tree(t, depth)
        *first, last = pieces(t)
        g = pieces(t)
        next(g)
        try:
            g.send(True)
        except StopIteration:
            total = total + 1
        return (
            total,
            first,
            last,
            [*pieces(t)],
            {i: v for i, v in enumerate(pieces(t))},
            sum(p.sum() for p in pieces(t)),
        )

    fast = compile(f)
    for depth in (0, 3, 1, 3):
        call(fast, x(), depth)

    def forever(t):
        return forever(t + 1)

    def caught(t):
        try:
            return forever(t)
        except RecursionError:
            return t

    fast = compile(caught)
    for _ in range(2):
        call(fast, x())


@case
def callers_in_every_mode(compile, call):
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).requires_grad_(False)
    fast = compile(net)
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad, torch.inference_mode, torch.no_grad):
        with mode():
            call(fast, x())
            call(fast, x())


@case
def default_dtype_between_calls(compile, call):
    fast = compile(lambda t: (t + torch.ones(4), torch.tensor(1.5), torch.arange(3) / 2, t * 1.5))
    for dtype in (torch.float32, torch.float64, torch.float16, torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            call(fast, torch.arange(4))
        finally:
            torch.set_default_dtype(torch.float32)


@case
def modes_between_calls(compile, call):
    m = nn.Linear(4, 4)
    fast = compile(m)
    t = x()
    call(fast, t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        call(fast, t)
    torch.use_deterministic_algorithms(True)
    call(fast, t)
    torch.use_deterministic_algorithms(False)
    call(fast, t)
    with torch.device("meta"):
        call(fast, t)
    call(lambda t: torch.func.vmap(fast)(t), t)
    call(lambda t: torch.func.functional_call(m, {"weight": t.new_ones(4, 4), "bias": t[0]}, (t,)), t)
    call(fast, t)


@case
def compiled_in_compiled(compile, call):
    inner = compile(nn.Linear(4, 4))
    outer = compile(lambda t: inner(t) + inner(t * 2))
    for _ in range(3):
        call(inner, x())
        call(outer, x())


@case
def kinds_of_targets(compile, call):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.k = 2.0

        def forward(self, t):
            return t * self.k

        def other(self, t):
            return t + self.k

        @staticmethod
        def plain(t):
            return t - 1

        @classmethod
        def make(cls, t):
            return t * len(cls.__name__)

    net = Net()
    for target in (
        net.other,
        Net.plain,
        Net.make,
        torch.relu,
        torch.Tensor.relu,
        functools.partial(net, net.k),
        operator_like,
        F.gelu,
        net.forward,
        lambda t: t,
    ):
        fast = compile(target)
        for _ in range(2):
            call(fast, x())
            net.k += 1


def operator_like(t, *, k=2):
    return t**k


@case
def copies_of_compiled(compile, call):
    net = nn.Linear(4, 4)
    fast = compile(net)
    t = x()
    call(fast, t)
    again = copy.deepcopy(fast)
    net.weight.mul_(2)
    call(again, t)
    call(fast, t)
    call(copy.copy(fast), t)
    call(pickle.loads(pickle.dumps(fast)), t)


@case
def memo_by_identity(compile, call):
    memo = {}

    def f(t):
        return t * len({id(t): 1, id(f): 2}) + (id(t) in memo)

    fast = compile(f)
    kept = x()
    call(fast, x())
    memo[id(kept)] = 1
    call(fast, kept)
    call(fast, x())


@case
def with_statements(compile, call):
    class Guard:
        depth = 0

        def __enter__(self):
            self.depth += 1
            return self

        def __exit__(self, *error):
            self.depth -= 1
            return error[0] is KeyError

    guard = Guard()

    def f(t, bad):
        with guard as g:
            t = t * g.depth
            if bad:
                raise KeyError(bad)
            with torch.no_grad(), guard:
                t = t + g.depth
        return t, guard.depth

    fast = compile(f)
    for bad in (0, 1, 0, 1, 0):
        call(fast, x(), bad)
        call.show(guard.depth)


@case
def printing(compile, call):
    import contextlib
    import io

    def f(t):
        print("shape", t.shape)
        return t + 1

    fast = compile(f)
    for _ in range(3):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            call(fast, x())
        call.show(out.getvalue())


@case
def recurrent_layers(compile, call):
    for layer in (
        nn.LSTM(4, 5, 2),
        nn.GRU(4, 5, bidirectional=True),
        nn.RNN(4, 5, batch_first=True),
        nn.LSTMCell(4, 5),
    ):
        layer.eval()
        fast = compile(layer)
        t = x(3, 4) if isinstance(layer, nn.LSTMCell) else x(6, 3, 4)
        call(fast, t)
        call(fast, t)
        for p in layer.parameters():
            p.mul_(0.5)
        call(fast, t)


@pytest.mark.parametrize("program", CASES, ids=lambda program: program.__name__)
def test_as_eager(program):
    battery.check(program)
