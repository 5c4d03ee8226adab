"""What all tests share: no network, fixed seeds, small helpers to compare and to count."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

import framelift
from framelift.bench import compare

if os.environ.get("FRAMELIFT_TEST_DEVICE") == "cuda":
    # Programs that name no device make their tensors on the GPU. (A default device would be a function mode.)
    torch.set_default_tensor_type(torch.cuda.FloatTensor)
    torch.backends.cudnn.allow_tf32 = False

MIN_COSINE = 0.99999
MAX_REL_ERR = 1e-3


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def assert_close(answer, reference):
    """fp32 answers by different kernels: the same up to rounding."""
    cosine, max_rel_err = compare(answer, reference)
    assert cosine >= MIN_COSINE, f"cosine {cosine}"
    assert max_rel_err <= MAX_REL_ERR, f"max_rel_err {max_rel_err}"


class Watched:
    """A callable, compiled: each call is compared with the callable itself, and how it was answered is returned.

    "recorded": evaluated and recorded; "replayed": by the engine under guards; "native": as plain Python.
    """

    def __init__(self, target, **options):
        self.target = target
        self.fast = framelift.compile(target, **options)

    def __call__(self, *args, **kwargs):
        before = framelift.explain(self.fast)
        with torch.no_grad():
            answer = self.fast(*args, **kwargs)
            assert_close(answer, self.target(*args, **kwargs))
        after = framelift.explain(self.fast)
        changed = [n for n in ("recorded", "replayed", "native") if getattr(after, n) > getattr(before, n)]
        assert len(changed) == 1, f"a call is recorded, replayed or native, not {changed}"
        return changed[0]


@pytest.fixture
def watch():
    return Watched
