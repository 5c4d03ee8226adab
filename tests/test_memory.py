"""Nothing leaks: a compiled callable lets go of its model, and calls leave nothing behind."""

import gc
import importlib.util
import pathlib
import sys
import weakref

import pytest
import torch

import framelift

spec = importlib.util.spec_from_file_location("leaks", pathlib.Path(__file__).parents[1] / "bench" / "leaks.py")
leaks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(leaks)


def small():
    return torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16)).eval()


def resident_kib():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_a_dropped_callable_drops_its_model(calls):
    model = small()
    fast = framelift.compile(model)
    x = torch.randn(2, 16)
    with torch.no_grad():
        for _ in range(calls):
            fast(x)
    gone = [weakref.ref(model), weakref.ref(model[0].weight), weakref.ref(x)]
    del model, fast, x
    gc.collect()
    assert [ref() for ref in gone] == [None, None, None]


def test_arguments_and_answers_are_not_kept():
    fast = framelift.compile(small())
    with torch.no_grad():
        for _ in range(3):
            x = torch.randn(2, 16)
            y = fast(x)
            gone = [weakref.ref(x), weakref.ref(y)]
            del x, y
            gc.collect()
            assert [ref() for ref in gone] == [None, None]


def test_reference_counts_stay():
    model = small()
    fast = framelift.compile(model)
    x = torch.randn(2, 16)
    with torch.no_grad():
        for _ in range(3):
            fast(x)
        watched = [model, model[0], model[0].weight, x, None, True, torch.nn.functional.linear, model.__dict__]
        before = [sys.getrefcount(o) for o in watched]
        for _ in range(500):
            fast(x)
        after = [sys.getrefcount(o) for o in watched]
    assert [b - a for a, b in zip(before, after, strict=True) if abs(b - a) > 50] == []


def test_memory_stays_over_many_calls():
    fast = framelift.compile(small())
    x = torch.randn(256, 16)
    with torch.no_grad():
        for _ in range(200):
            fast(x)
        before = resident_kib()
        for _ in range(5000):
            fast(x)
    assert resident_kib() - before < 2048, "an answer has 16 KiB"


def test_memory_stays_over_many_compilations():
    model = small()
    x = torch.randn(4, 16)

    def compile_and_call():
        with torch.no_grad():
            fast = framelift.compile(model)
            fast(x), fast(x)

    for _ in range(20):
        compile_and_call()
    gc.collect()
    before = resident_kib()
    for _ in range(100):
        compile_and_call()
    gc.collect()
    assert resident_kib() - before < 4096


def test_memory_stays_over_many_weight_changes():
    model = small()
    fast = framelift.compile(model)
    x = torch.randn(4, 16)
    with torch.no_grad():
        for i in range(600):
            if i == 100:
                before = resident_kib()
            model[0].weight.add_(0.001)
            model[2].weight = torch.nn.Parameter(torch.randn(16, 16))
            fast(x)
    gc.collect()
    assert resident_kib() - before < 4096


@pytest.mark.parametrize("name", list(leaks.PROGRAMS))
def test_programs_leave_nothing_behind(name):
    """`make leaks` runs ten thousand rounds of each."""
    row = leaks.grown(leaks.PROGRAMS[name], 60)
    assert leaks.verdict(row) is None


def test_the_verdict_finds_leaks():
    kept = []

    def keeps():
        kept.append(torch.randn(4))
        kept.append([kept])

    def keeps_compiled():
        fast = framelift.compile(small())
        fast(torch.randn(2, 16))
        kept.append(fast)

    assert "objects" in leaks.verdict(leaks.grown(keeps, 60))
    assert "c_blocks" in leaks.verdict(leaks.grown(keeps_compiled, 60))
