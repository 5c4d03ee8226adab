"""Operators and C types that whole suites of models were found to need: one segment, nothing eager, eager's answer."""

import pytest
import torch
import torch.nn.functional as F

import framelift
from framelift.bench import compare


def named_members(x):
    largest = x.max(dim=1)
    order = x.sum(0).max(dim=0)
    return largest.values + x[:, 0], order.values


def differences(x):
    ids = (x * 8).long()
    return x.diff(), ids.diff(dim=0, prepend=ids[:1] - 1), x.diff(n=2, dim=0, append=x[:1])


def attention_in_windows(x):
    q = x.reshape(2, 3, 2, 4, 4)
    mask = (x.reshape(2, 3, 2, 4, 4) @ q.transpose(-1, -2))[:, :, :1]
    return F.scaled_dot_product_attention(q, q, q), F.scaled_dot_product_attention(q, q, q + 1, attn_mask=mask)


def norms(x):
    return x / torch.linalg.norm(x, dim=-1, keepdim=True), torch.linalg.norm(x), torch.linalg.norm(x, 3, dim=0)


@pytest.mark.parametrize("function", [named_members, differences, attention_in_windows, norms])
def test_whole(function):
    torch.manual_seed(0)
    fast = framelift.compile(function)
    with torch.inference_mode():
        for _ in range(3):
            x = torch.randn(12, 16)
            cosine, worst = compare(fast(x), function(x))
            assert cosine > 0.999999 and worst < 1e-5
    explanation = framelift.explain(fast)
    assert explanation.segments == 1 and not explanation.breaks and not explanation.give_ups
    assert explanation.replayed == 2 and not explanation.eager


class Grouped(torch.nn.Module):
    """A block of a network that convolves in groups: narrow and wide ones, odd sizes, a residual."""

    def __init__(self, groups, width, **options):
        super().__init__()
        channels = groups * width
        self.spread = torch.nn.Conv2d(5, channels, 1)
        self.conv = torch.nn.Conv2d(channels, channels, 3, groups=groups, bias=False, **options)
        self.norm = torch.nn.BatchNorm2d(channels)
        self.out = torch.nn.Conv2d(channels, 2 * channels, (1, 3), groups=groups, stride=(2, 1))
        self.more = torch.nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=groups)

    def forward(self, x):
        y = self.out(F.relu(self.norm(self.conv(self.spread(x)))))
        return F.silu(self.more(y) + y)


@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2}, {"padding": (2, 0), "dilation": 2}])
@pytest.mark.parametrize("groups,width", [(32, 4), (6, 8), (5, 3), (3, 16), (2, 40), (9, 1)])
def test_convolution_in_groups(groups, width, options):
    torch.manual_seed(0)
    net = Grouped(groups, width, **options).eval()
    fast = framelift.compile(net)
    with torch.inference_mode():
        for _ in range(3):
            x = torch.randn(2, 5, 17, 13)
            cosine, worst = compare(fast(x), net(x))
            assert cosine > 0.999999 and worst < 1e-5
    with torch.no_grad():
        net.conv.weight.mul_(-2)  # packed anew
    with torch.inference_mode():
        cosine, worst = compare(fast(x), net(x))
        assert cosine > 0.999999 and worst < 1e-5
    explanation = framelift.explain(fast)
    assert explanation.segments == 1 and explanation.replayed == 3 and not explanation.eager


class Products(torch.nn.Module):
    """Products of 16-bit floats of every kind: linear layers, weights the other way round, batches, a row at a time."""

    def __init__(self, width):
        super().__init__()
        self.up = torch.nn.Linear(width, 3 * width + 1)
        self.down = torch.nn.Linear(3 * width + 1, width, bias=False)
        self.weight = torch.nn.Parameter(torch.randn(width, 40) / width**0.5)
        self.bias = torch.nn.Parameter(torch.randn(40))

    def forward(self, x):
        y = x + self.down(F.gelu(self.up(x)))
        z = torch.addmm(self.bias, y.flatten(0, 1), self.weight)
        return y, z, z[:1] @ self.weight.t(), y @ x.transpose(1, 2), torch.einsum("bik,bkj->bij", y.transpose(1, 2), y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [32, 45, 1024])
def test_products_of_16_bits(width, dtype):
    torch.manual_seed(0)
    net = Products(width).to(dtype)
    exact = Products(width)
    fast = framelift.compile(net)
    for turn in range(3):
        if turn == 2:
            with torch.no_grad():
                net.down.weight.mul_(-2)  # packed anew
        exact.load_state_dict(net.state_dict())
        with torch.inference_mode():
            x = torch.randn(2, 7, width).to(dtype)
            for got, eager, truth in zip(fast(x), net(x), exact(x.float()), strict=True):
                assert got.dtype == dtype and got.shape == eager.shape and got.stride() == eager.stride()
                ours, theirs = ((t.float() - truth).abs().max() / truth.abs().max() for t in (got, eager))
                assert ours <= 1.5 * theirs + torch.finfo(dtype).eps
    explanation = framelift.explain(fast)
    assert explanation.segments == 1 and explanation.replayed == 2 and not explanation.eager


def attend(q, k, v, keep, bias):
    yield F.scaled_dot_product_attention(q, k, v)
    yield F.scaled_dot_product_attention(q, q, q, is_causal=True)
    yield F.scaled_dot_product_attention(q, k, v, attn_mask=keep)
    yield F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=0.3)
    yield F.scaled_dot_product_attention(q[:, :, :1], k, v)
    yield (q @ k.transpose(-1, -2) / 4 + bias.to(q.dtype)).softmax(-1) @ v


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("queries,keys,depth", [(7, 7, 16), (40, 300, 64), (33, 19, 15), (20, 513, 6)])
def test_attention_of_16_bits(queries, keys, depth, dtype):
    torch.manual_seed(0)
    fast = framelift.compile(lambda *args: tuple(attend(*args)))
    for _ in range(3):
        q = torch.randn(2, queries, 3, depth, dtype=dtype).transpose(1, 2)
        k, v = (torch.randn(2, 3, keys, depth, dtype=dtype) for _ in range(2))
        keep, bias = torch.rand(queries, keys) < 0.7, torch.randn(2, 1, 1, keys)
        bias[0, 0, 0, keys // 2 :] = -torch.inf
        keep[0] = True
        with torch.inference_mode():
            truths = attend(q.float(), k.float(), v.float(), keep, bias)
            eagers = attend(q, k, v, keep, bias)
            for got, eager, truth in zip(fast(q, k, v, keep, bias), eagers, truths, strict=True):
                assert got.dtype == dtype and got.shape == eager.shape
                ours, theirs = ((t.float() - truth).abs().max() / truth.abs().max() for t in (got, eager))
                assert ours <= 1.5 * theirs + torch.finfo(dtype).eps
    explanation = framelift.explain(fast)
    assert explanation.segments == 1 and explanation.replayed == 2 and not explanation.eager
