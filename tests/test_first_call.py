"""The first call: what explain() says of its time, and programs that ask whether they are being compiled."""

import pytest
import torch

import framelift

LINEAR = torch.nn.Linear(8, 8).eval()


def compiled(fn, x, **options):
    """(fn compiled and called once, its explanation); the answer was eager's."""
    fast = framelift.compile(fn, **options)
    with torch.inference_mode():
        torch.testing.assert_close(fast(x), fn(x))
    return fast, framelift.explain(fast)


def the_shape(e):
    return e.recorded, e.native, e.segments, len(e.breaks), len(e.checks), e.operators


# --- where the time goes ---


def test_stages_are_named_and_add_up():
    _, e = compiled(lambda x: LINEAR(x).relu().softmax(-1), torch.randn(4, 8))
    (first,) = [t.first_call_ms for t in e.traces]
    (ready,) = [t.ready_ms for t in e.traces]
    assert next(iter(first)) == "record" and {"lower", "optimize", "plan"} <= set(first)
    assert {"weights", "run", "verify"} <= set(ready)
    for times in first, ready:
        *stages, last = times
        assert last == "total" and not {"again", "compile", "backend"} & set(times)
        assert sum(times[s] for s in stages) == pytest.approx(times["total"])
        assert all(times[s] > 0 for s in stages)


def test_stages_of_each_trace_and_of_another_backend():
    fast = framelift.compile(LINEAR, backend=lambda gm, inputs: gm, verify=False)
    with torch.inference_mode():
        for n in (2, 3):
            fast(torch.randn(n, 8))
    times = [t.first_call_ms for t in framelift.explain(fast).traces]
    assert len(times) == 2 and all("backend" in t and "run" not in t and "verify" not in t for t in times)


def test_the_report_has_a_row_for_each_trace():
    fast = framelift.compile(LINEAR)
    with torch.inference_mode():
        fast(torch.randn(2, 8)), fast(torch.randn(3, 8))
    lines = str(framelift.explain(fast)).splitlines()
    at = lines.index("first call, milliseconds")
    header = lines[at + 1].split()
    assert header[:2] == ["trace", "record"] and header[-1] == "total"
    assert [line.strip().split("  ")[0] for line in lines[at + 2 : at + 6]] == ["0", "0, later", "1", "1, later"]


# --- programs that ask whether they are being compiled ---


def asks_for_nothing(x):
    return LINEAR(x) * 2 if torch.compiler.is_compiling() else LINEAR(x) + LINEAR(x)


def test_who_asks_is_not_told_and_runs_once():
    _, e = compiled(asks_for_nothing, torch.randn(4, 8))
    assert the_shape(e) == (1, 0, 1, 0, 0, 3)
    assert "again" not in e.traces[0].first_call_ms


def leaves_out_a_decision(x):
    if not torch.compiler.is_compiling() and x.isnan().any():
        return x
    return LINEAR(x)


def test_who_decides_less_when_told_is_told():
    x = torch.randn(64, 8)  # too large for a guard on its elements
    fast, e = compiled(leaves_out_a_decision, x)
    assert the_shape(e) == (1, 0, 1, 0, 0, 1)
    assert e.traces[0].first_call_ms["again"] > 0
    with torch.inference_mode():
        fast(torch.randn(65, 8))  # from now on it is told at once, and compared with a plain call
    e = framelift.explain(fast)
    assert the_shape(e) == (2, 0, 2, 0, 0, 2)
    assert all(t.first_call_ms["again"] > 0 for t in e.traces)


def test_elements_of_arguments_that_decide_count():
    x = torch.randn(4, 8)
    fast, e = compiled(leaves_out_a_decision, x)
    assert the_shape(e) == (1, 0, 1, 0, 0, 1)
    with torch.inference_mode():
        fast(x + 1)
    assert framelift.explain(fast).replayed == 1


def decides_and_answers_otherwise(x):
    if torch.compiler.is_compiling():
        return LINEAR(x) * 3
    return LINEAR(x) if x.sum() < 1e9 else x


def decides_and_raises(x):
    if torch.compiler.is_compiling():
        raise ValueError("not when compiled")
    return LINEAR(x) if x.sum() < 1e9 else x


def decides_as_much(x):
    if torch.compiler.is_compiling():
        return LINEAR(x) if x.sum() < 2e9 else x
    return LINEAR(x) if x.sum() < 1e9 else x


@pytest.mark.parametrize("fn", [decides_and_answers_otherwise, decides_and_raises, decides_as_much])
def test_who_gains_nothing_by_being_told_is_not(fn):
    x = torch.randn(64, 8)
    fast, e = compiled(fn, x)
    assert (e.recorded, e.native, len(e.checks)) == (1, 0, 1)
    with torch.inference_mode():
        torch.testing.assert_close(fast(x * 2), fn(x * 2))
        fast(torch.randn(65, 8))
    e = framelift.explain(fast)
    assert (e.recorded, e.replayed) == (2, 1)
    assert ["again" in t.first_call_ms for t in e.traces] == [False, True]  # the newest first: it was not tried again


STATE = {"calls": 0}


def decides_and_counts_when_told(x):
    if torch.compiler.is_compiling():
        STATE["calls"] += 1
        return LINEAR(x)
    return LINEAR(x) if x.sum() < 1e9 else x


def test_what_it_did_when_told_is_taken_back():
    STATE["calls"] = 0
    _, e = compiled(decides_and_counts_when_told, torch.randn(64, 8))
    assert STATE["calls"] == 0 and (e.recorded, len(e.checks)) == (1, 1)


def says_something_unless_told(x):
    y = LINEAR(x)
    if not torch.compiler.is_compiling():
        print("plainly", y.shape)
    return y.relu()


def test_unknown_code_runs_once_and_the_next_call_is_told(capfd):
    x = torch.randn(4, 8)
    fast = framelift.compile(says_something_unless_told, fallback="error")
    with torch.inference_mode():
        want = LINEAR(x).relu()
        torch.testing.assert_close(fast(x), want)
        e = framelift.explain(fast)
        assert (e.recorded, e.native) == (0, 1) and "told in the next call" in e.native_reason
        assert capfd.readouterr().out.count("plainly") == 1
        torch.testing.assert_close(
            fast(x), want
        )  # recorded without the print, and compared with a plain call, which prints
        assert capfd.readouterr().out.count("plainly") == 1
    e = framelift.explain(fast)
    assert the_shape(e) == (1, 1, 1, 0, 0, 2) and e.native_reason is None


def writes_and_asks(x):
    LINEAR.calls = getattr(LINEAR, "calls", 0) + (2 if torch.compiler.is_compiling() else 1)
    return LINEAR(x)


def test_effects_are_those_of_a_plain_call():
    x = torch.randn(4, 8)
    LINEAR.calls = 0
    fast = framelift.compile(writes_and_asks)
    with torch.inference_mode():
        for i in range(1, 6):
            fast(x)
            assert LINEAR.calls == i
    del LINEAR.calls
