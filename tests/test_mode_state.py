"""Inference mode and autocast that a program enters: what outlives it, state around it, leaks, threads, kept casts."""

import contextlib
import gc
import threading

import torch

import framelift
from exits import DO, x
from mode_programs import (
    KEPT,
    LIN,
    LOG,
    SEEDS,
    UNKNOWN,
    fresh,  # noqa: F401  (a fixture of every test)
    outer,
    same,
    trace,
    with_autocast,
    with_inference,
)


def test_the_same_model_in_and_out_of_inference_mode():
    fast = framelift.compile(with_inference)
    for inference in (False, True, False, True):
        with torch.inference_mode(inference), torch.no_grad():
            same(fast, with_inference, *SEEDS)


def keeps(t):
    with torch.inference_mode():
        KEPT["y"] = LIN(t)
        DO(UNKNOWN)
        KEPT["z"] = KEPT["y"] * 2
    return t + 1


def test_tensors_that_are_kept():
    fast = framelift.compile(keeps)
    for s in range(4):
        same(fast, keeps, x(s))
        assert KEPT["y"].is_inference() and KEPT["z"].is_inference()
        torch.testing.assert_close(KEPT["z"], LIN(x(s)) * 2)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(4, 8), torch.nn.Linear(8, 4)

    @torch.inference_mode()
    def forward(self, t):
        h = torch.relu(self.a(t))
        print("mean", bool(h.mean() > 0.3))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.b(h)
            if y.float().sum().item() > 0:
                return y * 2
            return self.b(torch.relu(h))


def test_a_model_that_prints(capsys):
    m = Model().eval()
    fast = framelift.compile(m)
    for s in range(8):
        want = m(x(s))
        shown = capsys.readouterr().out
        got = fast(x(s))
        assert capsys.readouterr().out == shown and got.is_inference() and got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=0.05, atol=0.05)
    assert framelift.explain(fast).native == 0 and not torch.is_autocast_enabled("cpu")
    with torch.no_grad():
        m.b.weight.mul_(-1)
    for s in range(8):
        torch.testing.assert_close(fast(x(s)), m(x(s)), rtol=0.05, atol=0.05)


def test_modes_left_on_end_the_recording():
    def f(t):
        torch.set_autocast_dtype("cpu", torch.float16)
        return LIN(t)

    fast = framelift.compile(f)
    try:
        for _ in range(3):
            fast(x())
        assert framelift.explain(fast).native == 3
    finally:
        torch.set_autocast_dtype("cpu", torch.bfloat16)


def test_the_default_dtype_of_autocast_is_asked_for_again():
    def f(t):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            y = LIN(t)
        DO(UNKNOWN)
        with torch.autocast("cpu"):
            z = LIN(t)
            DO(UNKNOWN)
            return y, LIN(z)

    fast = framelift.compile(f)
    same(fast, f, *SEEDS)
    assert all(b["exits"] == 0 for b in trace(fast)["breaks"])
    torch.set_autocast_dtype("cpu", torch.float16)
    try:
        same(fast, f, *SEEDS)
    finally:
        torch.set_autocast_dtype("cpu", torch.bfloat16)
    same(fast, f, *SEEDS)


def test_an_outer_autocast_that_is_off():
    fast = framelift.compile(with_autocast)
    same(fast, with_autocast, *SEEDS)
    with torch.autocast("cpu", enabled=False):
        same(fast, with_autocast, *SEEDS)
    same(fast, with_autocast, *SEEDS)


def test_no_hidden_state_is_leaked():
    fast = framelift.compile(outer)

    def leave():
        if len(LOG) == 1:
            raise KeyError

    def many():
        for k in range(60):
            UNKNOWN.action = leave if k % 3 == 0 else lambda: None
            LOG.clear()
            with contextlib.suppress(KeyError):
                fast(x(k % 4))

    many()
    gc.collect()
    before = len(gc.get_objects())
    many()
    gc.collect()
    assert len(gc.get_objects()) - before < 20


def test_threads():
    fast = framelift.compile(Model().eval())
    plain, wrong = Model.forward, []

    def work(k):
        with torch.no_grad():
            for s in range(30):
                got, want = fast(x(s % 7)), plain(MODEL, x(s % 7))
                if not torch.allclose(got.float(), want.float(), atol=0.05) or not got.is_inference():
                    wrong.append((k, s))
                if torch.is_inference_mode_enabled() or torch.is_autocast_enabled("cpu"):
                    wrong.append((k, s, "mode"))

    MODEL = Model().eval()
    fast = framelift.compile(MODEL)
    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_casts_that_unknown_code_has_cached():
    lin = torch.nn.Linear(4, 4).eval()

    def f(t):
        with torch.autocast("cpu", torch.bfloat16):
            DO(UNKNOWN)
            y = lin(t)
            DO(UNKNOWN)
            return lin(y)

    fast = framelift.compile(f)
    UNKNOWN.action = lambda: (lin(x()), None)[1]
    for k in range(6):
        same(fast, f, x(k))
        lin.weight.mul_(-2)
    assert framelift.explain(fast).native == 0
    with torch.autocast("cpu", torch.bfloat16):
        lin(x())
        with torch.autocast("cpu", enabled=False):
            for k in range(4):  # eager goes on with the cast of the first weight
                same(fast, f, x(k))
                lin.weight.mul_(-2)
            first = framelift.compile(f)
            same(first, f, *SEEDS)
    same(fast, f, *SEEDS)


def test_a_weight_that_is_written_under_autocast():
    lin = torch.nn.Linear(4, 4).eval()
    start = lin.weight.clone()

    def f(t):
        with torch.autocast("cpu", torch.bfloat16):
            y = lin(t)
            lin.weight.mul_(-2)
            DO(UNKNOWN)
            return y, lin(t)

    answers = []
    for g in (f, framelift.compile(f)):
        lin.weight.copy_(start)
        answers.append([v for s in range(4) for v in g(x(s))])
    torch.testing.assert_close(answers[0], answers[1])
