"""Other backends for a segment on a GPU."""

import pytest
import torch
from torch import nn

import framelift

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_half_precision_segments(backend):
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8)).half().cuda()
    fast = framelift.compile(model, backend=backend)
    with torch.inference_mode():
        for _ in range(3):
            x = torch.randn(4, 64, device="cuda", dtype=torch.float16)
            torch.testing.assert_close(fast(x), model(x), rtol=2e-2, atol=2e-3)
    assert framelift.explain(fast).replayed == 2


def test_torch_compile():
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8)).half().cuda()
    fast = torch.compile(model, backend="framelift")
    with torch.inference_mode():
        for _ in range(3):
            x = torch.randn(4, 64, device="cuda", dtype=torch.float16)
            torch.testing.assert_close(fast(x), model(x), rtol=2e-2, atol=2e-3)
