"""What the tests of breaks share: a call through C, inputs, and how answers are compared."""

import operator
import threading

import torch

DO = operator.methodcaller("do")  # of an object that each file has: its frames are of that file
TOLERANCE = {torch.bfloat16: (0.05, 0.05), torch.float16: (0.01, 0.01)}


def x(seed=0):
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))


def flat(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for v in value for t in flat(v)] if isinstance(value, (tuple, list)) else [value]


def assert_same(got, want):
    """Lists that flat() made."""
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        if isinstance(b, torch.Tensor):
            assert (a.dtype, a.is_inference(), a.requires_grad) == (b.dtype, b.is_inference(), b.requires_grad)
            rtol, atol = TOLERANCE.get(b.dtype, (1e-4, 1e-5))
            torch.testing.assert_close(a, b, rtol=rtol, atol=atol)
        else:
            assert a == b


def differing_in_threads(fast, f, calls):
    """(thread, call) wherever four threads at once do not get f's answer to x."""
    wrong = []

    def work(n):
        with torch.no_grad():
            for k in range(calls):
                t = x(1000 * n + k)
                if not torch.allclose(fast(t), f(t), rtol=1e-4, atol=1e-5):
                    wrong.append((n, k))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return wrong
