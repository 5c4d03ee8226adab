"""Packing weights and comparing with eager wait for the second call, where nothing but engines takes part."""

import threading
import weakref

import pytest
import torch

import framelift
from conftest import assert_close
from framelift import _C


@pytest.fixture
def spoil():
    yield _C.spoil
    _C.spoil(None)


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4)).eval()


def once(m, x, **options):
    """m compiled and called once with x."""
    fast = framelift.compile(m, **options)
    with torch.inference_mode():
        assert_close(fast(x), m(x))
    return fast


def the_trace(fast):
    """The only one: verified, and all engine."""
    e = framelift.explain(fast)
    (trace,) = e.traces
    (segment,) = trace.segments
    assert not e.eager and segment.cosine > 0.99999
    return trace


def test_the_first_call_runs_no_engine():
    m, x = model(), torch.randn(3, 16)
    trace = the_trace(once(m, x))
    assert "run" not in trace.first_call_ms and trace.ready_ms["run"] > 0 and trace.ready_ms["weights"] > 0
    fast = once(m, x)
    with torch.inference_mode():
        assert_close(fast(x), m(x))
    assert the_trace(fast).ready_ms["run"] > 0 and framelift.explain(fast).replayed == 1


def test_the_report_has_a_row_for_what_waited():
    lines = str(framelift.explain(once(model(), torch.randn(3, 16)))).splitlines()
    at = lines.index("first call, milliseconds")
    assert [line.split()[0] for line in lines[at + 2 : at + 4]] == ["0", "0,"]


def change_in_place(m, x, y):
    with torch.no_grad():
        m[0].weight.mul_(2)


def change_unseen(m, x, y):
    m[0].weight.data.mul_(2)


def change_data(m, x, y):
    m[0].weight.data = torch.randn(16, 16)


def change_input(m, x, y):
    x.mul_(3)


def change_answer(m, x, y):
    y.zero_()


def change_nothing(m, x, y):
    pass


CHANGES = [change_in_place, change_unseen, change_data, change_input, change_answer, change_nothing]


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_before_the_second_call(change):
    m, x = model(), torch.randn(3, 16)
    fast = framelift.compile(m)
    with torch.no_grad():
        change(m, x, fast(x))
        assert_close(fast(x), m(x))
        assert_close(fast(x + 1), m(x + 1))
    the_trace(fast)
    assert framelift.explain(fast).replayed == 2


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_before_the_explanation(change):
    m, x = model(), torch.randn(3, 16)
    fast = framelift.compile(m)
    with torch.no_grad():
        change(m, x, fast(x))
    the_trace(fast)
    with torch.no_grad():
        assert_close(fast(x + 1), m(x + 1))
    assert framelift.explain(fast).replayed == 1


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("asked", [False, True])
def test_a_wrong_operator_is_found_later(spoil, change, mode, asked):
    spoil("aten.tanh.default")
    m, x = model(), torch.randn(3, 16)
    fast = framelift.compile(m)
    with mode():
        y = fast(x)
        assert_close(y, m(x))
        change(m, x, y)
    if asked:
        framelift.explain(fast)
    with mode():
        for i in range(3):
            assert_close(fast(x + i), m(x + i))
    e = framelift.explain(fast)
    assert [o.op for o in e.eager] == ["aten.tanh.default"] and e.engines == 2
    assert "verification failed: cosine" in e.eager[0].reason


def test_large_arguments_are_not_kept():
    x = torch.randn(1 << 22, 4)
    fast = framelift.compile(torch.relu)
    with torch.inference_mode():
        fast(x)
    trace = the_trace(fast)
    assert trace.first_call_ms["run"] > 0 and not trace.ready_ms


def test_arguments_are_not_held():
    m, x = model(), torch.randn(3, 16)
    freed = []
    fast = once(m, x)
    with torch.inference_mode():
        y = fast(torch.randn(3, 16))
    for t in (x, y):
        weakref.finalize(t, freed.append, True)
    del x, y, t
    assert freed == [True, True]


def test_a_weight_of_another_shape_before_the_explanation():
    m, x = model(), torch.randn(3, 16)
    fast = once(m, x)
    m[2].weight.data, m[2].bias.data = torch.randn(5, 16), torch.randn(5)
    framelift.explain(fast)
    with torch.inference_mode():
        for _ in range(3):
            assert_close(fast(x), m(x))


def test_another_backend_does_not_wait():
    fast = once(model(), torch.randn(3, 16), backend=lambda gm, inputs: gm)
    trace = framelift.explain(fast).traces[0]
    assert not trace.ready_ms


def test_an_explanation_inside_a_recording():
    m, x = model(), torch.randn(3, 16)
    inner = once(m, x)

    def outer(x):
        framelift.explain(inner)
        return m(x) + 1

    fast = framelift.compile(outer)
    with torch.inference_mode():
        for _ in range(3):
            assert_close(fast(x), m(x) + 1)
            assert_close(inner(x), m(x))
    the_trace(inner)


def test_no_verification():
    m, x = model(), torch.randn(3, 16)
    fast = once(m, x, verify=False)
    m[0].weight.data = torch.randn(16, 16)
    with torch.inference_mode():
        assert_close(fast(x), m(x))
    assert not framelift.explain(fast).traces[0].ready_ms


def test_threads_that_call_at_once():
    m = torch.nn.Sequential(*[torch.nn.Linear(256, 256) for _ in range(8)]).eval()
    x = torch.randn(64, 256)
    for _ in range(5):
        fast, wrong, start = once(m, x), [], threading.Barrier(4)

        def call(i, fast=fast, wrong=wrong, start=start):
            start.wait()
            with torch.inference_mode():
                for k in range(4):
                    try:
                        assert_close(fast(x + i + k), m(x + i + k))
                    except AssertionError as error:
                        wrong.append(error)

        threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert not wrong
        e = framelift.explain(fast)
        assert (e.recorded, e.replayed + e.native) == (1, 16) and e.replayed
        the_trace(fast)
