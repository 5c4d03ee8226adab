"""The command line: help, exit statuses, where output goes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import framelift
from framelift import cli

TINY = "tiny_model:tiny"


@pytest.fixture(autouse=True)
def find_tiny_model(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def run(capsys, *arguments):
    """(exit status, stdout, stderr)"""
    try:
        status = cli.main(list(arguments))
    except SystemExit as exit_:
        status = exit_.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_version(capsys):
    assert run(capsys, "--version") == (0, f"framelift {framelift.__version__}\n", "")


@pytest.mark.parametrize("command", [[], ["bench"], ["explain"], ["ops"]])
def test_help(capsys, command):
    status, out, err = run(capsys, *command, "--help")
    assert status == 0 and out.startswith("usage: framelift") and not err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["bench", "--rounds", "0"], "'0' is not a whole number of 1 or more"),
        (["bench", "--batch", "two"], "'two' is not a whole number"),
        (["bench", "--against", "tvm"], "'tvm' is not one of compile, openvino, onnxruntime"),
        (["bench", "--dtype", "fp8"], "invalid choice: 'fp8'"),
        (["bench", "--dtype", "bf16", "--against", "openvino"], "on the CPU in bf16 the peers are eager, compile"),
        (["bench", "--compile-ahead", "2"], "--compile-ahead: is for --device cuda"),
        (["bench", "--first-calls", "2"], "--first-calls: is for --device cuda"),
        (["explain"], "required: NAME"),
    ],
)
def test_wrong_use_exits_with_2(capsys, arguments, text):
    status, out, err = run(capsys, *arguments)
    assert status == 2 and not out and text in err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["bench", "--only", "resnet19"], "no model is named 'resnet19'; `framelift bench --list` prints the names"),
        (["explain", "resnet19"], "no model is named 'resnet19'; known are resnet18"),
        (["explain", "tiny_model:absent"], "'tiny_model:absent': module 'tiny_model' has no attribute 'absent'"),
        (["explain", TINY, "--batch", "2"], "brings its own arguments, so leave batch out"),
    ],
)
def test_errors_exit_with_1_and_one_line(capsys, arguments, text):
    status, out, err = run(capsys, *arguments)
    assert status == 1 and not out
    assert err.startswith("framelift: error: ") and text in err and err.count("\n") == 1


def test_bench_list(capsys):
    status, out, _ = run(capsys, "bench", "--list")
    assert status == 0 and out.splitlines()[0] == "resnet18" and "hf_Bert" in out.splitlines()


def test_ops(capsys):
    status, out, _ = run(capsys, "ops")
    assert status == 0 and "aten.addmm.default" in out
    status, out, _ = run(capsys, "ops", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and {"operator", "dtypes", "limits"} == set(rows[0])
    assert len({row["operator"] for row in rows}) == len(rows)


@pytest.mark.parametrize("mode", ["inference", "no_grad"])
def test_explain(capsys, mode):
    status, out, err = run(capsys, "explain", TINY, "--grad-mode", mode)
    assert status == 0 and not err
    assert "2 calls: 1 recorded, 1 replayed, 0 native" in out
    assert "1 segment, 0 breaks, 1 engine partition of 1" in out


def test_explain_shows_graph_plan_and_profile(capsys):
    status, out, _ = run(capsys, "explain", TINY, "--graph", "--plan", "--profile")
    assert status == 0
    for title in ("\ngraph\n", "\nplan\n", "\nprofile: "):
        assert title in out
    assert out.count("conv2d") >= 3


def test_explain_as_json(capsys):
    status, out, _ = run(capsys, "explain", TINY, "--json", "--plan", "--profile")
    data = json.loads(out)
    assert status == 0 and data["engines"] == 1 and data["segments"] == 1
    assert data["profile"] and {"step", "us"} == set(data["profile"][0]) and data["plan"]


def test_bench_table(capsys):
    status, out, err = run(capsys, "bench", "--in-process", "--only", TINY, "--rounds", "1", "--against", "none")
    assert status == 0 and not err
    (row,) = [line for line in out.splitlines() if TINY in line]
    assert row.endswith("x") and " ms " in row
    assert "geomean over 1 models" in out


def test_bench_json_file_beside_the_table(capsys, tmp_path):
    path = tmp_path / "rows.jsonl"
    options = ["--rounds", "1", "--against", "eager", "--dtype", "fp32", "--json", str(path)]
    status, out, err = run(capsys, "bench", "--in-process", "--only", TINY, *options)
    assert status == 0 and not err and "geomean over 1 models" in out
    (line,) = path.read_text().splitlines()
    row = json.loads(line)
    assert row["model"] == TINY and row["eager_ms"] > 0 and "compile_ms" not in row


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_bench_in_16_bits(capsys, dtype):
    options = ["--rounds", "1", "--against", "eager", "--dtype", dtype, "--json"]
    status, out, err = run(capsys, "bench", "--in-process", "--only", TINY, *options)
    row = json.loads(out)
    assert status == 0 and not err
    assert (row["model"], row["device"], row["dtype"]) == (TINY, "cpu", dtype)
    assert row["eager_ms"] > 0 and row["framelift_ms"] > 0 and row["cosine"] > 0.999


def test_bench_json_to_a_file_that_cannot_be_written(capsys, tmp_path):
    status, out, err = run(capsys, "bench", "--only", TINY, "--json", str(tmp_path / "absent" / "rows"))
    assert status == 1 and not out and err.startswith("framelift: error: ") and "absent" in err


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("eager,compile,openvino,onnxruntime", ["compile", "openvino", "onnxruntime"]),
        ("openvino,eager", ["openvino"]),
        ("eager", []),
        ("none", []),
    ],
)
def test_against_may_name_eager(text, names):
    assert cli._peer_names(text) == names


def test_a_closed_pipe_is_no_traceback():
    command = f"{sys.executable} -m framelift bench --list | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120)
    assert done.stdout == "resnet18\n" and "Traceback" not in done.stderr
