"""tools/check_layers.py finds what it forbids."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def check(src):
    done = subprocess.run(
        [sys.executable, ROOT / "tools/check_layers.py", src], capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("path", "include", "rule"),
    [
        ("base/log.c", '"graph/op.h"', "base may see nothing; not graph/op.h"),
        ("cpu/gemm.c", '"graph/graph.h"', "cpu may see"),
        ("rt/engine.c", '"lower/lower.h"', "rt may see"),
        ("lower/lower.c", "<Python.h>", "lower must not see Python"),
        ("lower/lower_test.c", "<Python.h>", "lower must not see Python"),
        ("graph/graph.c", '"op.h"', "includes are written from src/"),
        ("graph/graph.c", '"torch/op.h"', "unknown part torch"),
    ],
)
def test_a_violation_is_found(tmp_path, path, include, rule):
    file = tmp_path / path
    file.parent.mkdir()
    file.write_text(f"/* head */\n#include {include}\n")
    status, out = check(tmp_path)
    assert status == 1 and f"{path}:2: " in out and rule in out


@pytest.mark.parametrize(
    ("path", "include"),
    [
        ("cpu/gemm.c", '"graph/op.h"'),
        ("cpu/gemm.c", "<immintrin.h>"),
        ("cpu/gemm_test.c", '"graph/graph.h"'),
        ("plan/plan.c", '"lower/lower.h"'),
        ("capture/rec.c", "<internal/pycore_frame.h>"),
        ("python/module.c", '"capture/record.h"'),
    ],
)
def test_what_is_allowed(tmp_path, path, include):
    file = tmp_path / path
    file.parent.mkdir()
    file.write_text(f"#include {include}\n")
    assert check(tmp_path)[0] == 0


def test_the_sources_follow_the_layers():
    status, out = check(ROOT / "src")
    assert status == 0, out
