"""The first two calls of a compiled model beside eager's first call, and where their time goes.

Every sample is a process of its own that makes the model and calls it; contenders take turns, N rounds of them.
Figures are the minimum and the median of the rounds; the stages are those of the fastest one: of the first call, and of
what the second one does before its engines run. (Image models of the zoo
have been run by then, by PyTorch, which gave their batch norms statistics: eager's kernels are warm, framelift's are
not.) The goal, of the first, is 1.5 times eager's first call and 50 ms.

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
CALLS = 12  # after the first two: the fastest is `call_ms`


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
        for _ in range(CALLS + 2):
            begin = time.perf_counter()
            fn(*entry.args, **entry.kwargs)
            times.append((time.perf_counter() - begin) * 1000)
    row = {"first_ms": times[0], "second_ms": times[1], "call_ms": min(times[2:]), "threads": torch.get_num_threads()}
    if contender != "eager":
        traces = explain(fn).traces  # of a build that lacks some of this, too
        row["stages_ms"] = getattr(traces[-1], "first_call_ms", None)
        row["ready_ms"] = getattr(traces[-1], "ready_ms", None)
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
        row[f"{contender}_second_ms"] = round(min(s["second_ms"] for s in found), 1)
        row[f"{contender}_call_ms"] = round(min(s["call_ms"] for s in found), 2)
        for stages in ("stages_ms", "ready_ms"):
            if best.get(stages):
                row[f"{contender}_{stages}"] = {k: round(v, 1) for k, v in best[stages].items()}
    row["goal_ms"] = round(1.5 * row["eager_first_ms"] + 50, 1)
    row["met"] = row["framelift_first_ms"] <= row["goal_ms"]
    row["second_met"] = row["framelift_second_ms"] <= row["goal_ms"]
    return row


def print_row(row: dict) -> None:
    def figures(contender):
        first, median, second = (row[f"{contender}_{k}_ms"] for k in ("first", "first_median", "second"))
        return f"{first:7.1f} ({median:.1f}), {second:.1f}"

    met = "met" if row["met"] else "not met"
    before = f"   before {figures('before')}" if "before_first_ms" in row else ""
    ours = f"   framelift {figures('framelift')}   goal {row['goal_ms']}: {met}"
    print(f"{row['model']:24} eager {figures('eager')}{before}{ours}")
    for stages in ("framelift_stages_ms", "framelift_ready_ms"):
        print("    " + ", ".join(f"{k} {v}" for k, v in row.get(stages, {}).items()), flush=True)


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
    if options.json:
        Path(options.json).parent.mkdir(parents=True, exist_ok=True)
        Path(options.json).write_text("")
    for name in options.only or CASES:
        samples = {contender: [] for contender in contenders}
        for _ in range(options.rounds):
            for contender, package in contenders.items():
                samples[contender].append(sample_apart(name, contender, package, options.realtime))
        row = row_of(name, samples)
        print_row(row)
        if options.json:
            with open(options.json, "a") as f:
                f.write(json.dumps(row) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
