"""Compiling and running a model starts no program and writes no file."""

import os
import subprocess
import sys

SCRIPT = """
import os, sys
import torch
import framelift

started, written = [], []

def audit(event, args):
    if event in ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.system", "os.fork"):
        started.append((event, args[:1]))
    if event == "open":
        path, mode, flags = args
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes and path != os.devnull:
            written.append(path)

model = torch.nn.Sequential(
    torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten(),
    torch.nn.Linear(8 * 8 * 8, 16), torch.nn.LayerNorm(16), torch.nn.GELU(),
).eval()
x = torch.randn(2, 3, 8, 8)
with torch.no_grad():
    reference = model(x)
sys.addaudithook(audit)
fast = framelift.compile(model)
with torch.no_grad():
    answers = [fast(x) for _ in range(3)]
assert all(torch.allclose(a, reference, atol=1e-4) for a in answers)
e = framelift.explain(fast)
assert (e.replayed, e.engines) == (2, 1), str(e)
assert "torch._inductor" not in sys.modules and "torch._dynamo" not in sys.modules, "the peer was imported"
print("started", started, "written", written)
"""


def test_no_program_is_started_and_no_file_is_written(tmp_path):
    folders = {name: tmp_path / name for name in ("home", "tmp", "cwd", "cache")}
    for folder in folders.values():
        folder.mkdir()
    environment = {
        "PATH": "",
        "HOME": str(folders["home"]),
        "TMPDIR": str(folders["tmp"]),
        "XDG_CACHE_HOME": str(folders["cache"]),
        "PYTHONDONTWRITEBYTECODE": "1",
        **{k: v for k, v in os.environ.items() if k in ("LD_LIBRARY_PATH", "PYTHONPATH")},
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=folders["cwd"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "started [] written []\n"
    assert [p for name in ("home", "tmp", "cwd") for p in folders[name].rglob("*")] == []
