"""Explanation: sums, text and JSON, from reports as the extension gives them."""

import json

import pytest

import framelift
from framelift import Explanation


def report(**changes):
    """Two segments around one break: 10 operators, 8 lowered, 1 dead, 1 eager."""
    first = {
        "operators": 7,
        "lowered": 6,
        "dead": 1,
        "parts": [
            {
                "kind": "engine",
                "operators": 6,
                "ops": {"aten.addmm.default": 2, "aten.relu.default": 4},
                "nodes": 4,
                "steps": 3,
                "arena_bytes": 2048,
                "const_bytes": 3 << 20,
                "memory": {"contexts": 2, "programs": 0, "arena": 4096, "stages": 0, "packed": 3 << 20},
            }
        ],
        "eager": [],
        "verify": {"cosine": 0.9999999, "max_rel_err": 2e-6},
    }
    second = {
        "operators": 3,
        "lowered": 2,
        "dead": 0,
        "parts": [
            {
                "kind": "engine",
                "operators": 2,
                "ops": {},
                "nodes": 2,
                "steps": 2,
                "arena_bytes": 0,
                "const_bytes": 12,
                "memory": {"contexts": 1, "programs": 2, "arena": 0, "literals": 12},
            },
            {"kind": "eager", "operators": 1, "ops": {"aten.sort.default": 1}, "reason": "too small"},
        ],
        "eager": [
            {
                "op": "aten.sort.default",
                "reason": "no converter",
                "file": "net.py",
                "line": 12,
                "module": "head.top",
                "count": 1,
            }
        ],
    }
    trace = {
        "guards": {"dict version": 12, "tensor": 1},
        "weights": 4,
        "first_call_ms": {"record": 12.5, "plan": 3.0, "total": 15.5},
        "segments": [first, second],
        "breaks": [{"reason": "value of a tensor", "detail": "item()", "file": "net.py", "line": 9}],
    }
    return {
        "target": "Net",
        "calls": 5,
        "recorded": 1,
        "replayed": 3,
        "native": 1,
        "native_reason": None,
        "give_ups": [{"reason": "unknown C function", "detail": "zlib.crc32", "file": "net.py", "line": 4, "count": 1}],
        "misses": [{"guard": "tensor: sizes of x", "count": 2}],
        "traces": [trace],
    } | changes


def test_sums_over_segments():
    e = Explanation(report())
    assert (e.operators, e.lowered, e.dead, e.segments, e.engines) == (10, 8, 1, 2, 2)
    assert [p.kind for p in e.partitions] == ["engine", "engine", "eager"]
    assert e.coverage == pytest.approx(8 / 9)
    assert [(b.reason, b.place) for b in e.breaks] == [("value of a tensor", "net.py:9")]
    assert e.misses == {"tensor: sizes of x": 2}
    assert e.graphs[0].cosine == 0.9999999 and e.graphs[1].cosine is None


def test_memory_by_kind():
    explanation = Explanation(report())
    assert explanation.memory == {"arena": 4096, "stages": 0, "packed": 3 << 20, "literals": 12}
    assert "arena 4.0 KiB, packed 3.0 MiB" in str(explanation)
    assert "literals 12 B" in str(explanation)
    assert json.loads(explanation.to_json())["memory"]["packed"] == 3 << 20


def test_long_tables_are_cut():
    def tables(failed):
        explanation = Explanation(report(misses=[{"guard": f"g{i}", "count": 1} for i in range(failed)]))
        assert len(explanation.misses) == failed == len(json.loads(explanation.to_json())["misses"])
        return dict((title, rows) for title, _, rows in explanation.tables())["guards that failed"]

    assert len(tables(24)) == 24
    assert tables(27)[23:] == [("1", "g23"), ("3 more", "")]


def test_memory_of_an_engine():
    torch = pytest.importorskip("torch")
    fast = framelift.compile(torch.nn.Linear(32, 48))
    with torch.inference_mode():
        for _ in range(2):
            fast(torch.ones(8, 32))
    explanation = framelift.explain(fast)
    (part,) = explanation.partitions
    assert part.memory["contexts"] == 1
    assert part.arena_bytes >= part.arena_least_bytes
    held = dict(explanation.memory)
    assert held.pop("arena") == part.arena_bytes
    assert sum(held.values()) == part.const_bytes


def test_what_engines_share_is_counted_once():
    data = report()
    first = data["traces"][0]
    part = first["segments"][0]["parts"][0]
    again = part | {"memory": part["memory"] | {"packed": 0, "shared": 3 << 20}}
    data["traces"].append(first | {"segments": [first["segments"][0] | {"parts": [again]}]})
    explanation = Explanation(data)
    assert explanation.memory == {"arena": 8192, "stages": 0, "packed": 3 << 20, "literals": 12}
    assert "arena 4.0 KiB, shared 3.0 MiB" in str(explanation)


def test_sums_over_traces():
    one = report()["traces"]
    e = Explanation(report(traces=one * 3))
    assert (e.operators, e.segments, len(e.breaks), len(e.traces)) == (30, 6, 3, 3)


def test_eager_operators_most_frequent_first():
    data = report()
    rare = data["traces"][0]["segments"][1]["eager"][0]
    data["traces"][0]["segments"][1]["eager"] = [rare, rare | {"op": "aten.topk.default", "count": 7}]
    assert [e.op for e in Explanation(data).eager] == ["aten.topk.default", "aten.sort.default"]


def test_dead_operators_are_not_left_to_pytorch():
    data = report()
    left = data["traces"][0]["segments"][1]["eager"]
    left.append(left[0] | {"op": "aten.empty.memory_format", "reason": "nobody needs its result"})
    e = Explanation(data)
    assert [o.op for o in e.eager] == ["aten.sort.default"] and "aten.empty" not in str(e)


def test_text_tells_every_thing_once():
    text = str(Explanation(report()))
    lines = text.splitlines()
    assert lines[0] == "Net: 5 calls: 1 recorded, 3 replayed, 1 native"
    assert lines[1] == (
        "8 of 10 operators lowered (88.9% of those needed; 1 dead), 2 segments, 1 break, 2 engine partitions of 3"
    )
    for cells in (
        ("0", "12 dict version, 1 tensor", "4", "2"),
        ("trace", "record", "plan", "total"),
        ("0", "12.5", "3.0", "15.5"),
        ("0.0", "engine", "6", "4", "3", "2.0 KiB", "3.0 MiB"),
        ("0.1", "eager", "1", "too small"),
        ("0.0", "0.999999900", "2.00e-06"),
        ("1", "aten.sort.default", "no converter", "net.py:12", "head.top"),
        ("net.py:9", "value of a tensor", "item()"),
        ("1", "net.py:4", "unknown C function", "zlib.crc32"),
        ("2", "tensor: sizes of x"),
    ):
        assert sum([c.strip() for c in line.split("  ") if c.strip()] == list(cells) for line in lines) == 1, cells


def test_text_before_the_first_call():
    text = str(Explanation(report(calls=0, recorded=0, replayed=0, native=0, give_ups=[], misses=[], traces=[])))
    assert text == "Net: not called yet. Call it once, then explain again."


def test_text_of_a_native_callable():
    e = Explanation(report(native_reason="CPython 3.14 is not supported", traces=[], give_ups=[], misses=[]))
    assert str(e).splitlines()[1] == "runs natively: CPython 3.14 is not supported"
    assert e.coverage == 0.0 and e.segments == 0


def test_json_holds_report_and_sums():
    data = json.loads(Explanation(report()).to_json())
    assert data["operators"] == 10 and data["engines"] == 2
    assert data["partitions"][0]["ops"] == {"aten.addmm.default": 2, "aten.relu.default": 4}
    assert data["breaks"][0]["line"] == 9 and data["eager"][0]["module"] == "head.top"
    assert data["traces"][0]["guards"] == {"dict version": 12, "tensor": 1}
