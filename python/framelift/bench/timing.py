"""Timing contenders against each other on a machine that is not quiet."""

import time

SLOT_SECONDS = 0.08  # one contender's turn in a round
SAMPLE_SECONDS = 0.001  # shorter calls are timed several at a time
MIN_SAMPLES = 3  # of a slot; the first ones find another contender's caches and threads


def interleave(contenders, rounds, on_round=None, *, sample_seconds=SAMPLE_SECONDS, synchronize=None, keep=min):
    """{name: seconds per call} of {name: function()}.

    Contenders take turns, A B C A B C ..., so that a slow minute of the machine falls on all of them, and `keep` makes
    one figure of each one's samples. Every contender is called once beforehand. A sample is as many calls as take
    sample_seconds, at least one, and ends when synchronize() has returned: the answers are there.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; must be 1 or more")
    per_sample = {}
    for name, function in contenders.items():
        _seconds(function, 1, synchronize)
        per_sample[name] = max(1, round(sample_seconds / max(_seconds(function, 1, synchronize), 1e-9)))
    samples = {name: [] for name in contenders}
    for i in range(rounds):
        for name, function in contenders.items():
            _slot(function, per_sample[name], synchronize, samples[name])
        if on_round:
            on_round(i + 1)
    return {name: keep(found) for name, found in samples.items()}


def _slot(function, calls, synchronize, samples):
    end = time.perf_counter() + SLOT_SECONDS
    first = len(samples)
    while len(samples) < first + MIN_SAMPLES or time.perf_counter() < end:
        samples.append(_seconds(function, calls, synchronize))


def _seconds(function, calls, synchronize):
    start = time.perf_counter()
    for _ in range(calls):
        function()
    if synchronize:
        synchronize()
    return (time.perf_counter() - start) / calls
