"""The GPU's benchmark on a GPU: one small model through every contender."""

import json
from pathlib import Path

import pytest
import torch

from framelift import cli
from framelift.bench import gpu

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def test_a_row_of_every_contender(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent))
    path = tmp_path / "rows"
    arguments = ["--only", "tiny_model:tiny", "--rounds", "1", "--json", str(path)]
    assert cli.main(["bench", "--device", "cuda", "--dtype", "fp16", *arguments]) == 0, capsys.readouterr().err
    row = json.loads(path.read_text())
    assert (row["segments"], row["engines"], row["breaks"]) == (1, 1, 0) and row["cosine"] > 0.999
    assert row["gpu"] == torch.cuda.get_device_name() and row["driver"] and row["cudnn"].count(".") == 2
    assert "peer_errors" not in row
    for name in ("eager", "compile", "framelift"):
        assert 0 < row[f"{name}_ms"] <= 1.5 * row[f"{name}_latency_ms"]
        assert row[f"{name}_mib"] < 1000
    assert 0 < row["first_call_warm_s"] < 10 and 0 < row["first_call_s"] < 30
    assert row["first_call_ms"]["record"] > 0 and row["first_call_ms"]["total"] <= row["first_call_s"] * 1e3 + 1
    assert row["compile_first_call_s"] > 0 and row["cosine_fp32"] > 0.999 < row["eager_cosine_fp32"]


def test_memory_is_what_a_contender_keeps_and_takes():
    def make():
        kept = torch.empty(64 << 20, dtype=torch.uint8, device="cuda")

        def function():
            return torch.empty_like(kept), torch.empty_like(kept)

        return function

    function, seconds, memory, _ = gpu._prepared(make)
    assert seconds > 0 and 3 * 64 <= memory / gpu.MIB <= 3 * 64 + 8
    del function


def test_what_the_machine_is():
    assert gpu.why_not("fp16") is None and gpu.driver_version()[0].isdigit()


def test_the_peer_compiles_ahead(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent))
    path = tmp_path / "rows"
    arguments = ["--only", "tiny_model:tiny", "--rounds", "1", "--json", str(path), "--compile-ahead", "2"]
    assert cli.main(["bench", "--device", "cuda", "--dtype", "fp16", *arguments]) == 0, capsys.readouterr().err
    row = json.loads(path.read_text())
    assert row["compile_first_call_s"] > 0 and row["compile_ms"] > 0 and "peer_errors" not in row
