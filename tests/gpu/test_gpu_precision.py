"""precision="fp16" and "bf16" for models that are float32 outside."""

import pytest
import torch
from torch import nn

import framelift

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0).item()


def model():
    torch.manual_seed(0)
    return (
        nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1, groups=32),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.LayerNorm(32),
            nn.Linear(32, 10),
        )
        .cuda()
        .eval()
    )


@pytest.mark.parametrize("precision, name", [("fp16", "f16"), ("bf16", "bf16")])
def test_float32_outside_half_inside(precision, name):
    m = model()
    fast = framelift.compile(m, precision=precision)
    with torch.inference_mode():
        for _ in range(3):
            x = torch.randn(4, 3, 32, 32, device="cuda")
            y, want = fast(x), m(x)
            assert y.dtype == torch.float32 and cosine(y, want) > 0.999
            assert not torch.equal(y, want) or not framelift.explain(fast).replayed
    e = framelift.explain(fast)
    (part,) = e.partitions
    assert (part.kind, part.device, part.precision, e.exact) == ("engine", "cuda:0", name, ()), str(e)
    assert f"engine cuda:0 {name}" in str(e)


def test_weights_stay_live():
    m = model()
    fast = framelift.compile(m, precision="fp16")
    x = torch.randn(4, 3, 32, 32, device="cuda")
    with torch.inference_mode():
        fast(x)
    with torch.no_grad():
        m[8].weight.mul_(-3)
    with torch.inference_mode():
        assert cosine(fast(x), m(x)) > 0.999


class Overflows(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(64, 64) for _ in range(3))

    def forward(self, x):
        big = self.b(torch.relu(self.a(x)))  # beyond 65504
        return self.c(big / 1e6)


def test_what_overflows_stays_float32():
    torch.manual_seed(0)
    m = Overflows().cuda().eval()
    with torch.no_grad():
        m.b.weight.mul_(1e6)
    fast = framelift.compile(m, precision="fp16")
    with torch.inference_mode():
        for _ in range(3):
            x = torch.randn(8, 64, device="cuda")
            y, want = fast(x), m(x)
            assert torch.isfinite(y).all() and cosine(y, want) > 0.999
    e = framelift.explain(fast)
    assert 1 <= len(e.exact) <= 2 and e.engines == 1, str(e)
    assert "linear" in e.exact[0].op
    assert "kept in float32" in str(e)


def test_masks_of_the_lowest_number():
    def f(q, k, v, keep):
        mask = torch.where(keep, 0.0, torch.finfo(torch.float32).min)
        return torch.softmax(q @ k.transpose(-1, -2) * 0.25 + mask, -1) @ v

    fast = framelift.compile(f, precision="fp16")
    q, k, v = (torch.randn(2, 4, 16, 16, device="cuda") for _ in range(3))
    keep = torch.rand(2, 1, 16, 16, device="cuda") > 0.3
    keep[0, 0, 3] = False  # a row without any key
    with torch.inference_mode():
        for _ in range(2):
            y = fast(q, k, v, keep)
            assert torch.isfinite(y).all() and cosine(y, f(q, k, v, keep)) > 0.999


def test_on_the_cpu_float32_is_kept():
    m = model().cpu()
    fast = framelift.compile(m, precision="fp16")
    with torch.inference_mode():
        x = torch.randn(2, 3, 16, 16)
        fast(x)
        assert torch.allclose(fast(x), m(x), atol=1e-5)
    assert framelift.explain(fast).partitions[0].precision is None
