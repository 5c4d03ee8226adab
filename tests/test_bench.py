"""The benchmark's parts: comparing answers, interleaving contenders, measuring a tiny model."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from framelift import zoo
from framelift.bench import compare, interleave, peers, run
from framelift.zoo import text, vision

TINY = "tiny_model:tiny"


@pytest.fixture(autouse=True)
def find_tiny_model(monkeypatch):
    here = str(Path(__file__).parent)
    monkeypatch.syspath_prepend(here)
    monkeypatch.setenv("PYTHONPATH", here, prepend=":")


def test_compare_equal_answers():
    x = torch.randn(100)
    cosine, worst = compare({"a": x, "b": (x * 2,)}, {"a": x, "b": (x * 2,)})
    assert cosine == pytest.approx(1.0) and worst == 0.0


def test_compare_finds_one_wrong_element():
    x = torch.ones(1000)
    y = x.clone()
    y[7] = 1.5
    cosine, worst = compare(y, x)
    assert worst == 0.5 and 0.999 < cosine < 1.0
    assert compare(-x, x)[0] == pytest.approx(-1.0)


def test_compare_sees_zeros_and_special_values():
    assert compare(torch.zeros(3), torch.zeros(3)) == (1.0, 0.0)
    assert compare(torch.zeros(3), torch.ones(3)) == (0.0, 1.0)
    assert compare(torch.ones(3), torch.zeros(3)) == (0.0, math.inf)
    special = torch.tensor([1.0, math.nan, math.inf, -math.inf])
    assert compare(special, special) == (pytest.approx(1.0), 0.0)
    for place, value in ((0, math.nan), (1, 1.0), (2, -math.inf), (3, 0.0)):
        other = special.clone()
        other[place] = value
        with pytest.raises(ValueError, match="not finite in other places"):
            compare(other, special)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (torch.zeros(3), r"float32\[3\], the reference float32\[2\]"),
        (torch.zeros(2, dtype=torch.float64), "float64"),
        ((torch.zeros(2), torch.zeros(2)), "2 tensors, the reference 1"),
    ],
)
def test_compare_refuses_other_structures(answer, text):
    with pytest.raises(ValueError, match=text):
        compare(answer, torch.zeros(2))


def test_compare_wants_integers_equal():
    with pytest.raises(ValueError, match="not equal"):
        compare(torch.tensor([1, 2]), torch.tensor([1, 3]))


def test_interleave_takes_turns():
    calls = []
    best = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    turns = [name for i, name in enumerate(calls) if i == 0 or calls[i - 1] != name]
    assert turns == ["a", "b"] * (len(turns) // 2) and len(turns) == 2 * (1 + 3)
    assert 0 < best["a"] < 1e-3
    with pytest.raises(ValueError, match="rounds is 0"):
        interleave({"a": int}, rounds=0)


def test_geomean():
    assert run.geomean([1.0, 4.0]) == pytest.approx(2.0)
    assert run.geomean([]) is None and run.geomean([None, 3.0]) == pytest.approx(3.0)


def test_measure_tiny_model():
    row = run.measure(TINY, rounds=1, threads=None)
    assert row["cosine"] > 0.99999 and row["max_rel_err"] < 1e-4
    assert (row["segments"], row["breaks"], row["engines"], row["partitions"]) == (1, 0, 1, 1)
    assert row["lowered"] + row["dead"] == row["operators"]
    assert row["speedup"] == pytest.approx(row["eager_ms"] / row["framelift_ms"])
    assert row["first_call_s"] > 0 and row["overhead_us"] > 0
    assert row["eager_layout"] in ("eager", "eager_channels_last")


def test_a_peer_that_fails_is_a_result(monkeypatch):
    def fails(entry, threads):
        raise RuntimeError("unsupported model\nand a long story")

    monkeypatch.setitem(peers.PEERS, "openvino", fails)
    row = run.measure(TINY, rounds=1, against=["openvino"])
    assert row["openvino_ms"] is None
    assert row["peer_errors"] == {"openvino": "RuntimeError: unsupported model"}


def test_measure_apart_gives_the_same_keys():
    row = run.measure_apart(TINY, timeout=300, rounds=1, against=[], batch=None, threads=1)
    assert "error" not in row, row
    assert row["threads"] == 1 and row["cosine"] > 0.99999


def test_a_crash_is_a_result():
    row = run.measure_apart("tiny_model:crashing", timeout=300, rounds=1)
    assert row["model"] == "tiny_model:crashing" and row["error"].startswith("exit status -")


def test_channels_last_contender():
    entry = zoo.load(TINY)
    function = peers.eager_channels_last(entry, 1)
    cosine, _ = compare(function(), entry.model(*entry.args))
    assert cosine == pytest.approx(1.0)
    assert entry.args[0].is_contiguous(), "the entry itself must not change"


def test_command_line_prints_json_lines():
    command = [sys.executable, "-m", "framelift", "bench", "--only", TINY, "--rounds", "1", "--against", "none"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["model"] == TINY


def test_zoo_knows_its_names():
    assert zoo.names()[: len(zoo.MILESTONE)] == list(zoo.MILESTONE)
    assert len(set(zoo.names())) == len(zoo.names()) > 30
    with pytest.raises(ValueError, match="no model is named 'resnet19'; known are resnet18, "):
        zoo.load("resnet19")
    with pytest.raises(ValueError, match="batch is 0"):
        zoo.load("resnet18", 0)
    with pytest.raises(ValueError, match="tiny_model:absent"):
        zoo.load("tiny_model:absent")


def test_zoo_has_sizes_for_gpus_and_for_tests():
    assert set(zoo.GPU) <= set(zoo.names())
    model, (image,) = vision.BUILDERS["squeezenet1_1"](zoo.Scale(gpu=True))
    assert image.shape == (16, 3, 224, 224) and not model.training
    assert zoo.load("squeezenet1_1").args[0].shape == (1, 3, 224, 224)
    small = zoo.load("hf_T5", small=True, dtype="fp16")
    assert {p.dtype for p in small.model.parameters()} == {torch.float16}
    assert {k: (v.dtype, tuple(v.shape)) for k, v in small.kwargs.items()} == {
        "input_ids": (torch.int64, (1, 16)),
        "decoder_input_ids": (torch.int64, (1, 16)),
    }
    _, (ids,) = text.BUILDERS["hf_GPT2"](zoo.Scale(batch=2, gpu=True))
    assert ids.shape == (2, 1024)
    with pytest.raises(ValueError, match="dtype is 'fp8'; must be one of fp32, fp16, bf16"):
        zoo.load("resnet18", dtype="fp8")


def test_zoo_lets_nothing_hide_behind_zeros():
    """timm and torchvision can begin with zeros as the last scale of each residual branch."""
    for name in ("resnet50", "timm_regnet", "timm_nfnet"):
        entry = zoo.load(name, small=True)
        for key, parameter in entry.model.named_parameters():
            assert parameter.any() or key.endswith("bias"), f"{name}: {key}"
        with torch.inference_mode():
            answer = entry.model(*entry.args)
        assert 1e-3 < answer.std() < 10


def test_zoo_repeats_itself():
    first, second = (zoo.load("squeezenet1_1") for _ in range(2))
    assert torch.equal(first.args[0], second.args[0])
    for a, b in zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_texts_of_other_lengths(tmp_path):
    path = tmp_path / "rows"
    command = [
        sys.executable,
        str(Path(__file__).parent.parent / "bench/lengths.py"),
        "--only",
        "minilm",
        "--json",
        str(path),
    ]
    subprocess.run([*command, "--lengths", "3", "--longest", "24", "--rounds", "3"], check=True, capture_output=True)
    row = json.loads(path.read_text())
    assert (row["lengths"], row["recorded"], row["replayed"], row["native"]) == (3, 3, 6, 0)
    assert len(row["rounds"]) == 3 and all(t["s"] > 0 for r in row["rounds"] for t in r.values())
    wrong = subprocess.run([*command, "--longest", "2"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "--longest: at least 8" in wrong.stderr
