"""Differential fuzzing: random programs give eager's values, effects and exceptions.

Two minutes in CI; FRAMELIFT_FUZZ_SECONDS sets another time (`make fuzz` runs an hour)."""

import os
import time

import pytest
from hypothesis import HealthCheck, find, given, settings
from program_gen import Program, compare, programs

import framelift

SECONDS = float(os.environ.get("FRAMELIFT_FUZZ_SECONDS", "120"))


def test_programs_agree_with_eager():
    end = time.monotonic() + SECONDS
    ran = 0

    @settings(max_examples=1_000_000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(programs())
    def check(program: Program):
        nonlocal ran
        if time.monotonic() > end:
            return
        ran += 1
        failure = compare(program, framelift.compile)
        assert failure is None, f"call {failure[0]}: {failure[1]}\n{program}"

    check()
    print(f"{ran} programs")
    assert ran > 0


@pytest.mark.parametrize("wrap", [lambda f: lambda *a: (f(*a), None)[1], lambda f: lambda x, *a: f(x + 1e-3, *a)])
def test_the_comparison_sees_a_wrong_answer(wrap):
    assert find(programs(), lambda p: compare(p, wrap) is not None)
