"""Operators on 16-bit floats round where PyTorch rounds: what several of the engine's make, once at the end. Numbers
are not rounded before they multiply or divide."""

import pytest
import torch
import torch.nn.functional as F

import framelift

N = 4096
CASES = {
    "add, alpha": lambda a, b: torch.add(a, b, alpha=0.3),
    "rsub, alpha": lambda a, b: torch.rsub(a, b, alpha=0.5),
    "mul by a number": lambda a, b: a * 1.001,
    "mul by a large number": lambda a, b: (a > 8).to(a.dtype) * -1e9,
    "div by a number": lambda a, b: a / 1e6,
    "floor division by a number": lambda a, b: a // 0.3,
    "floor division": lambda a, b: a // b,
    "div, trunc": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    "mul by an integer": lambda a, b: a * 257,
    "mul by a tensor of one integer": lambda a, b: a * torch.tensor([257]),
    "div by a scalar tensor": lambda a, b: a / torch.tensor(3.3, dtype=torch.float64),
    "pow 3": lambda a, b: a**3,
    "log2": lambda a, b: a.abs().log2(),
    "log10": lambda a, b: a.abs().log10(),
    "tan": lambda a, b: a.tan(),
    "selu": lambda a, b: F.selu(a),
    "celu": lambda a, b: F.celu(a, 1.3),
    "softshrink": lambda a, b: F.softshrink(a, 0.3),
    "glu": lambda a, b: F.glu(a),
    "lerp": lambda a, b: torch.lerp(a, b, 0.3),
    "lerp by tensors": lambda a, b: torch.lerp(a, b, b),
    "addcmul": lambda a, b: torch.addcmul(a, b, b, value=0.3),
    "addcdiv": lambda a, b: torch.addcdiv(a, b, b, value=0.3),
    "std": lambda a, b: a.view(64, 64).std(1),
    "norm": lambda a, b: (a * 100).view(64, 64).norm(dim=1),
    "weight norm": lambda a, b: torch._weight_norm((a * 100).view(64, 64), b[:64].view(64, 1), 0),
    "addmm": lambda a, b: torch.addmm(a[:64], b.view(64, 64), a.view(64, 64), beta=0.3, alpha=0.7),
    "baddbmm": lambda a, b: torch.baddbmm(a.view(4, 32, 32), b.view(4, 32, 32), a.view(4, 32, 32), beta=0.3, alpha=0.7),
}


def wrong(ours, eager, exact, eps):
    """Elements that lie farther from the exact answer than eager's, and by more than half of a last digit."""
    ours, eager, exact = ours.double(), eager.double(), exact.double()
    same = (ours == eager) | (ours.isnan() & eager.isnan())
    allowed = torch.maximum((eager - exact).abs(), 0.6 * eps * exact.abs()).clamp_min(torch.finfo(eager.dtype).tiny)
    return int((~same & ~((ours - exact).abs() <= 1.05 * allowed + 1e-7)).sum())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CASES)
def test_rounded_once(name, dtype):
    f, g = CASES[name], torch.Generator().manual_seed(1)
    a, b = (torch.randn(N, generator=g) * 3).to(dtype), torch.randn(N, generator=g).to(dtype)
    fast = framelift.compile(f, verify=False)
    with torch.no_grad():
        fast(a, b)
        ours, eager = fast(a, b), f(a, b)
        # what both are near to, unless eager itself rounds at each step
        exact = eager if "div" in name and "number" not in name and "scalar" not in name else f(a.double(), b.double())
    assert ours.dtype == eager.dtype
    assert torch.equal(ours.isfinite(), eager.isfinite())
    assert wrong(ours[eager.isfinite()], eager[eager.isfinite()], exact[eager.isfinite()], torch.finfo(dtype).eps) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("alpha", [0.125, 0.0884])
def test_scores_made_by_baddbmm_are_attention(alpha, dtype):
    def f(q, k, v, bias):
        return torch.baddbmm(bias, q, k.transpose(1, 2), alpha=alpha).softmax(-1) @ v

    q, k, v = (torch.randn(4, 8, 16).to(dtype) for _ in range(3))
    bias = torch.randn(4, 1, 8).to(dtype)
    fast = framelift.compile(f)
    with torch.no_grad():
        fast(q, k, v, bias)
        ours, eager, exact = fast(q, k, v, bias), f(q, k, v, bias), f(q.double(), k.double(), v.double(), bias.double())
    assert (ours - exact).norm() <= 2 * (eager - exact).norm()
    assert [p.kind for p in framelift.explain(fast).partitions] == ["engine"]
