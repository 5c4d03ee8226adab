"""What one call costs besides the engine: guards, dispatch, results; framelift beside torch.compile.

torch.compile gets two backends that compute nothing: one returns outputs made beforehand, so that its figure is guards
and dispatch alone; the other makes new outputs in each call, with what inductor's code makes them with. framelift has
two figures as well: `guards` is the way to the trace that fits (arguments, global state, guards, every weight), which
is what the first of the others covers; `call` is a whole call with new output tensors and the result's containers, in
which only the engine does not run. All in one process, in turns, minima. Also: a Python call of unrelated code with
framelift imported, and the first call's cost.

    python bench/overhead.py [--only NAME] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import torch

ROUNDS = 15


def call_cost(fn, number: int) -> float:
    """Microseconds of one call: best of a few loops."""
    best = float("inf")
    for _ in range(3):
        begin = time.perf_counter_ns()
        for _ in range(number):
            fn()
        best = min(best, (time.perf_counter_ns() - begin) / number / 1000)
    return best


def plain_calls() -> float:
    def inner(a, b=2):
        return a

    def loop():
        for _ in range(1000):
            inner(1)

    return call_cost(loop, 20) / 1000 * 1000  # nanoseconds of one Python call


def relu():
    return torch.relu, (torch.randn(8),)


def zoo_model(name):
    from framelift import zoo

    entry = zoo.load(name)
    return entry.model, entry.args, entry.kwargs


def resnet50():
    return zoo_model("resnet50")


def bert():
    return zoo_model("hf_Bert")


def ready_backend(gm, example_inputs):
    """A backend that computes once and then hands out what it has."""
    outputs = gm(*example_inputs)
    return lambda *args: outputs


def new_backend(gm, example_inputs):
    """A backend whose outputs are new tensors, of any contents."""
    make = torch._C._dynamo.guards._empty_strided_cpu
    kinds = [(tuple(o.shape), o.stride(), o.dtype) for o in gm(*example_inputs)]
    return lambda *args: [make(*kind) for kind in kinds]


def measure(name: str, make) -> dict:
    import framelift
    from framelift import _C

    built = make()
    fn, args = built[0], built[1]
    kwargs = built[2] if len(built) > 2 else {}
    if isinstance(fn, torch.nn.Module):
        fn.eval()
    with torch.no_grad():
        eager_first = best_seconds(lambda: fn(*args, **kwargs), 3)
        fast = framelift.compile(fn)
        begin = time.perf_counter()
        fast(*args, **kwargs)
        first = time.perf_counter() - begin
        fast(*args, **kwargs)
        peers = []
        for backend in ready_backend, new_backend:
            torch._dynamo.reset()
            peers.append(torch.compile(fn, backend=backend))
            peers[-1](*args, **kwargs)
        ready, new = peers
        fast(*args, **kwargs)  # the peers' compiling may have changed state that was guarded
        guards, call, theirs, theirs_new = (float("inf"),) * 4
        for _ in range(ROUNDS):
            found, called = _C.overhead(fast, args, kwargs, 200)
            guards, call = min(guards, found), min(call, called)
            theirs = min(theirs, call_cost(lambda: ready(*args, **kwargs), 100))
            theirs_new = min(theirs_new, call_cost(lambda: new(*args, **kwargs), 100))
    return {
        "case": name,
        "guards_us": round(guards, 3),
        "call_us": round(call, 3),
        "torch_compile_us": round(theirs, 2),
        "torch_compile_new_us": round(theirs_new, 2),
        "ratio_guards": round(theirs / guards, 1),
        "ratio_call": round(theirs_new / call, 1),
        "eager_s": round(eager_first, 4),
        "first_call_s": round(first, 4),
    }


def best_seconds(fn, rounds: int) -> float:
    best = float("inf")
    for _ in range(rounds):
        begin = time.perf_counter()
        fn()
        best = min(best, time.perf_counter() - begin)
    return best


CASES = {"relu": relu, "resnet50": resnet50, "bert": bert}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(CASES), help="one case (repeatable)")
    parser.add_argument("--json", metavar="FILE", help="also write one JSON object a line")
    options = parser.parse_args()
    before = plain_calls()
    import framelift  # noqa: F401

    after = min(plain_calls() for _ in range(3))
    rows = [{"case": "python call", "before_ns": round(before, 1), "after_ns": round(after, 1)}]
    print(f"a Python call: {before:.1f} ns before framelift is imported, {after:.1f} ns after")
    for name in options.only or CASES:
        row = measure(name, CASES[name])
        rows.append(row)
        print(
            f"{name:10} guards {row['guards_us']:7.3f} us   call {row['call_us']:7.3f} us   "
            f"torch.compile {row['torch_compile_us']:8.2f} us, with new outputs "
            f"{row['torch_compile_new_us']:8.2f} us   {row['ratio_guards']:.1f}x   {row['ratio_call']:.1f}x"
            f"   first call {row['first_call_s']:.3f} s (eager {row['eager_s']:.3f} s)",
            flush=True,
        )
    if options.json:
        with open(options.json, "w") as f:
            f.writelines(json.dumps(r) + "\n" for r in rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
