"""The milestone's models: one graph, no break, every operator lowered, one engine, the eager answer."""

import pytest
import torch

import framelift
from conftest import assert_close
from framelift import zoo

CALLERS = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


@pytest.fixture(scope="module", params=zoo.MILESTONE)
def entry(request):
    return zoo.load(request.param)


@pytest.mark.parametrize("caller", CALLERS)
def test_one_engine(entry, caller):
    fast = framelift.compile(entry.model)
    with CALLERS[caller]():
        reference = entry.model(*entry.args, **entry.kwargs)
        for _ in range(3):
            answer = fast(*entry.args, **entry.kwargs)
            assert type(answer) is type(reference)
            assert_close(answer, reference)
    e = framelift.explain(fast)
    assert (e.recorded, e.replayed, e.native) == (1, 2, 0), str(e)
    assert (e.segments, len(e.breaks)) == (1, 0), str(e)
    assert e.lowered + e.dead == e.operators > 20 and not e.eager, str(e)
    assert [p.kind for p in e.partitions] == ["engine"], str(e)
    (graph,) = e.graphs
    assert graph.cosine >= 0.99999 and graph.max_rel_err <= 1e-3


def test_other_input_on_the_same_engine(entry):
    fast = framelift.compile(entry.model)
    with torch.inference_mode():
        fast(*entry.args, **entry.kwargs)
        flipped = [flip(a) for a in entry.args], {k: flip(v) for k, v in entry.kwargs.items()}
        reference = entry.model(*flipped[0], **flipped[1])
        assert_close(fast(*flipped[0], **flipped[1]), reference)


def flip(tensor):
    """The same values elsewhere; masks and ids stay valid."""
    return tensor.flip(0, -1).contiguous()
