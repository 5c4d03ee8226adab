"""Whether compiling and calling leave anything behind: memory, objects, reference counts.

Each program below compiles something and calls it in a way of its own: replays, new shapes, changed weights, effects,
decisions, errors, calls that run natively. It is run many times over; then C blocks, Python blocks, tracked objects,
reference counts of what it names and resident memory must be where they were.

    python bench/leaks.py [--rounds N] [--only NAME] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import operator
import sys
import time
import warnings

import torch
import torch.nn.functional as F

import framelift
from framelift import _C

MODEL = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16)).eval()
NORMS = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU()).eval()
TABLE = torch.nn.Embedding(7, 4)
GIVE = operator.methodcaller("__next__")  # called in C: what it gives is not known
X, IMAGE, INDEX = torch.randn(3, 16), torch.randn(1, 3, 8, 8), torch.tensor([1, 2])


class Counter:
    """Effects: an attribute, a list, a dictionary; a decision on data; a result of many kinds."""

    def __init__(self):
        self.last, self.seen, self.cache = None, [], {}

    def __call__(self, x):
        y = torch.relu(x) + 1
        if y.sum().item() < 0:
            y = y * 2
        self.last = y
        self.seen[:] = [y, "y"]
        self.cache["y"] = y.mean()
        return {"y": y, "pair": (y, y + 1), "top": torch.topk(y, 2), "n": 3, "list": [y]}


def replay():
    fast = framelift.compile(MODEL)
    fast(X), fast(X)


def images():
    fast = framelift.compile(NORMS)
    fast(IMAGE), fast(IMAGE)


def shapes():
    fast = framelift.compile(MODEL)
    for n in range(1, 11):
        fast(X[:1].expand(n, 16))


def weights():
    fast = framelift.compile(MODEL)
    for _ in range(3):
        MODEL[0].weight.mul_(1.0)
        MODEL[2].weight.data = MODEL[2].weight.data.clone()
        fast(X)


def effects():
    program = Counter()
    fast = framelift.compile(program)
    for _ in range(3):
        fast(X)


def training():
    NORMS.train()
    try:
        fast = framelift.compile(NORMS)
        fast(IMAGE), fast(IMAGE)
    finally:
        NORMS.eval()


def errors():
    def program(i):
        TABLE(i)
        return i + 1

    fast = framelift.compile(program)
    fast(INDEX), fast(INDEX)
    for bad in (INDEX + 6, "text"):
        with contextlib.suppress(IndexError, TypeError):
            fast(bad)


def natively():
    def program(x):
        warnings.warn("not captured", stacklevel=1)
        return x * 2

    fast = framelift.compile(program)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fast(X), fast(X)


def random():
    fast = framelift.compile(lambda x: F.dropout(x, 0.5, training=True) + torch.rand(16))
    fast(X), fast(X)


def islands():
    fast = framelift.compile(lambda x: torch.linalg.svd(torch.relu(x))[1] * 2 + torch.sort(x)[0][0, 0])
    fast(X), fast(X)


def breaks():
    """Frames made anew around unknown code, and left where its answer is another one."""
    answers = iter([1.0, 0.5, 1.0, 1, "", ValueError, None, 1.0])

    def inner(x, scale):
        held = [x, scale]
        factor = GIVE(answers)
        if factor is ValueError:
            raise factor
        return held[0] * (factor or held[1])

    fast = framelift.compile(lambda x: inner(torch.relu(x), scale=2.0) + 1)
    for _ in range(9):
        with contextlib.suppress(ValueError, StopIteration):
            fast(X)
    e = framelift.explain(fast)
    assert (e.recorded, e.replayed, sum(b["exits"] for b in e.raw["traces"][0]["breaks"])) == (1, 6, 6), str(e)


def reports():
    fast = framelift.compile(MODEL)
    fast(X), fast(X)
    str(framelift.explain(fast)), framelift.refresh(fast), fast(X), framelift.reset(fast), fast(X)
    _C.overhead(fast, (X,), {}, 3), _C.profile(fast, (X,), {})
    _C.plan_text(fast), _C.graph_text(fast), _C.segments(fast)


def contexts():
    with framelift.optimize("eager"):
        MODEL(X)


def backends():
    fast = framelift.compile(MODEL, backend=lambda gm, inputs: gm.forward)
    fast(X), fast(X)


PROGRAMS = {
    f.__name__: f
    for f in [
        replay,
        images,
        shapes,
        weights,
        effects,
        training,
        errors,
        natively,
        random,
        islands,
        breaks,
        reports,
        contexts,
    ]
}
PROGRAMS |= {"contexts": contexts, "backends": backends}
# What a round leaves that is not framelift's: torch.fx keeps three objects for each GraphModule made, on 3.13 five.
KEPT = {"backends": {"objects": 6 if sys.version_info < (3, 13) else 10, "python_blocks": 16, "resident_kib": 5}}


def resident_kib() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4


def state() -> dict:
    for _ in range(3):
        gc.collect()
    named = [
        None,
        True,
        False,
        (),
        torch.float32,
        torch.Tensor,
        MODEL,
        MODEL[0].weight,
        MODEL.__dict__,
        NORMS,
        X,
        INDEX,
    ]
    return {
        "c_blocks": _C.live_blocks(),
        "python_blocks": sys.getallocatedblocks(),
        "objects": len(gc.get_objects()),
        "references": sum(sys.getrefcount(o) for o in named),
        "resident_kib": resident_kib(),
    }


def grown(program, rounds: int) -> dict:
    """What `rounds` runs left, after as many that may fill caches."""
    warm = max(rounds // 10, 12)
    with torch.no_grad():
        for _ in range(warm):
            program()
        before, begin = state(), time.perf_counter()
        for _ in range(rounds):
            program()
        seconds = time.perf_counter() - begin
        after = state()
    row = {k: after[k] - before[k] for k in before}
    return {"program": program.__name__, "rounds": rounds, "seconds": round(seconds, 1), **row}


def verdict(row: dict) -> str | None:
    """What leaks, or None. Python keeps some hundred freed blocks at hand; the rest is level, or one in ten rounds."""
    allowed = {"c_blocks": 0, "python_blocks": 1000, "objects": 10, "references": 10, "resident_kib": 4096}
    kept = KEPT.get(row["program"], {})
    for key, most in allowed.items():
        most += kept.get(key, 0) * row["rounds"] + (row["rounds"] // 10 if key != "c_blocks" else 0)
        if row[key] > most:
            return f"{row[key]} {key} in {row['rounds']} rounds, {most} allowed"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--only", action="append", choices=list(PROGRAMS), help="one program (repeatable)")
    parser.add_argument("--json", metavar="FILE", help="also write one JSON object a line")
    options = parser.parse_args()
    rows, bad = [], 0
    for name in options.only or PROGRAMS:
        row = grown(PROGRAMS[name], options.rounds)
        row["leaks"] = verdict(row)
        bad += row["leaks"] is not None
        rows.append(row)
        print(json.dumps(row), flush=True)
    if options.json:
        with open(options.json, "w") as f:
            f.writelines(json.dumps(r) + "\n" for r in rows)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
