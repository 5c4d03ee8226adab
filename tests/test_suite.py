"""Suites of models: sharding, resuming, what a row says of answers and crashes, shrunk configurations."""

import dataclasses
import itertools
import json
import os
import time

import pytest
import torch

from framelift.bench import suite
from framelift.zoo import Entry, suites


@pytest.fixture
def stand_in(monkeypatch):
    """A suite of functions in place of a library's models."""

    def install(**models):
        def load(_, name):
            if isinstance(models[name], Exception):
                raise models[name]
            return Entry(name, models[name], (torch.ones(4),))

        monkeypatch.setattr(suites, "load", load)

    return install


def test_shards_cover_every_name_once():
    names = [f"m{i}" for i in range(11)]
    assert sorted(n for i in (1, 2, 3) for n in suite.shard(names, f"{i}/3")) == sorted(names)
    assert suite.shard(names, None) == names
    for text in ("0/3", "4/3", "1", "a/b", "1/0"):
        with pytest.raises(ValueError, match="shard is"):
            suite.shard(names, text)


def test_rows_and_summary(stand_in, tmp_path):
    count = itertools.count(1.0)
    stand_in(
        good=lambda x: {"answer": x * 2},
        not_here=suites.NotBuilt("no such thing"),
        dead=lambda x: os.abort(),
        slow=lambda x: time.sleep(60),
        random=lambda x: next(count) * x,
    )
    path = tmp_path / "rows.json"
    names = ["good", "not_here", "dead", "slow", "random"]
    rows = suite.run("timm", names, path=path, timeout=5)
    assert [row["status"] for row in rows] == ["done", "not built", "crash", "timeout", "done"]
    assert rows[0]["one_segment"] and rows[0]["correct"] and rows[0]["operators"] == rows[0]["lowered"] == 1
    assert rows[1]["reason"] == "no such thing" and rows[2]["reason"] == "SIGABRT"
    result = suite.summary(rows)
    assert (result["models"], result["correct"], result["crash"], result["timeout"]) == (5, 1, 1, 1)
    assert set(result["trouble"]) == {"dead", "slow"} and not result["wrong"]
    assert any("SIGABRT" in line for line in suite.summary_lines("timm", result))


def test_a_name_that_the_file_has_is_not_run_again(stand_in, tmp_path):
    path = tmp_path / "rows.json"
    kept = {"suite": "timm", "model": "a", "status": "not built", "reason": "kept"}
    other = {"suite": "torchvision", "model": "b", "status": "not built", "reason": "another suite's"}
    path.write_text(json.dumps(kept) + "\n" + json.dumps(other) + '\n{"suite": "ti')
    stand_in(a=lambda x: x, b=lambda x: x + 1)
    rows = suite.run("timm", ["a", "b"], path=path, timeout=30)
    assert rows[0] == kept and rows[1]["status"] == "done"


def test_wrong_answers_are_seen(monkeypatch):
    import framelift

    entry = Entry("m", lambda x: (x, x + 1), (torch.arange(4.0),))
    assert suite.measure_entry(entry)["correct"] is True
    monkeypatch.setattr(framelift, "explain", lambda fast: None)
    monkeypatch.setattr(suite, "_captured", lambda explanation: {})
    for wrong, text in (
        (lambda x: (x, -x), "cosine"),
        (lambda x: (x, x * 1.5 + 1), "relative error"),
        (lambda x: [x, x + 1], "structure"),
    ):
        monkeypatch.setattr(framelift, "compile", lambda model, wrong=wrong: wrong)
        row = suite.measure_entry(entry)
        assert row["correct"] is False and text in row["wrong"]


def test_fields_are_shrunk_by_their_names():
    from framelift.zoo.suite_configs import _FEW, _OWN, _smaller

    fields = {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "vocab_size": 30522,
        "pad_token_id": 0,
        "eos_token_id": 50256,
        "hidden_act": "gelu",
        "use_cache": True,
        "text_config": {"model_type": "x", "num_layers": 1, "d_model": 512, "layer_types": ["full"] * 12},
    }
    small = _smaller(fields, _OWN, False)
    assert small["hidden_size"] == 64 and small["num_hidden_layers"] == 2 and small["vocab_size"] == 512
    assert small["hidden_size"] % small["num_attention_heads"] == 0
    assert "pad_token_id" not in small and small["eos_token_id"] < 512 and small["use_cache"] is False
    text = small["text_config"]
    assert (text["num_layers"], text["d_model"], text["layer_types"]) == (1, 64, ["full"] * 12)
    scaled = _smaller(fields, _FEW, True)  # by the factor that leaves two heads of the size they had
    assert (scaled["num_attention_heads"], scaled["hidden_size"], scaled["num_hidden_layers"]) == (2, 128, 2)


def test_what_belongs_to_layers_follows_them():
    """Of many layers those stay that differ, with what lists and dictionaries say of them."""
    from framelift.zoo.suite_configs import _OWN, _smaller

    fields = {
        "num_hidden_layers": 6,
        "layer_types": ["sliding", "sliding", "full", "sliding", "sliding", "full"],
        "windows": [4, 4, 0, 4, 4, 0],
        "per_layer_config": {2: {"head_dim": 512}, 5: {"head_dim": 512}},
    }
    small = _smaller(fields, _OWN, False)
    assert small["num_hidden_layers"] == 2 and small["layer_types"] == ["sliding", "full"]
    assert small["windows"] == [4, 0] and small["per_layer_config"] == {1: {"head_dim": 512}}


def test_sizes_that_follow_from_each_other_stay_consistent():
    from types import SimpleNamespace

    from framelift.zoo.suite_configs import _OWN, _fit_rotations, _smaller, _smaller_maps

    backbone = {"num_hidden_layers": 12, "out_features": ["stage3", "stage6", "stage9", "stage12"]}
    small = _smaller(backbone, _OWN, False)
    assert small["num_hidden_layers"] == 4 and small["out_features"] == small["stage_names"][1:]
    tied = _smaller({"hidden_size": 512, "upsample_groups": 512, "patch_size": 16}, _OWN, False)
    assert tied == {"hidden_size": 64, "upsample_groups": 64}
    scan = _smaller({"hidden_size": 4096, "expand": 2, "num_heads": 128, "head_dim": 64}, _OWN, False)
    assert scan["num_heads"] * scan["head_dim"] == 2 * scan["hidden_size"]
    maps = _smaller_maps({"image_size": [1024, 1024], "vision": {"backbone_feature_sizes": [[64, 64]], "depth": 8}})
    assert maps == {"image_size": [128, 128], "vision": {"backbone_feature_sizes": [[8, 8]], "depth": 8}}
    config = SimpleNamespace(rope_parameters={"mrope_section": [16, 24, 24], "partial_rotary_factor": 0.5})
    _fit_rotations(config, 32)
    assert sum(config.rope_parameters["mrope_section"]) == 8 and min(config.rope_parameters["mrope_section"]) >= 2


def test_arguments_are_repaired_by_what_an_error_says():
    from functools import partial
    from types import SimpleNamespace

    from framelift.zoo import suite_arguments

    repaired = partial(suite_arguments.repaired, SimpleNamespace(image_token_id=9))
    sound = {"input_features": torch.randn(1, 64, 80)}
    wider = repaired(sound, RuntimeError("mat1 and mat2 shapes cannot be multiplied (64x80 and 128x64)"))
    assert wider["input_features"].shape == (1, 64, 128)
    ids = repaired({"input_ids": torch.tensor([[9, 400]])}, IndexError("index out of range in self"))
    assert ids["input_ids"].max() < 8 and repaired(sound, ValueError("no")) is None
    one = {"input_ids": torch.tensor([[9, 4, 9]])}
    more = repaired(one, ValueError("Image features and image tokens do not match, tokens: 1, features: 6"))
    assert (more["input_ids"] == 9).sum() == 6 and more["input_ids"][0, :3].tolist() == [8, 4, 8]
    wave = repaired(
        {"input_values": torch.randn(1, 16, 70)}, RuntimeError("expected input[1, 16, 70] to have 1 channels")
    )
    assert wave["input_values"].shape == (1, 1, 8000)
    patches = repaired(
        {"pixel_values": torch.randn(1, 3, 64, 64)},
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (192x64 and 768x64)"),
    )
    assert patches["pixel_values"].shape == (1, 16, 768)
    masked = sound | {"input_features_mask": torch.ones(1, 64)}
    whole = repaired(masked, ValueError("expects a multiple of `n_window * 2` (100), but got 80."))
    assert whole["input_features"].shape == (1, 128, 100) and whole["input_features_mask"].shape == (1, 100)
    wide = repaired(
        sound, RuntimeError("The size of tensor a (80) must match the size of tensor b (560) at dimension 2")
    )
    assert wide["input_features"].shape == (1, 64, 560)


@dataclasses.dataclass
class Answer:
    value: torch.Tensor


def test_rounding_is_judged_by_float64():
    """An answer that differs from eager's by less than eager's differs from float64's is not wrong."""

    class Amplifies(torch.nn.Module):
        def forward(self, x):
            return (1 + x * 1e-7 - 1) * 1e7

    class Named(Amplifies):
        def forward(self, x):
            return Answer(super().forward(x))

    x = torch.rand(50)
    for model, wrap in ((Amplifies(), lambda x: x), (Named(), Answer)):
        entry = Entry("amplifies", model.eval(), (x,), {})
        reference = entry.model(x)
        call = lambda model, entry=entry: model(*entry.args)  # noqa: E731
        judged = suite._judged_by_float64(entry, call, lambda x, wrap=wrap: wrap(x), reference)
        assert judged["correct"] is True and judged["judged_by"] == "float64" and judged["eager_max_rel_err"] > 0.1
        assert suite._judged_by_float64(entry, call, lambda x, wrap=wrap: wrap(x * 3), reference) == {}


def test_summary_beside_the_peer():
    done = {"status": "done", "correct": True, "operators": 1, "lowered": 1, "dead": 0, "engines": 1, "eager": []}
    whole = done | {"one_segment": True, "breaks": [], "give_ups": [], "native_reason": None}
    parts = done | {"one_segment": False, "breaks": [["data", "item", "f:1"]], "give_ups": [], "native_reason": None}
    rows = [
        whole | {"model": "both", "peer": "ok"},
        whole | {"model": "ours", "peer": "Unsupported: x"},
        parts | {"model": "theirs", "peer": "ok"},
        parts | {"model": "neither", "peer": "Unsupported: y"},
        whole | {"model": "not asked"},
    ]
    result = suite.summary(rows)
    assert (result["peer_models"], result["peer_ok"], result["peer_one_segment"]) == (4, 2, 2)
    assert result["only_peer"] == {"theirs": "data: item"} and result["only_framelift"] == {"ours": "Unsupported: x"}
    assert result["neither"] == {"neither": "Unsupported: y"}
    assert any("asked both" in line for line in suite.summary_lines("timm", result))
    assert "peer_models" not in suite.summary([whole | {"model": "not asked"}])
