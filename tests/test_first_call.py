"""The first call: what explain() says of its time."""

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
        assert last == "total" and not {"compile", "backend"} & set(times)
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
