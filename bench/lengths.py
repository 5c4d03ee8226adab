"""Texts of ever other lengths: a stream of calls, each length in it once a round, in another order each round.

Contenders take turns, a round each: threads of the one before go on spinning for a while. In the first round each
length is new: framelift records it; in the second its engine is made ready; from then on it runs. torch.compile
(dynamic=True, weights frozen) compiles in its first calls. Figures are seconds of a round's calls, and milliseconds of
its longest call.

    python bench/lengths.py [--only NAME] [--lengths N] [--longest L] [--rounds N] [--against compile] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path

CASES = ("minilm", "hf_DistilBert", "hf_Bert")
SHORTEST = 8


def text(entry, length):
    """Arguments of one text of this length, made of the entry's own by repeating or cutting it."""
    import torch
    from torch.utils._pytree import tree_map

    def cut(x):
        return x[:1, torch.arange(length) % x.shape[1]] if isinstance(x, torch.Tensor) and x.dim() == 2 else x

    return tree_map(cut, (entry.args, entry.kwargs))


def contenders(model, against):
    """{name: function}; framelift last, so that what the others leave in caches helps nobody else."""
    import torch

    import framelift

    found = {"eager": model}
    if "compile" in against:
        torch._inductor.config.freezing = True
        found["compile"] = torch.compile(model, dynamic=True)
    return found | {"framelift": framelift.compile(model)}


def seconds(function, args, kwargs):
    begin = time.perf_counter()
    function(*args, **kwargs)
    return time.perf_counter() - begin


def measure(name, count, longest, rounds, against):
    import torch

    from framelift import explain, zoo

    entry = zoo.load(name)
    lengths = sorted({round(SHORTEST + i * (longest - SHORTEST) / max(count - 1, 1)) for i in range(count)})
    calls, functions, order = {n: text(entry, n) for n in lengths}, contenders(entry.model, against), random.Random(1)
    row = {"model": name, "lengths": len(lengths), "longest": longest, "threads": torch.get_num_threads(), "rounds": []}
    with torch.inference_mode():
        for _ in range(rounds):
            shuffled = order.sample(lengths, len(lengths))
            times = {c: [seconds(f, *calls[n]) for n in shuffled] for c, f in functions.items()}
            of_round = {c: {"s": round(sum(t), 4), "longest_ms": round(max(t) * 1e3, 1)} for c, t in times.items()}
            row["rounds"].append(of_round)
            print_round(name, len(row["rounds"]), of_round)
    found = explain(functions["framelift"])
    row |= {"recorded": found.recorded, "replayed": found.replayed, "native": found.native, "traces": len(found.traces)}
    row["memory_mib"] = {kind: round(size / 2**20, 1) for kind, size in found.memory.items() if size}
    return row


def print_round(name, number, times):
    figures = ", ".join(f"{c} {t['s']:.2f} s (longest call {t['longest_ms']:.0f} ms)" for c, t in times.items())
    print(f"{name:16} round {number}: {figures}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", help="one text model of the zoo (repeatable)")
    parser.add_argument("--lengths", type=int, default=32, metavar="N", help="how many (32)")
    parser.add_argument("--longest", type=int, default=256, metavar="L", help="tokens of the longest (256)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of all lengths (5)")
    parser.add_argument("--against", choices=["compile"], action="append", default=[], help="also torch.compile")
    parser.add_argument("--json", metavar="FILE", help="also write one JSON object a line")
    options = parser.parse_args()
    if options.lengths < 1 or options.rounds < 1 or options.longest < SHORTEST:
        parser.error(f"--lengths and --rounds: at least 1; --longest: at least {SHORTEST}")
    rows = []
    for name in options.only or CASES:
        rows.append(measure(name, options.lengths, options.longest, options.rounds, options.against))
        print(f"{name:16} {rows[-1]['recorded']} recordings; holds {rows[-1]['memory_mib']} MiB", flush=True)
        if options.json:
            Path(options.json).parent.mkdir(parents=True, exist_ok=True)
            Path(options.json).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
