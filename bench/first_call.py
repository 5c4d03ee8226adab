"""The first call of a compiled model beside eager's first call, and where its time goes.

Every sample is a process of its own that makes the model and calls it; contenders take turns, N rounds of them.
Figures are the minimum and the median of the rounds; the stages are those of the fastest one. (Image models of the zoo
have been run by then, by PyTorch, which gave their batch norms statistics: eager's kernels are warm, framelift's are
not.) The goal is 1.5 times eager's first call and 50 ms.

    python bench/first_call.py [--only NAME] [--rounds N] [--beside FOLDER] [--realtime] [--json FILE]

--beside also measures another build of framelift, whose package lies in FOLDER: before and after a change. --realtime
gives the calls, not the preparations, real-time priority: for a machine that others use, by whoever may.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

CASES = ("resnet18", "resnet50", "mobilenet_v2", "vgg16", "timm_vision_transformer", "hf_Bert", "minilm", "hf_GPT2")
HERE = str(Path(__file__).parent.parent / "python")
CALLS = 12  # after the first: the fastest is `call_ms`


def undisturbed() -> None:
    """Real-time priority for every thread that this process has, and those that they start."""
    for thread in os.listdir("/proc/self/task"):
        os.sched_setscheduler(int(thread), os.SCHED_FIFO, os.sched_param(1))


def sample(name: str, contender: str, realtime: bool) -> dict:
    """In a process of its own."""
    import torch

    from framelift import compile, explain, zoo

    entry = zoo.load(name)
    fn = entry.model if contender == "eager" else compile(entry.model)
    times = []
    torch.randn(64, 64) @ torch.randn(64, 64)
    if realtime:
        undisturbed()
    with torch.inference_mode():
        for _ in range(CALLS + 1):
            begin = time.perf_counter()
            fn(*entry.args, **entry.kwargs)
            times.append((time.perf_counter() - begin) * 1000)
    row = {"first_ms": times[0], "call_ms": min(times[1:]), "threads": torch.get_num_threads()}
    if contender != "eager":
        (trace,) = explain(fn).traces
        row["stages_ms"] = getattr(trace, "first_call_ms", None)
    return row


def sample_apart(name: str, contender: str, package: str, realtime: bool) -> dict:
    command = [sys.executable, __file__, "--sample", name, contender, *(["--realtime"] if realtime else [])]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": package}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{name}, {contender}: {done.stderr.strip()[-800:]}")
    return json.loads(done.stdout.splitlines()[-1])


def row_of(name: str, samples: dict) -> dict:
    row = {"model": name, "threads": samples["eager"][0]["threads"], "rounds": len(samples["eager"])}
    for contender, found in samples.items():
        best = min(found, key=lambda s: s["first_ms"])
        row[f"{contender}_first_ms"] = round(best["first_ms"], 1)
        row[f"{contender}_first_median_ms"] = round(statistics.median(s["first_ms"] for s in found), 1)
        row[f"{contender}_call_ms"] = round(min(s["call_ms"] for s in found), 2)
        if best.get("stages_ms"):
            row[f"{contender}_stages_ms"] = {k: round(v, 1) for k, v in best["stages_ms"].items()}
    row["goal_ms"] = round(1.5 * row["eager_first_ms"] + 50, 1)
    row["met"] = row["framelift_first_ms"] <= row["goal_ms"]
    return row


def print_row(row: dict) -> None:
    def figures(contender):
        return f"{row[f'{contender}_first_ms']:7.1f} ({row[f'{contender}_first_median_ms']:.1f})"

    before = f"   before {figures('before')}" if "before_first_ms" in row else ""
    ours = f"   framelift {figures('framelift')}   goal {row['goal_ms']} {'met' if row['met'] else 'not met'}"
    print(f"{row['model']:24} eager {figures('eager')}{before}{ours}")
    print("    " + ", ".join(f"{k} {v}" for k, v in row["framelift_stages_ms"].items()), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", help="one model of the zoo (repeatable)")
    parser.add_argument("--rounds", type=int, default=7, help="processes of each contender (7)")
    parser.add_argument("--beside", metavar="FOLDER", help="another build's python folder, as `before`")
    parser.add_argument("--realtime", action="store_true", help="real-time priority for the calls")
    parser.add_argument("--json", metavar="FILE", help="also write one JSON object a line")
    parser.add_argument("--sample", nargs=2, metavar=("NAME", "CONTENDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sample:
        print(json.dumps(sample(*options.sample, options.realtime)))
        return 0
    contenders = {"eager": HERE, "framelift": HERE} | ({"before": options.beside} if options.beside else {})
    rows = []
    for name in options.only or CASES:
        samples = {contender: [] for contender in contenders}
        for _ in range(options.rounds):
            for contender, package in contenders.items():
                samples[contender].append(sample_apart(name, contender, package, options.realtime))
        rows.append(row_of(name, samples))
        print_row(rows[-1])
    if options.json:
        with open(options.json, "w") as f:
            f.writelines(json.dumps(r) + "\n" for r in rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
