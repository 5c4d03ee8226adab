"""Differential fuzzing: random programs give eager's values, effects and exceptions.

FRAMELIFT_FUZZ_SECONDS sets how long (two minutes); FRAMELIFT_FUZZ_SEED where it starts. `make fuzz` runs an hour."""

import os
import sys
import time

import pytest
from hypothesis import HealthCheck, find, given, seed, settings

import framelift
from program_gen import Program, programs
from program_run import compare

SECONDS = float(os.environ.get("FRAMELIFT_FUZZ_SECONDS", "120"))
SEED = int(os.environ.get("FRAMELIFT_FUZZ_SEED", "0"))
BATCH = 40


@pytest.fixture(autouse=True)
def no_tool_stays():
    """hypothesis gives back its tool of sys.monitoring, but some CPythons leave the tool's events on."""
    yield
    if hasattr(sys, "monitoring"):
        for tool in range(6):
            if sys.monitoring.get_tool(tool) is None:
                sys.monitoring.use_tool_id(tool, "none")
                sys.monitoring.set_events(tool, 0)
                sys.monitoring.free_tool_id(tool)


def run_batch(number: int):
    @seed(number)
    @settings(max_examples=BATCH, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(programs())
    def check(program: Program):
        failure = compare(program, framelift.compile)
        assert failure is None, f"call {failure[0]}: {failure[1]}\n{program}"

    check()


def test_programs_agree_with_eager():
    end = time.monotonic() + SECONDS
    batches = 0
    while batches == 0 or time.monotonic() < end:
        run_batch(SEED + batches)
        batches += 1
    print(f"{batches * BATCH} programs")


@pytest.mark.parametrize("wrap", [lambda f: lambda *a: (f(*a), None)[1], lambda f: lambda x, *a: f(x + 1e-2, *a)])
def test_the_comparison_sees_a_wrong_answer(wrap):
    assert find(programs(), lambda p: compare(p, wrap) is not None, settings=settings(database=None))
