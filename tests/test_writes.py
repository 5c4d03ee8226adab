"""Writes into views of tensors made in the call: answers, shared memory of what is returned, and that engines do it."""

import itertools
import random

import pytest
import torch

import framelift


def slices(x):
    y = torch.zeros(2, 4, 6)
    y[:, 1:3] = x[:, :2]
    y[..., 0] += 1
    return y * 2


def views_of_views(x):
    y = x * 2
    z, w = y[:, 1], y.view(2, 2, 2, 6)
    z.add_(1)
    w[:, 0, 1].mul_(3)
    return y + 1, z * 1, w.flatten(1).sum(1)


def steps(x):
    y = x + 1
    y[..., ::2] = x[..., 1::2]
    y.transpose(1, 2)[:, 1] = 7
    return y.relu()


def steps_that_divide_nothing(x):
    y = torch.cat([x, x[..., :1]], -1)
    y[..., 1:6:3] = x[..., :2] + 1
    y[:, ::3].mul_(2)
    return y * 2


def base_written(x):
    y = x + 1
    v = y[0]
    y.mul_(2)
    return v.clone(), y * 1


def chunks(x):
    f = x.clone()
    f[..., slice(1, 6, 3)] = x[..., slice(1, 6, 3)] * 5
    q, k, v = f.chunk(3, -1)
    k += q
    return torch.cat([q, k, v], 0)


def base_is_gone(x):
    y = x.new_zeros(48).view(2, 4, 6)
    y.add_(x)
    z = y[1]
    z.sub_(3)
    return y * 1, z * 1


def permuted_memory(x):
    y = x.permute(2, 0, 1).contiguous().permute(1, 2, 0) + 1
    y[:, 2] = 9
    return y.sum(0)


def flat(x):
    y = x.new_zeros(4, 6)
    y[1:3, 2:4] = x[0, :2, :2]
    y.t()[0] = 5
    y.view(-1)[3:7] -= 1
    return y * 1


@pytest.mark.parametrize(
    "f",
    [
        slices,
        views_of_views,
        steps,
        steps_that_divide_nothing,
        base_written,
        chunks,
        base_is_gone,
        permuted_memory,
        flat,
    ],
)
def test_engines_write_into_views(f):
    fast = framelift.compile(f)
    for seed in range(3):
        x = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            torch.testing.assert_close(fast(x.clone()), f(x.clone()))
    e = framelift.explain(fast)
    assert (e.recorded, e.replayed, e.segments, e.engines, e.eager) == (1, 2, 1, 1, ())


def test_after_a_decision():
    def f(x):
        y = x + 1
        if y.sum() > 1e9:
            return y
        y[0] = 1
        y[:, 0] *= 2
        return y * 1

    fast = framelift.compile(f)
    for _ in range(3):
        x = torch.randn(2, 4, 6)
        with torch.no_grad():
            assert torch.equal(fast(x), f(x))
    e = framelift.explain(fast)
    assert (e.segments, [o.op for o in e.eager if "as_strided" in o.op]) == (1, [])


def test_returned_tensors_share_memory():
    def f(x):
        y = x + 1
        v = y[1]
        y[0] = 0
        return y, v

    fast = framelift.compile(f)
    with torch.no_grad():
        for _ in range(3):
            y, v = fast(torch.ones(2, 3))
            assert torch.equal(y, torch.tensor([[0.0] * 3, [2.0] * 3]))
            v.fill_(7)
            assert torch.equal(y[1], v)
    assert framelift.explain(fast).replayed == 2


def program(rng):
    """A function that makes a tensor and writes to it on many ways, as a list of steps."""
    steps = []
    for _ in range(rng.randint(2, 6)):
        chain = []
        for _ in range(rng.randint(0, 3)):
            chain.append((rng.choice(["slice", "select", "transpose", "flatten", "unsqueeze", "chunk"]), rng.random()))
        steps.append((chain, rng.choice(["add_", "mul_", "copy", "set"]), rng.random() < 0.5, rng.randrange(4)))
    return steps


def view(t, kind, at):
    if t.ndim == 0:
        return t
    d = int(at * t.ndim)
    if kind == "slice" and t.shape[d] > 1:
        start = int(at * 7) % t.shape[d]
        return t.narrow(d, start, t.shape[d] - start) if at < 0.6 else t[(slice(None),) * d + (slice(0, None, 2),)]
    if kind == "select":
        return t.select(d, int(at * 13) % t.shape[d])
    if kind == "transpose":
        return t.transpose(d, -1)
    if kind == "flatten" and t.is_contiguous():
        return t.view(-1)
    if kind == "unsqueeze" and t.ndim < 5:
        return t.unsqueeze(d)
    return t.chunk(2, d)[-1] if kind == "chunk" else t


def run(steps, x):
    alive = [x * 2]
    for chain, write, keep, of in steps:
        v = alive[of % len(alive)]
        for kind, at in chain:
            v = view(v, kind, at)
        if write == "add_":
            v.add_(1)
        elif write == "mul_":
            v.mul_(alive[0].select(0, 0).flatten()[0] + 2)
        elif write == "copy":
            v.copy_(v.flip(0) if v.ndim else v + 1)
        else:
            v[...] = 0.5
        if keep:
            alive.append(v)
    return alive


@pytest.mark.parametrize("seed", range(100))
def test_random_programs(seed):
    rng = random.Random(seed)
    steps = program(rng)
    shape = [rng.randint(1, 5) for _ in range(rng.randint(1, 4))]

    def f(x):
        return [t * 1 for t in run(steps, x)]

    def keeps(x):
        return run(steps, x)

    for program_ in (f, keeps):
        fast = framelift.compile(program_)
        for _ in range(3):
            x = torch.randn(shape)
            with torch.no_grad():
                answers, want = fast(x), program_(x)
            torch.testing.assert_close(answers, want, check_stride=True)
            for a, b in itertools.combinations(range(len(want)), 2):
                shared = [
                    t[a].untyped_storage().data_ptr() == t[b].untyped_storage().data_ptr() for t in (answers, want)
                ]
                assert shared[0] == shared[1]
        assert framelift.explain(fast).native == 0
