"""Checks who includes whom in src/: prints each violation as file:line and exits with 1 if there is one.

base -> graph -> passes -> lower -> plan is the order in which parts may see each other. The run-time parts (cpu, cuda,
rt) see plan data and operator tables, no pass and no Python; only capture and python include Python.h. Unit tests and
benchmarks of a part may use any part to set their stage, but no Python either.
"""

import argparse
import re
import sys
from pathlib import Path

# part -> what its files may include: parts, or single headers. A part may always include itself.
ALLOWED = {
    "base": set(),
    "graph": {"base"},
    "passes": {"base", "graph"},
    "lower": {"base", "graph", "passes"},
    "cpu": {"base", "graph/op.h", "graph/ops.def", "graph/acts.def"},
    "cuda": {"base", "graph/op.h", "graph/ops.def", "graph/acts.def", "cpu/kernel.h", "cpu/backend.h"},  # the contracts
    "plan": {"base", "graph", "passes", "lower", "cpu", "cuda"},
    "rt": {"base", "graph", "passes/passes.h", "plan", "cpu", "cuda"},  # passes: for rt/compile.c alone
    "capture": {
        "base",
        "graph",
        "lower",
        "passes",
        "plan",
        "rt",
        "framelift",
        "cpu/backend.h",
        "cuda/device.h",
        "cuda/compare.h",
    },
    "python": {"base", "graph", "lower", "passes", "plan", "rt", "capture", "framelift"},
}
WITH_PYTHON = {"capture", "python"}
TEST_SUFFIXES = ("_test", "_bench", "_case")
SUFFIXES = {".c", ".h", ".def", ".inc", ".inl"}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
PYTHON_HEADER = re.compile(r"^(Python|structmember|frameobject|opcode)\.h$|^(internal|cpython)/")


def why_not(part: str, name: str, quoted: bool, is_test: bool) -> str | None:
    """The rule that this include breaks, or None."""
    if PYTHON_HEADER.match(name):
        return None if part in WITH_PYTHON else f"{part} must not see Python"
    if not quoted:
        return None
    target = name.split("/")[0]
    if "/" not in name:
        return "includes are written from src/: part/file.h"
    if target == part:
        return None
    if target not in ALLOWED and target != "framelift":
        return f"unknown part {target}"
    if is_test and target not in WITH_PYTHON:
        return None
    if target in ALLOWED[part] or name in ALLOWED[part]:
        return None
    return f"{part} may see {', '.join(sorted(ALLOWED[part])) or 'nothing'}; not {name}"


def violations(src: Path) -> list[str]:
    found = []
    for path in sorted(p for p in src.rglob("*") if p.suffix in SUFFIXES):
        part = path.relative_to(src).parts[0]
        if part not in ALLOWED:
            found.append(f"{path}:1: unknown part {part}: add it to {Path(__file__).name}")
            continue
        is_test = path.stem.endswith(TEST_SUFFIXES)
        for number, line in enumerate(path.read_text().splitlines(), 1):
            include = INCLUDE.match(line)
            reason = include and why_not(part, include[2], include[1] == '"', is_test)
            if reason:
                found.append(f"{path}:{number}: {reason}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("src", nargs="?", type=Path, default=Path("src"))
    src = parser.parse_args().src
    if not src.is_dir():
        print(f"check_layers: {src} is not a directory", file=sys.stderr)
        return 2
    found = violations(src)
    print("\n".join(found) if found else f"check_layers: {src}: every include follows the layers")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
