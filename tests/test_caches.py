"""Cached functions (functools.lru_cache) in a recording: what is asked, what is evaluated, which object comes out."""

import functools

import pytest
import torch

import framelift

LIN = torch.nn.Linear(4, 4).eval()


def x(*sizes):
    return torch.randn(*(sizes or (3, 4)))


def counts(fast):
    e = framelift.explain(fast)
    return e.recorded, e.replayed, e.native, e.segments, len(e.breaks)


def check(f, calls, want):
    fast = framelift.compile(f)
    with torch.no_grad():
        for t in calls:
            torch.testing.assert_close(fast(t), f(t))
    assert counts(fast) == want, framelift.explain(fast)
    return fast


@pytest.mark.parametrize("size", [0, 1, 8, None])
def test_of_a_tensor_that_the_call_made(size):
    """As detr has its position embeddings of a mask: evaluated, in the graph."""
    made = []

    @functools.lru_cache(maxsize=size)
    def scaled(t, k):
        made.append(k)
        return t * k

    def f(t):
        return scaled(LIN(t), 2) - scaled(t + 1, k=3)

    check(f, [x() for _ in range(5)], (1, 4, 0, 1, 0))
    assert made == [2, 3] * 10


def test_of_a_tensor_that_was_given_before():
    @functools.lru_cache
    def scaled(t):
        return t * 2

    def f(t):
        y = t + 1
        first = scaled(y)
        y.mul_(3)
        return scaled(y) + (1 if scaled(y) is first else 100)

    check(f, [x() for _ in range(5)], (1, 4, 0, 1, 0))


def test_of_sizes():
    @functools.lru_cache
    def ramp(shape, dtype):
        return torch.arange(shape[-1], dtype=dtype)

    check(lambda t: t * ramp(t.shape, t.dtype), [x() for _ in range(4)], (1, 3, 0, 1, 0))


@functools.lru_cache(maxsize=1)
def forgetful(n):
    return torch.arange(n, dtype=torch.float32)


def test_that_forget():
    """Each call makes new tensors, with the elements of the old ones."""

    def f(t):
        return t * forgetful(t.shape[1]) + forgetful(t.shape[0])[0]

    check(f, [x() for _ in range(6)], (1, 5, 0, 1, 0))


def test_whose_answer_is_given_back():
    """It is the object that the cache made in this call, and a view of it shares its memory."""

    def f(t):
        forgetful(7)
        y = forgetful(4)
        return y, y[1:], t * y

    fast, given = framelift.compile(f), []
    with torch.no_grad():
        for _ in range(6):
            t = x()
            got = fast(t)
            assert got[0] is forgetful(4) and got[1].data_ptr() == got[0].data_ptr() + 4
            torch.testing.assert_close(got[2], t * torch.arange(4))
            assert all(got[0] is not other for other in given)
            given.append(got[0])
        given[-1].add_(1)
        assert torch.equal(fast(x())[0], torch.arange(4.0)) and torch.equal(given[0], torch.arange(4.0))
    assert counts(fast)[2] == 0 and framelift.explain(fast).recorded <= 2


def test_whose_answer_changed():
    scale = [1.0]

    @functools.lru_cache(maxsize=1)
    def ramp(n):
        return torch.arange(n) * scale[0]

    def f(t):
        ramp(2)
        return t * ramp(4)

    fast = framelift.compile(f)
    with torch.no_grad():
        for k in (1.0, 1.0, 2.0, 2.0, 1.0):
            scale[0] = k
            t = x()
            torch.testing.assert_close(fast(t), t * torch.arange(4) * k)
    assert framelift.explain(fast).native == 0


def test_answers_that_were_two_objects_and_are_one():
    @functools.lru_cache(maxsize=1)
    def ramp(n):
        return torch.arange(4) * 1.0

    def f(t, n, m):
        a, b = ramp(n), ramp(m)
        return a, b, a is b, t + a

    fast = framelift.compile(f)
    with torch.no_grad():
        for n, m in ((1, 2), (1, 2), (1, 1), (1, 1), (2, 1), (1, 2)):
            a, b, same, _ = fast(x(), n, m)
            assert same == (n == m) == (a is b)
