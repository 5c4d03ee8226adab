"""Timing contenders against each other on a machine that is not quiet."""

import time

SLOT_SECONDS = 0.08  # one contender's turn in a round
SAMPLE_SECONDS = 0.001  # shorter calls are timed several at a time
MIN_SAMPLES = 3  # of a slot; the first ones find another contender's caches and threads


def interleave(contenders, rounds, on_round=None):
    """{name: fastest seconds per call} of {name: function()}.

    Contenders take turns, A B C A B C ..., so that a slow minute of the machine falls on all of them, and each keeps
    its fastest sample. Every contender is called once beforehand.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; must be 1 or more")
    per_sample = {}
    for name, function in contenders.items():
        function()
        per_sample[name] = max(1, round(SAMPLE_SECONDS / max(_seconds(function, 1), 1e-9)))
    best = dict.fromkeys(contenders, float("inf"))
    for i in range(rounds):
        for name, function in contenders.items():
            best[name] = min(best[name], _slot(function, per_sample[name]))
        if on_round:
            on_round(i + 1)
    return best


def _slot(function, calls):
    best = float("inf")
    end = time.perf_counter() + SLOT_SECONDS
    samples = 0
    while samples < MIN_SAMPLES or time.perf_counter() < end:
        best = min(best, _seconds(function, calls))
        samples += 1
    return best


def _seconds(function, calls):
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls
