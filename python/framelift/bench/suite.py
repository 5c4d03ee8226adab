"""Breadth: every model of a suite captured, lowered and compared with eager, each in a forked process of its own.

A row has "suite", "model" and "status": "done", "not built" (with "reason"; eager PyTorch does not run it here either),
"failed" (an exception of ours), "crash" (a signal) or "timeout". Rows that are done have "one_segment", "breaks",
"give_ups", "operators", "lowered", "dead", "engines", "eager" (operators left to PyTorch), "cosine", "max_rel_err" and
"correct"; a wrong answer has "wrong" with the reason. Where eager's own answer is as far from its answer in float64,
"judged_by" says so. "peer" is what torch.compile(fullgraph=True) made of it: "ok" or its error.
"""

import json
import os
import select
import signal
import sys
import time
import traceback
from collections import Counter

MIN_COSINE = 0.9999
MAX_REL_ERR = 0.02  # of the largest element; a cosine does not see a factor
MOST_FREQUENT = 15
OUTCOMES = ("done", "not built", "failed", "crash", "timeout")


def shard(names, text):
    """The names of shard "i/n", i from 1 to n: every n-th, so that each shard is spread over the alphabet."""
    if text is None:
        return names
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise ValueError(f"shard is {text!r}; must be i/n with i from 1 to n")
    return names[int(index) - 1 :: int(count)]


def read_rows(path):
    """The rows of a file that an earlier run wrote, none where it does not exist; a cut last line is left out."""
    rows = []
    if path and os.path.exists(path):
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                try:
                    rows.append(json.loads(line))
                except ValueError:
                    continue
    return rows


def measure(suite, name, *, peer=False, report=lambda row: None):
    """One model in this process: a row without "suite" and "model"; report() gets it before the peer's turn."""
    from framelift.zoo import suites

    try:
        entry = suites.load(suite, name)
    except Exception as error:  # the library's, before framelift has seen the model
        reason = str(error) if isinstance(error, suites.NotBuilt) else suites.first_line(error)
        return {"status": "not built", "reason": reason}
    row = measure_entry(entry)
    if peer and row["status"] == "done":
        report(row | {"peer": "timeout"})
        row["peer"] = _fullgraph(entry)
    return row


def measure_entry(entry):
    """A row of one Entry: its call recorded, replayed, and compared with eager."""
    import torch

    import framelift

    def call(model):
        torch.manual_seed(0)
        with torch.inference_mode():
            return model(*entry.args, **entry.kwargs)

    try:
        reference = call(entry.model)
        stable = _difference(call(entry.model), reference)["correct"]
    except Exception as error:
        return {"status": "not built", "reason": f"eager: {type(error).__name__}: {error}"[:300]}
    try:
        fast = framelift.compile(entry.model)
        first = _difference(call(fast), reference)
        second = _difference(call(fast), reference)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return {"status": "failed", "reason": f"{type(error).__name__}: {error} ({frame.name}:{frame.lineno})"[:400]}
    row = {"status": "done", **_captured(framelift.explain(fast)), **(second if first["correct"] else first)}
    if row["correct"] is False and row["cosine"] is not None and stable:
        row.update(_judged_by_float64(entry, call, fast, reference))
    if not stable:
        row.update(correct=None, wrong="eager's own answers differ between calls")
    return row


def _judged_by_float64(entry, call, fast, reference):
    """Where rounding decides, eager's own answer in float64 tells who is nearer: {} where framelift is more than twice
    as far as the furthest of eager's answers to these inputs, and to the inputs moved by one unit in the last place."""
    import copy

    import torch
    from torch.utils import _pytree

    def double(value):
        return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    def moved(value, to):
        floats = isinstance(value, torch.Tensor) and value.dtype == torch.float32
        return torch.nextafter(value, torch.full_like(value, to)) if floats else value

    def eager_moved(to):
        args, kwargs = _pytree.tree_map(lambda value: moved(value, to), (entry.args, entry.kwargs))
        torch.manual_seed(0)
        with torch.inference_mode():
            return entry.model(*args, **kwargs)

    def single(value):
        return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    try:
        exact = copy.deepcopy(entry.model).double()
        args, kwargs = _pytree.tree_map(double, (entry.args, entry.kwargs))
        with torch.inference_mode():
            torch.manual_seed(0)
            exact = _pytree.tree_map(single, _plain(exact(*args, **kwargs)))
        answers = [reference, *(eager_moved(to) for to in (-float("inf"), 0.0, float("inf")))]
        eager = [_compared(_plain(answer), exact)["max_rel_err"] for answer in answers]
        ours = _compared(_plain(call(fast)), exact)["max_rel_err"]
    except Exception:  # a model that does not run in float64
        return {}
    if ours is None or None in eager or ours > 2 * max(eager):
        return {}
    return {"correct": True, "judged_by": "float64", "eager_max_rel_err": max(eager)}


def _captured(explanation):
    return {
        "one_segment": explanation.segments == 1 and not explanation.breaks and not explanation.native_reason,
        "segments": explanation.segments,
        "breaks": [[b.reason, b.detail, b.place] for b in explanation.breaks],
        "give_ups": [[g.reason, g.detail, g.place] for g in explanation.give_ups],
        "native_reason": explanation.native_reason,
        "replayed": explanation.replayed,
        "operators": explanation.operators,
        "lowered": explanation.lowered,
        "dead": explanation.dead,
        "engines": explanation.engines,
        "eager": [[e.op, e.reason, e.count] for e in explanation.eager],
    }


def _difference(answer, reference):
    return _compared(_plain(answer), _plain(reference))


def _compared(answer, reference):
    """The same of answers that _plain() gave."""
    from torch.utils import _pytree

    from framelift.bench.accuracy import compare

    try:
        if _pytree.tree_structure(answer) != _pytree.tree_structure(reference):
            raise ValueError("the answer has another structure than the reference")
        cosine, worst = compare(answer, reference)
    except ValueError as error:
        return {"cosine": None, "max_rel_err": None, "correct": False, "wrong": str(error)}
    row = {"cosine": cosine, "max_rel_err": worst, "correct": cosine >= MIN_COSINE and worst <= MAX_REL_ERR}
    return row if row["correct"] else row | {"wrong": f"cosine {cosine:.6f}, relative error {worst:.1e}"}


def _plain(value):
    """An answer as dicts, lists and leaves, whatever classes of outputs a library has; class names are keys."""
    import dataclasses

    if isinstance(value, dict):
        return {type(value).__name__: {str(k): _plain(v) for k, v in value.items()}}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_plain(v) for v in value]}
    if dataclasses.is_dataclass(value):
        return {type(value).__name__: {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}}
    return value


def _fullgraph(entry):
    import torch

    try:
        peer = torch.compile(entry.model, backend="eager", fullgraph=True)
        with torch.inference_mode():
            peer(*entry.args, **entry.kwargs)
        return "ok"
    except Exception as error:  # whatever the peer says
        text = str(error).strip()
        return f"{type(error).__name__}: {text.splitlines()[0][:200] if text else ''}"


def measure_apart(suite, name, *, timeout, threads=None, peer=False):
    """measure() in a forked process, at most `timeout` seconds. The caller must not have started threads of torch's."""
    read_end, write_end = os.pipe()
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _child(suite, name, write_end, threads, peer)
    os.close(write_end)
    data, timed_out = _read(read_end, start + timeout)
    os.close(read_end)
    if timed_out:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    row = {"suite": suite, "model": name}
    lines = [json.loads(line) for line in data.decode().split("\n")[:-1]]
    if lines:
        row.update(lines[-1])
    elif timed_out:
        row.update(status="timeout", reason=f"not finished after {timeout} s")
    else:
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        what = signal.Signals(number).name if number else f"exit status {os.waitstatus_to_exitcode(status)}"
        row.update(status="crash", reason=what)
    row["seconds"] = round(time.monotonic() - start, 1)
    return row


def _child(suite, name, write_end, threads, peer):
    """Never returns: a forked process must not run its parent's cleanups."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        import torch

        torch.set_num_threads(threads or 1)

        def report(row):
            os.write(write_end, (json.dumps(row, default=str) + "\n").encode())

        report(measure(suite, name, peer=peer, report=report))
    finally:
        os._exit(0 if sys.exc_info()[0] is None else 1)


def _read(descriptor, deadline):
    data = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            return data, True
        piece = os.read(descriptor, 65536)
        if not piece:
            return data, False
        data += piece


def run(suite, names, *, path=None, timeout=120, threads=None, peer=False, on_row=lambda row: None):
    """Rows of all names, in order; those that the file `path` has are taken from it, the others are appended."""
    import framelift  # noqa: F401  imported once, for every forked process

    known = {row["model"]: row for row in read_rows(path) if row.get("suite") == suite}
    rows = []
    for name in names:
        row = known.get(name)
        if row is None:
            row = measure_apart(suite, name, timeout=timeout, threads=threads, peer=peer)
            if path:
                with open(path, "a", encoding="utf-8") as lines:
                    lines.write(json.dumps(row) + "\n")
        rows.append(row)
        on_row(row)
    return rows


def _left(row):
    """How many operators of a row are left to PyTorch; one that several engines make counts once among the others."""
    return min(row["operators"], sum(count for *_, count in row["eager"]))


def summary(rows):
    """Counts and most frequent reasons: a dict that JSON takes. Shares are of the models that eager runs here."""
    built = [row for row in rows if row["status"] != "not built"]
    done = [row for row in built if row["status"] == "done"]
    reasons, operators, not_built = Counter(), Counter(), Counter()
    for row in rows:
        if row["status"] == "not built":
            not_built[row["reason"]] += 1
    for row in done:
        why = {f"{reason}: {detail}" if detail else reason for reason, detail, _ in row["breaks"] + row["give_ups"]}
        if row["native_reason"] and not why:
            why = {f"runs natively: {row['native_reason']}"}
        reasons.update(why)
        operators.update({f"{op}: {reason}" for op, reason, _ in row["eager"]})
    result = {
        "models": len(rows),
        **{status: sum(row["status"] == status for row in rows) for status in OUTCOMES},
        "one_segment": sum(row["one_segment"] for row in done),
        "correct": sum(row["correct"] is True for row in done),
        "judged_by_float64": sum(row.get("judged_by") == "float64" for row in done),
        "not_deterministic": sum(row["correct"] is None for row in done),
        "one_engine": sum(row["one_segment"] and row["engines"] == 1 and not row["eager"] for row in done),
        "operators": sum(row["operators"] for row in done),
        "lowered_or_dead": sum(row["operators"] - _left(row) for row in done),
        "wrong": {row["model"]: row["wrong"] for row in done if row["correct"] is False},
        "trouble": {row["model"]: row["reason"] for row in built if row["status"] != "done"},
        "reasons": dict(reasons.most_common(MOST_FREQUENT)),
        "eager_operators": dict(operators.most_common(MOST_FREQUENT)),
        "not_built_reasons": dict(not_built.most_common(MOST_FREQUENT)),
    }
    return result | _beside_peer([row for row in done if "peer" in row])


def _why(row):
    """Why a row is not one segment, in one line."""
    found = [f"{reason}: {detail}" if detail else reason for reason, detail, _ in row["breaks"] + row["give_ups"]]
    return found[0] if found else f"runs natively: {row['native_reason']}"


def _beside_peer(rows):
    """Of models that torch.compile(fullgraph=True) was asked about: one graph there, one segment here."""
    if not rows:
        return {}
    return {
        "peer_models": len(rows),
        "peer_ok": sum(row["peer"] == "ok" for row in rows),
        "peer_one_segment": sum(row["one_segment"] for row in rows),
        "only_peer": {row["model"]: _why(row) for row in rows if row["peer"] == "ok" and not row["one_segment"]},
        "only_framelift": {row["model"]: row["peer"] for row in rows if row["peer"] != "ok" and row["one_segment"]},
        "neither": {row["model"]: row["peer"] for row in rows if row["peer"] != "ok" and not row["one_segment"]},
    }


def row_line(row):
    """One model as one line of text."""
    if row["status"] != "done":
        return f"{row['model']}: {row['status']}: {row['reason']}"
    parts = [f"{row['operators'] - _left(row)}/{row['operators']} operators, {row['engines']} engines"]
    parts.append("one segment" if row["one_segment"] else f"{row['segments']} segments")
    parts += [f"{reason}: {detail}" for reason, detail, _ in (row["breaks"] + row["give_ups"])[:1]]
    parts += [] if row["correct"] else [f"WRONG: {row['wrong']}"]
    return f"{row['model']}: " + ", ".join(parts)


def summary_lines(suite, result):
    """A summary as text."""
    built = result["models"] - result["not built"]
    lines = [f"{suite}: {result['models']} models, {built} run in eager PyTorch here"]
    for key, text in (
        ("one_segment", "one segment"),
        ("one_engine", "one engine, nothing eager"),
        ("correct", "correct"),
    ):
        lines.append(f"  {text}: {result[key]} of {built}" + (f" ({result[key] / built:.1%})" if built else ""))
    if "peer_ok" in result:
        lines.append(
            f"  of {result['peer_models']} asked both: torch.compile(fullgraph=True) {result['peer_ok']}, "
            f"one segment {result['peer_one_segment']}"
        )
    for key, title in (
        ("wrong", "wrong answers"),
        ("trouble", "failed, crashed or not finished"),
        ("reasons", "models by reason of a break or of giving up"),
        ("eager_operators", "models by operator left to PyTorch"),
        ("not_built_reasons", "models that were not built"),
        ("only_peer", "one graph in torch.compile alone"),
        ("only_framelift", "one segment in framelift alone"),
    ):
        if result.get(key):
            lines += [f"  {title}:", *(f"    {name}: {value}" for name, value in result[key].items())]
    return lines
