"""Writes the tables of docs/coverage.md and bench/results/coverage.json.

python bench/coverage.py ROWS.json ... takes the files that `framelift bench --suite NAME --json FILE` wrote.
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
    rows = [row for path in paths for row in suite.read_rows(path)]
    results = {name: [row for row in rows if row["suite"] == name] for name in suites.SUITES}
    results = {
        name: {"of": len(suites.names(name)), **suite.summary(found)} for name, found in results.items() if found
    }
    packages = {name: version(name) for name in ("torch", "torchvision", "timm", "transformers")}
    data = {"python": platform.python_version(), "packages": packages, "suites": results}
    (ROOT / "bench/results").mkdir(exist_ok=True)
    (ROOT / "bench/results/coverage.json").write_text(json.dumps(data, indent=1) + "\n")
    document = ROOT / "docs/coverage.md"
    head = document.read_text().partition(MARK)[0]
    document.write_text(head + MARK + "\n\n" + "\n".join(tables(data)) + "\n")


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
                yield from (f"| {str(k).replace('|', '/')[:160]} | {v} |" for k, v in r[key].items())


def share(part, whole):
    return f"{part} ({part / whole:.1%})" if whole else "0"


if __name__ == "__main__":
    main(sys.argv[1:])
