"""Writes the tables of docs/coverage.md, bench/results/coverage.json and, a line for each model, coverage_models.json.

python bench/coverage.py ROWS.json ... takes the files that `framelift bench --suite NAME --json FILE` wrote; of several
rows of a model the last one counts.
"""

import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from framelift.bench import suite
from framelift.zoo import suites

ROOT = Path(__file__).parent.parent
MARK = "<!-- measured -->"


def main(paths):
    rows = list({(row["suite"], row["model"]): row for path in paths for row in suite.read_rows(path)}.values())
    results = {name: [row for row in rows if row["suite"] == name] for name in suites.SUITES}
    results = {
        name: {"of": len(suites.names(name)), **suite.summary(found)} for name, found in results.items() if found
    }
    packages = {name: version(name) for name in ("torch", "torchvision", "timm", "transformers")}
    data = {"python": platform.python_version(), "packages": packages, "suites": results}
    brief = {
        f"{row['suite']} {row['model']}": short(row) for row in sorted(rows, key=lambda r: (r["suite"], r["model"]))
    }
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in brief.items())
    (ROOT / "bench/results").mkdir(exist_ok=True)
    (ROOT / "bench/results/coverage.json").write_text(json.dumps(data, indent=1) + "\n")
    (ROOT / "bench/results/coverage_models.json").write_text("{\n" + lines + "\n}\n")
    document = ROOT / "docs/coverage.md"
    head = document.read_text().partition(MARK)[0]
    document.write_text(head + MARK + "\n\n" + "\n".join(tables(data)) + "\n")


def short(row):
    """One model in one line of bench/results/coverage_models.json."""
    if row["status"] != "done":
        return {key: row[key] for key in ("status", "reason")}
    keys = ("one_segment", "segments", "correct", "operators", "lowered", "dead", "engines", "peer")
    return {"status": "done"} | {key: row[key] for key in keys if key in row}


def tables(data):
    yield "Python " + data["python"] + ", " + ", ".join(f"{k} {v}" for k, v in data["packages"].items()) + "."
    yield ""
    titles = ("models tried", "of", "run in eager here", "one segment", "one engine, nothing eager", "correct")
    yield "| suite | " + " | ".join(titles) + " | recorded operators lowered or dead |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, r in data["suites"].items():
        built = r["models"] - r["not built"]
        shares = " | ".join(share(r[key], built) for key in ("one_segment", "one_engine", "correct"))
        lowered = share(r["lowered_or_dead"], r["operators"])
        yield f"| {name} | {r['models']} | {r['of']} | {built} | {shares} | {lowered} |"
    yield from beside_peer(data["suites"])
    for name, r in data["suites"].items():
        yield f"\n## {name}"
        for key, title in (
            ("wrong", "Wrong answer"),
            ("trouble", "Failed, crashed or not finished"),
            ("reasons", "Models by reason of a break or of giving up"),
            ("eager_operators", "Models by operator left to PyTorch"),
            ("not_built_reasons", "Models that eager did not run here, by reason"),
        ):
            if r[key]:
                yield f"\n| {title} | |\n|---|---|"
                yield from (f"| {cell(k)} | {v} |" for k, v in r[key].items())


def beside_peer(results):
    asked = {name: r for name, r in results.items() if "peer_models" in r}
    if not asked:
        return
    yield "\n## Beside torch.compile"
    yield '\nThe same models in `torch.compile(model, backend="eager", fullgraph=True)`: one graph, or its error.'
    yield "\n| suite | models asked | one graph in torch.compile | one segment in framelift | in both | in neither |"
    yield "|---|---|---|---|---|---|"
    for name, r in asked.items():
        n, both = r["peer_models"], r["peer_ok"] - len(r["only_peer"])
        shares = f"{share(r['peer_ok'], n)} | {share(r['peer_one_segment'], n)}"
        yield f"| {name} | {n} | {shares} | {both} | {len(r['neither'])} |"
    for key, title in (
        ("only_framelift", "One segment in framelift; what torch.compile said"),
        ("only_peer", "One graph in torch.compile; why not one segment"),
    ):
        lines = [f"| {model} | {cell(why)} |" for r in asked.values() for model, why in r[key].items()]
        if lines:
            yield f"\n| {title} | |\n|---|---|"
            yield from lines


def cell(text):
    return str(text).replace("|", "/")[:160]


def share(part, whole):
    return f"{part} ({part / whole:.1%})" if whole else "0"


if __name__ == "__main__":
    main(sys.argv[1:])
