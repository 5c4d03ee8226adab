"""One model's benchmark, and many models' benchmarks, each in a process of its own."""

import copy
import importlib.util
import json
import math
import subprocess
import sys
import time

from framelift.bench import peers
from framelift.bench.accuracy import compare
from framelift.bench.timing import interleave

PEER_PACKAGES = {"openvino": "openvino", "onnxruntime": "onnxruntime"}
OVERHEAD_CALLS = 1000
MOST_RECORDINGS = 4


def available_peers():
    """Peers whose packages are installed."""
    return [name for name in peers.PEERS if importlib.util.find_spec(PEER_PACKAGES.get(name, "torch"))]


def until_replayed(fast, timed_call):
    """(seconds, answer) of calls until what was recorded answers: seconds of all before that one, whose answer it is.

    A model may be recorded more than once, as one that asks whether it is being compiled. One that is never replayed
    gives its last answer.
    """
    import framelift

    total = 0.0
    for _ in range(MOST_RECORDINGS):
        seconds, answer = timed_call()
        if framelift.explain(fast).replayed:
            break
        total += seconds
    return total, answer


def measure(name, *, dtype="fp32", batch=None, against=(), rounds=10, threads=None, on_stage=lambda text: None):
    """Benchmarks one model in this process: a dict with the keys of `framelift bench --json`."""
    import torch

    import framelift
    from framelift import _C, zoo

    if threads:
        torch.set_num_threads(threads)
    threads = torch.get_num_threads()
    on_stage("load")
    entry = zoo.load(name, batch, dtype=dtype)
    row = {"model": name, "device": "cpu", "dtype": dtype, "batch": batch, "threads": threads}

    on_stage("first call")
    fast = framelift.compile(entry.model)
    with torch.inference_mode():
        row["first_call_s"], answer = until_replayed(fast, lambda: _timed(lambda: fast(*entry.args, **entry.kwargs)))
        eager_model = copy.deepcopy(entry.model)
        row["eager_first_call_s"], reference = _timed(lambda: eager_model(*entry.args, **entry.kwargs))
    row["cosine"], row["max_rel_err"] = compare(answer, reference)
    explained = framelift.explain(fast)
    row["first_call_s"] += sum(t.ready_ms.get("total", 0) for t in explained.traces) / 1e3
    row.update(counts(explained))

    contenders = {"eager": peers.eager(entry, threads)}
    channels_last = peers.eager_channels_last(entry, threads)
    if channels_last:
        contenders["eager_channels_last"] = channels_last
    failed = {}
    for peer in against:
        on_stage(peer)
        try:
            start = time.perf_counter()
            contenders[peer] = peers.PEERS[peer](entry, threads)
            row[f"{peer}_first_call_s"] = time.perf_counter() - start
        except Exception as error:  # a peer that cannot take the model is a result, not our failure
            failed[peer] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    contenders["framelift"] = peers.inference(fast, entry.args, entry.kwargs)

    best = interleave(contenders, rounds, lambda i: on_stage(f"round {i}/{rounds}"))
    eager_names = [n for n in best if n.startswith("eager")]
    row["eager_layout"] = min(eager_names, key=best.get)
    row["eager_ms"] = best[row["eager_layout"]] * 1e3
    row["framelift_ms"] = best["framelift"] * 1e3
    row["speedup"] = row["eager_ms"] / row["framelift_ms"]
    for peer in against:
        row[f"{peer}_ms"] = best[peer] * 1e3 if peer in best else None
    if failed:
        row["peer_errors"] = failed
    with torch.inference_mode():
        row["overhead_us"] = _C.overhead(fast, entry.args, entry.kwargs, OVERHEAD_CALLS)[0]
    return row


def measure_apart(name, *, timeout, **options):
    """measure() in a new process, so that a crash, or a peer's threads, touch no other model.

    A dict with "model" and "error" when it did not finish.
    """
    command = [sys.executable, "-m", "framelift", "bench", "--in-process", "--json", "--only", name]
    for option, value in options.items():
        if value is not None:
            command += [f"--{option}", ",".join(value) or "none" if option == "against" else str(value)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"model": name, "error": f"not finished after {timeout} s"}
    for line in done.stdout.splitlines():
        if line.startswith('{"model"'):
            return json.loads(line)
    last = (done.stderr.strip().splitlines() or ["no output"])[-1]
    return {"model": name, "error": f"exit status {done.returncode}: {last}"}


def geomean(values):
    values = [v for v in values if v]
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def _timed(function):
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def counts(explanation):
    """What a row says of an explanation."""
    names = ("operators", "lowered", "dead", "segments", "engines")
    return {
        **{name: getattr(explanation, name) for name in names},
        "breaks": len(explanation.breaks),
        "partitions": len(explanation.partitions),
        "native_reason": explanation.native_reason,
    }
