"""Each family of models that a GPU is measured with, small, in full and half precision: one graph, one engine."""

import pytest
import torch

import framelift
from framelift import zoo
from framelift.bench import compare

CALLERS = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
# cosine, and the largest error over the largest element: rounding grows through a deep net
TOLERANCE = {"fp32": (0.99999, 1e-3), "fp16": (0.999, 0.1), "bf16": (0.99, 0.25)}


def check(name, dtype, caller):
    entry = zoo.load(name, small=True, dtype=dtype)
    fast = framelift.compile(entry.model, tactic_ms=0)
    with CALLERS[caller]():
        reference = entry.model(*entry.args, **entry.kwargs)
        for _ in range(2):
            answer = fast(*entry.args, **entry.kwargs)
            assert type(answer) is type(reference)
            cosine, worst = compare(answer, reference)
            assert cosine >= TOLERANCE[dtype][0] and worst <= TOLERANCE[dtype][1]
    e = framelift.explain(fast)
    assert (e.recorded, e.replayed, e.native) == (1, 1, 0), str(e)
    assert (e.segments, len(e.breaks)) == (1, 0), str(e)
    assert [p.kind for p in e.partitions] == ["engine"] and not e.eager, str(e)
    assert e.lowered + e.dead == e.operators > 15, str(e)


@pytest.mark.parametrize("name", zoo.GPU)
@pytest.mark.parametrize(("dtype", "caller"), [("fp32", "no_grad"), ("fp16", "inference_mode")])
def test_one_engine(name, dtype, caller):
    check(name, dtype, caller)


@pytest.mark.parametrize("name", [name for name in zoo.GPU if name.startswith("hf_")])
@pytest.mark.parametrize(
    ("dtype", "caller"), [("fp32", "inference_mode"), ("fp16", "no_grad"), ("bf16", "inference_mode")]
)
def test_language_models(name, dtype, caller):
    check(name, dtype, caller)
