"""The GPU's benchmark where there is no GPU: its rows, processes, budget and tables. tests/gpu measures with one."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from framelift import cli
from framelift.bench import apart, gpu, peers
from framelift.bench.rows import Rows

HERE = Path(__file__).parent
TINY = "tiny_model:tiny"
ROW = {
    **{"model": "a", "device": "cuda", "dtype": "fp16", "batch": 8, "gpu": "G", "driver": "1", "torch": "2"},
    **{"operators": 5, "lowered": 4, "dead": 1, "segments": 1, "breaks": 0, "engines": 1, "partitions": 1},
    **{"eager_layout": "eager_channels_last", "eager_ms": 4.0, "compile_ms": 3.0, "framelift_ms": 2.0},
    **{
        "first_call_s": 1.5,
        "eager_first_call_s": 0.25,
        "first_call_warm_s": 0.5,
        "compile_first_call_s": 20.0,
        "cosine": 1.0,
    },
    **{"nonfinite": 0, "eager_nonfinite": 0, "eager_channels_last_mib": 10.0, "framelift_mib": 9.0},
    **{"compile_mib": 12.0, "seconds": 7.0, "speedup": 2.0, "max_rel_err": 0.0},
}


@pytest.fixture(autouse=True)
def find_tiny_model(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))


@pytest.fixture
def stand_in_gpu(monkeypatch):
    """The CPU, called a GPU: everything but the figures is as there."""
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu, "machine", lambda: {"gpu": "none"})
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 1 << 20)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 4 << 20)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 << 30, 2 << 30))


def fails(entry, threads):
    raise RuntimeError("cannot\nand why")


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_a_row(stand_in_gpu, monkeypatch, dtype):
    monkeypatch.setattr(peers, "CUDA_PEERS", {"compile": fails})
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    row = gpu.measure(TINY, dtype=dtype, against=["compile"], rounds=1)
    assert (row["segments"], row["engines"], row["breaks"], row["batch"], row["gpu"]) == (1, 1, 0, 1, "none")
    assert row["lowered"] + row["dead"] == row["operators"] and row["cosine"] > 0.999
    assert row["nonfinite"] == row["eager_nonfinite"] == 0
    for name in ("eager", "framelift"):
        assert 0 < row[f"{name}_ms"] < 1e3 and 0 < row[f"{name}_latency_ms"] < 1e3
        assert 3 < row[f"{name}_mib"] < 4, "3 MiB a call takes, and the weights"
    assert row["framelift_memory_mib"]["arena"] > 0
    assert row["eager_channels_last_mib"] == 3, "a copy has its weights where it was made"
    assert row["peer_errors"] == {"compile": "RuntimeError: cannot"} and row["compile_ms"] is None
    assert ("cosine_fp32" in row) == (dtype == "fp16") and row["first_call_warm_s"] > 0
    assert row["first_call_warm_ms"]["record"] > 0
    json.dumps(row)


def test_first_calls(stand_in_gpu, monkeypatch):
    seconds, stages = gpu.first_call(TINY, "fp32", None)
    assert 0 < stages["record"] < stages["total"] and stages["run"] > 0
    assert stages["total"] == pytest.approx(sum(stages.values()) / 2) and 0 < seconds < 30


def test_medians_of_first_calls(monkeypatch):
    """N processes' of each kind in turns, the measuring one among them, and one more of eager's before."""
    times = {"eager_first_call": [9.0, 1.0, 3.0, 2.0, 8.0], "first_call": [(5.0, {}), (7.0, {"a": 7}), (6.0, {"a": 6})]}
    ran = []

    def call(function, *, timeout, environment, **what):
        ran.append(function.__name__)
        if function is gpu.measure:
            return {"first_call_warm_s": 4.0, "first_call_warm_ms": {"a": 4}}
        return times[function.__name__].pop(0)

    monkeypatch.setattr(apart, "call", call)
    row = gpu.measure_apart("m", timeout=60, first_calls=3, dtype="fp16", batch=None, against=[], rounds=1)
    assert (
        ran
        == ["eager_first_call", "first_call", "eager_first_call", "measure"]
        + ["eager_first_call"]
        + [
            "first_call",
            "eager_first_call",
        ]
        * 2
    )
    assert (row["first_call_s"], row["first_call_warm_s"], row["first_call_warm_ms"]) == (5.0, 6.0, {"a": 6})
    assert row["first_calls"] == 3
    assert row["eager_first_call_s"] == 2.5, "of 1, 3, 2 and 8: the first of all read the libraries"


def test_nonfinite_outputs_are_counted():
    assert gpu.nonfinite({"x": torch.tensor([1.0, float("nan"), float("inf")]), "y": torch.arange(3)}) == 2


def test_calls_apart():
    assert apart.call(os.getenv, timeout=60, environment={"SEEN": "1"}, key="SEEN") == "1"
    with pytest.raises(apart.Failed, match="^KeyError: "):
        apart.call(raising, timeout=60, what="there")
    with pytest.raises(apart.Failed, match="^SIGABRT: .*last words|^exit status"):
        apart.call(aborting, timeout=60)
    with pytest.raises(apart.Failed, match="not finished after 1 s"):
        apart.call(sleeping, timeout=1)


def raising(what):
    raise KeyError(what)


def aborting():
    print("last words", flush=True)
    os.abort()


def sleeping():
    time.sleep(60)


def test_what_fails_is_a_row(monkeypatch):
    monkeypatch.setattr(gpu, "eager_first_call", raising_first)
    row = gpu.measure_apart("m", timeout=60, dtype="fp16", batch=None, against=[], rounds=1)
    assert (row["model"], row["device"], row["dtype"]) == ("m", "cuda", "fp16")
    assert row["error"] == "ValueError: no m here" and row["seconds"] > 0


def raising_first(name, dtype, batch):
    raise ValueError(f"no {name} here")


def test_rows_are_kept_and_replaced(tmp_path):
    path = tmp_path / "rows"
    path.write_text(json.dumps(ROW) + '\n{"model": "b", "dev')
    rows = Rows(path)
    assert rows.get("a", "cuda", "fp16") == ROW and rows.get("a", "cuda", "fp16", 8)
    assert (
        not rows.get("a", "cuda", "bf16") and not rows.get("a", "cuda", "fp16", 1) and not rows.get("b", "cuda", "fp16")
    )
    rows.add({**ROW, "dtype": "bf16", "seconds": 9.0})
    rows.add({**ROW, "seconds": 3.0})
    assert [(r["dtype"], r["seconds"]) for r in map(json.loads, path.read_text().splitlines())] == [
        ("fp16", 3.0),
        ("bf16", 9.0),
    ]
    assert rows.expected_seconds("a", "cuda", "fp16", 1) == 3.0, "as last time"
    assert rows.expected_seconds("b", "cuda", "fp16", 1) == 9.0, "as the longest"
    assert Rows().expected_seconds("b", "cuda", "fp16", 1) > Rows().expected_seconds("b", "cuda", "fp16", 0) > 0


@pytest.fixture
def measured(monkeypatch):
    """The command with a GPU that takes 10 seconds for a model; yields the names it measured."""
    names, clock = [], [0.0]

    def measure_apart(name, *, timeout, **options):
        names.append(name)
        clock[0] += 10
        return {**ROW, "model": name, "dtype": options["dtype"], "seconds": 10.0}

    monkeypatch.setattr(gpu, "why_not", lambda dtype: None)
    monkeypatch.setattr(gpu, "measure_apart", measure_apart)
    monkeypatch.setattr(cli.time, "monotonic", lambda: clock[0])
    return names


def bench(*arguments):
    return cli.main(["bench", "--device", "cuda", "--dtype", "fp16", "--against", "eager,compile", *arguments])


def test_a_model_that_the_file_has_is_skipped(measured, tmp_path, capsys):
    path = str(tmp_path / "rows")
    first = ["--only", "resnet18", "--only", "alexnet", "--json", path]
    assert bench(*first) == 0 and measured == ["resnet18", "alexnet"]
    assert bench(*first, "--only", "vgg16") == 0 and measured == ["resnet18", "alexnet", "vgg16"]
    assert bench("--only", "alexnet", "--fresh", "--json", path) == 0 and measured[3:] == ["alexnet"]
    assert "geomean over 3 models: 2.00x eager, 1.50x compile" in capsys.readouterr().out
    assert len(Path(path).read_text().splitlines()) == 3


def test_the_budget_stops_before_a_model_that_does_not_fit(measured, capsys):
    names = ["resnet18", "alexnet", "vgg16", "resnet50"]
    assert bench(*(a for name in names for a in ("--only", name)), "--budget", "95") == 0
    assert measured == names
    measured.clear()
    assert bench(*(a for name in names for a in ("--only", name)), "--budget", "50") == 0
    assert not measured and "4 models are not measured" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--device", "cuda", "--against", "openvino"], "--against openvino: on cuda the peers are eager, compile"),
        (["--device", "cuda", "--suite", "timm"], "--suite: suites are run on the CPU"),
        pytest.param(
            *(["--device", "cuda", "--dtype", "fp16"], "--device cuda: PyTorch "),
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_what_does_not_go_together_exits_with_2(capsys, arguments, text):
    assert cli.main(["bench", *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out and text in err and err.count("\n") == 1


def test_the_table(tmp_path):
    path = tmp_path / "rows"
    slow = {**ROW, "model": "b", "framelift_ms": 8.0, "compile_ms": None, "breaks": 2, "nonfinite": 3}
    del slow["compile_mib"], slow["compile_first_call_s"]
    failed = {"model": "c", "device": "cuda", "dtype": "fp16", "error": "SIGSEGV: x"}
    path.write_text("\n".join(map(json.dumps, (ROW, slow, failed))))
    script = str(HERE.parent / "bench/gpu_table.py")
    done = subprocess.run([sys.executable, script, str(path)], capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    assert lines[0] == "fp16, G, driver 1, PyTorch 2. Milliseconds per call."
    first = "| a | 8 | 4.000 | 3.000 | 2.000 | 2.00x | 1.50x | 0.25 s, 20.0 s | 1.25 s, 0.25 s | 10, 12, 9 | 1.000000 |"
    second = (
        "| b | 8 | 4.000 | - | 8.000 | 0.50x | - | 0.25 s, - | 1.25 s, 0.25 s | 10, -, 9 | 1.000000, 3 not finite |"
    )
    assert lines[4:6] == [first, second]
    assert "Geometric mean: 1.00x eager (2 models, least 0.50x), 1.50x torch.compile (1 models, least 1.50x)." in lines
    assert "First calls beyond eager's: at most 1.25 s cold, 0.25 s warm." in lines
    assert "Memory no more than torch.compile's: 1 of 1 models." in lines
    assert "One segment, one engine, nothing eager: 1 of 2 models." in lines
    assert "Not measured: c: SIGSEGV: x" in lines
    path.write_text("")
    done = subprocess.run([sys.executable, script, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "no rows of a GPU" in done.stderr
