"""Prints the tables of a GPU's rows as Markdown.

python bench/gpu_table.py FILE ... takes the files that `framelift bench --device cuda --json FILE` wrote. A later
file's row stands in place of an earlier one's of the same model and dtype. Each machine has a table. Ratios are to
eager's faster layout.
"""

import json
import sys

from framelift.bench.rows import key
from framelift.bench.run import geomean

HEADER = ("model", "batch", "eager", "torch.compile", "framelift", "over eager", "over torch.compile")
HEADER += ("first call: eager's, torch.compile's", "framelift's beyond eager's, cold, warm")
HEADER += ("MiB: eager, torch.compile, framelift", "cosine")
CALLS = {"cold": "first_call_s", "warm": "first_call_warm_s"}  # by what the disk caches hold
MACHINE = (("gpu", ""), ("driver", "driver "), ("torch", "PyTorch "), ("cuda", "CUDA "), ("cudnn", "cuDNN "))


def main(paths):
    rows = {}
    for path in paths:
        with open(path, encoding="utf-8") as file:
            rows |= {key(row): row for row in map(json.loads, file)}
    on_gpu = [row for row in rows.values() if row.get("device") == "cuda"]
    if not on_gpu:
        sys.exit(f"gpu_table: no rows of a GPU in {' '.join(paths)}")
    done = [row for row in on_gpu if "error" not in row]
    for dtype, machine in dict.fromkeys((row["dtype"], _machine(row)) for row in done):
        print(f"{dtype}, {machine}. Milliseconds per call.")
        print("\n".join(table([row for row in done if (row["dtype"], _machine(row)) == (dtype, machine)])))
    for row in on_gpu:
        if "error" in row:
            print(f"Not measured: {row['model']}: {row['error']}")


def table(done):
    """The lines of the table of one dtype on one machine."""
    yield ""
    yield f"| {' | '.join(HEADER)} |"
    yield "|---" * len(HEADER) + "|"
    for row in done:
        yield f"| {' | '.join(_cells(row))} |"
    yield ""
    yield _means(done)
    yield from _worst(done)
    whole = sum(_is_whole(row) for row in done)
    yield f"One segment, one engine, nothing eager: {whole} of {len(done)} models."
    yield ""


def _machine(row):
    return ", ".join(f"{prefix}{row[name]}" for name, prefix in MACHINE if row.get(name))


def _cells(row):
    yield row["model"]
    yield str(row["batch"])
    for contender in ("eager", "compile", "framelift"):
        yield _number(row.get(f"{contender}_ms"), ".3f")
    for contender in ("eager", "compile"):
        yield _number(_ratio(row, contender), ".2f", "x")
    yield f"{row['eager_first_call_s']:.2f} s, {_number(row.get('compile_first_call_s'), '.1f', ' s')}"
    yield ", ".join(f"{_beyond(row, call):.2f} s" for call in CALLS.values())
    eager = row.get(f"{row['eager_layout']}_mib")
    yield ", ".join(_number(m, ".0f") for m in (eager, row.get("compile_mib"), row.get("framelift_mib")))
    holes = f", {row['nonfinite']} not finite" if row["nonfinite"] or row["eager_nonfinite"] else ""
    yield f"{row['cosine']:.6f}{holes}"


def _number(value, form, unit=""):
    return "-" if value is None else f"{value:{form}}{unit}"


def _ratio(row, contender):
    other = row.get(f"{contender}_ms")
    return other / row["framelift_ms"] if other else None


def _beyond(row, call):
    """Seconds until the engine answers, without what eager's own first call takes in a process of its own."""
    return row[call] - row["eager_first_call_s"]


def _worst(rows):
    worst = {name: max(_beyond(row, call) for row in rows) for name, call in CALLS.items()}
    calls = ", ".join(f"{seconds:.2f} s {name}" for name, seconds in worst.items())
    yield f"First calls beyond eager's: at most {calls}."
    both = [row for row in rows if row.get("compile_mib") and row.get("framelift_mib")]
    if both:
        less = sum(row["framelift_mib"] <= row["compile_mib"] for row in both)
        yield f"Memory no more than torch.compile's: {less} of {len(both)} models."


def _means(rows):
    parts = []
    for contender, name in (("eager", "eager"), ("compile", "torch.compile")):
        ratios = [ratio for ratio in (_ratio(row, contender) for row in rows) if ratio]
        if ratios:
            parts.append(f"{geomean(ratios):.2f}x {name} ({len(ratios)} models, least {min(ratios):.2f}x)")
    return f"Geometric mean: {', '.join(parts)}." if parts else "No model was measured."


def _is_whole(row):
    one = row["segments"] == row["engines"] == row["partitions"] == 1
    return one and not row["breaks"] and row["lowered"] + row["dead"] == row["operators"]


if __name__ == "__main__":
    main(sys.argv[1:])
