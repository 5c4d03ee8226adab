"""Numbers at the edges: infinities, NaN, overflow, empty and odd sizes; compiled they must be eager's."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import battery

INF, NAN = math.inf, math.nan


def floats():
    yield torch.tensor(
        [0.0, -0.0, 1.0, -1.0, INF, -INF, NAN, 1e38, -1e38, 1e-40, 88.8, -104.0, 0.5, 2.5, 3.5, -2.5, 1e5]
    )
    yield torch.randn(17) * 100
    yield torch.zeros(5)
    yield torch.full((3,), NAN)
    yield torch.full((7,), -INF)


def rows():
    t = torch.randn(5, 9)
    yield t.clone()
    t[0] = -INF
    t[1] = INF
    t[2, 3] = NAN
    t[3] = 2.0
    t[4, :5] = -INF
    yield t
    yield torch.full((5, 9), 2.0**66)
    yield torch.full((5, 9), 1000.1)
    yield torch.full((5, 9), 1e20)
    yield torch.zeros(5, 9)
    yield torch.full((5, 9), 1e-30)
    yield t.t().contiguous().t()
    yield torch.randn(0, 9)


def integers():
    for dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        top, low = torch.iinfo(dtype).max, torch.iinfo(dtype).min
        yield torch.tensor([0, 1, 2, 3, top, top - 1, low, low + 1, 7, 5], dtype=dtype)
        yield torch.randint(0, 100, (10,)).to(dtype)


def images():
    t = torch.randn(2, 3, 7, 9)
    yield t.clone()
    t[0, 0, 2, 3] = NAN
    t[0, 1, 1:4, 2:5] = -INF
    t[1, 0, 5, 5] = INF
    yield t
    yield torch.full((2, 3, 7, 9), -INF)
    yield t.to(memory_format=torch.channels_last)
    yield torch.randn(0, 3, 7, 9)
    yield torch.randn(1, 3, 3, 3)


POINTWISE = [
    *[
        getattr(torch, name)
        for name in [
            "abs",
            "neg",
            "exp",
            "expm1",
            "log",
            "log1p",
            "log2",
            "log10",
            "sqrt",
            "rsqrt",
            "sin",
            "cos",
            "tan",
            "asin",
            "acos",
            "atan",
            "sinh",
            "cosh",
            "tanh",
            "asinh",
            "acosh",
            "atanh",
            "sigmoid",
            "erf",
            "erfc",
            "floor",
            "ceil",
            "trunc",
            "round",
            "frac",
            "sign",
            "sgn",
            "reciprocal",
            "square",
            "isnan",
            "isinf",
            "isfinite",
            "logical_not",
            "signbit",
            "exp2",
            "sinc",
            "nan_to_num",
            "relu",
            "lgamma",
            "digamma",
        ]
    ],
    *[
        getattr(F, name)
        for name in [
            "gelu",
            "silu",
            "mish",
            "softplus",
            "elu",
            "selu",
            "celu",
            "hardtanh",
            "relu6",
            "hardswish",
            "hardsigmoid",
            "leaky_relu",
            "logsigmoid",
            "tanhshrink",
            "softsign",
            "hardshrink",
            "softshrink",
        ]
    ],
    lambda t: F.gelu(t, approximate="tanh"),
    lambda t: t.clamp(-1, 1),
    lambda t: t.clamp(min=0),
    lambda t: t.clamp(max=NAN),
    lambda t: t**2,
    lambda t: t**0.5,
    lambda t: t**3,
    lambda t: t**-1,
    lambda t: 2**t,
    lambda t: t**0,
    lambda t: t**2.5,
    lambda t: t / 0,
    lambda t: t // 0.3,
    lambda t: t % 0.7,
    lambda t: t % -0.7,
    lambda t: torch.fmod(t, 0.7),
    lambda t: t // 0.0,
    lambda t: t.maximum(t.flip(0)),
    lambda t: t.minimum(t.flip(0)),
    lambda t: t.fmax(t.flip(0)),
    lambda t: torch.where(t > 0, t, -t),
    lambda t: (t > 0, t >= 0, t == t, t != t, t < 0.5, t <= 0),
    lambda t: torch.atan2(t, t.flip(0)),
    lambda t: torch.copysign(t, t.flip(0)),
    lambda t: torch.hypot(t, t.flip(0)),
    lambda t: t.masked_fill(t.isnan(), 0),
    lambda t: F.threshold(t, 0.1, 5),
    lambda t: torch.lerp(t, t.flip(0), 0.3),
    lambda t: torch.nan_to_num(t, 1.0, 2.0, 3.0),
    lambda t: F.prelu(t, torch.tensor([0.2])),
    lambda t: t.round(decimals=1),
    lambda t: torch.addcmul(t, t, t, value=0.5),
    lambda t: torch.addcdiv(t, t, t, value=0.5),
    lambda t: t.logit(1e-3),
    lambda t: torch.xlogy(t, t),
    lambda t: t.float().to(torch.float16),
    lambda t: t.to(torch.bfloat16),
    lambda t: t.bool(),
    lambda t: torch.remainder(t, 3),
    lambda t: torch.ldexp(t, torch.tensor(2)),
    lambda t: torch.heaviside(t, t),
    lambda t: t.double() * 2,
    lambda t: torch.logaddexp(t, t.flip(0)),
    lambda t: torch.isclose(t, t),
    lambda t: t - t,
]

ROWS = [
    lambda t: F.softmax(t, -1),
    lambda t: F.log_softmax(t, -1),
    lambda t: F.softmax(t, 0),
    lambda t: F.softmin(t, 1),
    lambda t: F.layer_norm(t, (9,)),
    lambda t: F.layer_norm(t, (9,), torch.ones(9), torch.ones(9), 1e-12),
    lambda t: F.rms_norm(t, (9,)),
    lambda t: F.normalize(t, dim=1),
    lambda t: t.logsumexp(1),
    lambda t: t.sum(1),
    lambda t: t.mean(1),
    lambda t: t.mean(),
    lambda t: t.sum(),
    lambda t: t.var(1),
    lambda t: t.std(0),
    lambda t: t.prod(1),
    lambda t: t.var(1, correction=0),
    lambda t: t.var(1, correction=9),
    lambda t: t.norm(dim=1),
    lambda t: t.norm(),
    lambda t: t.norm(1, dim=1),
    lambda t: t.norm(INF, dim=1),
    lambda t: t.cumsum(1),
    lambda t: t.cumsum(0),
    lambda t: t.cumprod(1),
    lambda t: t.amax(1),
    lambda t: t.amin(1),
    lambda t: t.max(1),
    lambda t: t.min(1),
    lambda t: t.argmax(1),
    lambda t: t.argmin(1),
    lambda t: t.argmax(1, keepdim=True),
    lambda t: t.sort(1),
    lambda t: t.topk(3),
    lambda t: t.any(1),
    lambda t: t.all(1),
    lambda t: (t > 0).any(1),
    lambda t: (t > 0).all(),
    lambda t: (t > 0).sum(),
    lambda t: t @ torch.ones(9, 4),
    lambda t: F.linear(t, torch.ones(4, 9), torch.ones(4)),
    lambda t: t @ t.t(),
    lambda t: F.scaled_dot_product_attention(t[None], t[None], t[None]),
    lambda t: F.scaled_dot_product_attention(t[None], t[None], t[None], is_causal=True),
    lambda t: F.scaled_dot_product_attention(t[None], t[None], t[None], torch.zeros(t.shape[0], t.shape[0]).bool()),
    lambda t: F.scaled_dot_product_attention(
        t[None, None], t[None, None], t[None, None], torch.full((t.shape[0], t.shape[0]), -INF)
    ),
    lambda t: F.softmax(t.masked_fill(torch.ones_like(t).bool(), -INF), -1),
    lambda t: F.softmax(t.double(), -1).float(),
    lambda t: F.softmax(t * 1e4, -1) @ torch.ones(9, 2),
    lambda t: t.nansum(1),
    lambda t: t.median(1),
    lambda t: t.diff(),
    lambda t: t.mean(1, dtype=torch.float64),
    lambda t: t.sum(1, dtype=torch.int64) if t.isfinite().all() else t,
    lambda t: F.cosine_similarity(t, t + 1),
    lambda t: F.glu(t[:, :8]),
    lambda t: F.group_norm(t[None], 1) if t.numel() else t,
    lambda t: torch.cdist(t, t),
    lambda t: t.triu(),
    lambda t: t.tril(-1),
    lambda t: t.roll(2, 1),
    lambda t: t.flip(1),
    lambda t: t.repeat(2, 3),
    lambda t: t.repeat_interleave(2, 1),
    lambda t: t.unfold(1, 4, 2),
    lambda t: t.sum(()),
    lambda t: torch.einsum("ij,kj->ik", t, t),
    lambda t: torch.outer(t.reshape(-1), t.reshape(-1)),
    lambda t: t.amax((0, 1)) if t.numel() else t,
    lambda t: t.sum((0, 1), keepdim=True),
    lambda t: t.bernoulli(0.0),
    lambda t: t.searchsorted(t),
]

INTEGERS = [
    lambda t: t + t,
    lambda t: t * t,
    lambda t: t - 1,
    lambda t: -t,
    lambda t: t.abs(),
    lambda t: t // 3,
    lambda t: t % 3,
    lambda t: t / 3,
    lambda t: t // -3,
    lambda t: t % -3,
    lambda t: torch.fmod(t, 3),
    lambda t: t**2,
    lambda t: t**3,
    lambda t: t << 1,
    lambda t: t >> 1,
    lambda t: t & 5,
    lambda t: t | 5,
    lambda t: t ^ 5,
    lambda t: ~t,
    lambda t: t.sum(),
    lambda t: t.prod(),
    lambda t: t.cumsum(0),
    lambda t: t.max(),
    lambda t: t.argmax(),
    lambda t: t.float(),
    lambda t: t.sign(),
    lambda t: t.to(torch.int8),
    lambda t: t.to(torch.uint8),
    lambda t: t.to(torch.bool),
    lambda t: t.to(torch.int32),
    lambda t: t.clamp(2, 6),
    lambda t: t.float().mean(),
    lambda t: t > 3,
    lambda t: t == 3,
    lambda t: t * 2.5,
    lambda t: torch.where(t > 3, t, 0),
    lambda t: torch.where(t > 3, t, 0.5),
    lambda t: t.maximum(t.flip(0)),
    lambda t: t + True,
    lambda t: torch.div(t, 3, rounding_mode="trunc"),
    lambda t: torch.div(t, -3, rounding_mode="floor"),
    lambda t: t.sqrt(),
    lambda t: t.exp(),
    lambda t: t.any(),
    lambda t: t.all(),
    lambda t: t.sort(descending=True),
    lambda t: t.sum(dtype=torch.int8),
    lambda t: t.square(),
    lambda t: t + 0.5,
    lambda t: 300 - t,
    lambda t: t.bitwise_not(),
    lambda t: t.logical_not(),
    lambda t: t.logical_and(t),
    lambda t: torch.arange(10) * t,
    lambda t: t.to(torch.float16),
    lambda t: t.double() / 7,
    lambda t: torch.stack([t, t.flip(0)]),
    lambda t: torch.cat([t, t.float()]),
    lambda t: t.cumprod(0),
    lambda t: t.amin(0),
    lambda t: t.reciprocal(),
    lambda t: t.rsqrt(),
    lambda t: t // t,
    lambda t: t % t,
    lambda t: 1 // t,
    lambda t: 2**t,
]

TO_INTEGERS = [lambda t, d=d: t.to(d) for d in (torch.int64, torch.int32, torch.uint8, torch.bool)]

IMAGES = [
    lambda t: F.max_pool2d(t, 2),
    lambda t: F.max_pool2d(t, 3, 2, 1),
    lambda t: F.avg_pool2d(t, 2),
    lambda t: F.max_pool2d(t, 3, 1),
    lambda t: F.avg_pool2d(t, 3, 2, 1, count_include_pad=False),
    lambda t: F.avg_pool2d(t, 2, ceil_mode=True),
    lambda t: F.max_pool2d(t, 2, ceil_mode=True),
    lambda t: F.adaptive_avg_pool2d(t, 2),
    lambda t: F.adaptive_max_pool2d(t, 2),
    lambda t: F.adaptive_avg_pool2d(t, (3, 5)),
    lambda t: F.max_pool2d(t, 2, return_indices=True),
    lambda t: F.interpolate(t, scale_factor=2),
    lambda t: F.interpolate(t, (5, 5), mode="bilinear"),
    lambda t: F.interpolate(t, (5, 5), mode="bilinear", align_corners=True),
    lambda t: F.interpolate(t, (4, 4), mode="bicubic"),
    lambda t: F.interpolate(t, scale_factor=0.5),
    lambda t: F.interpolate(t, (5, 11), mode="nearest-exact"),
    lambda t: F.conv2d(t, torch.ones(4, 3, 3, 3), padding=1),
    lambda t: F.conv2d(t, torch.ones(4, 3, 1, 1), torch.ones(4)),
    lambda t: F.conv2d(t, torch.ones(3, 1, 3, 3), groups=3),
    lambda t: F.conv2d(t, torch.ones(4, 3, 3, 3), stride=2, dilation=1),
    lambda t: F.conv_transpose2d(t, torch.ones(3, 2, 2, 2), stride=2),
    lambda t: F.pad(t, (1, 2, 3, 4)),
    lambda t: F.conv2d(t, torch.ones(4, 3, 3, 3), padding="same"),
    lambda t: F.pad(t, (1, 1, 1, 1), mode="reflect"),
    lambda t: F.pad(t, (1, 1), mode="replicate"),
    lambda t: F.pad(t, (1, 0, 0, 1), value=NAN),
    lambda t: F.pad(t, (-1, 0)),
    lambda t: F.pad(t, (1, 1, 1, 1), mode="circular"),
    lambda t: F.pixel_shuffle(t.repeat(1, 4, 1, 1), 2),
    lambda t: t.mean((2, 3)),
    lambda t: F.batch_norm(t, torch.zeros(3), torch.ones(3)),
    lambda t: F.instance_norm(t),
    lambda t: F.group_norm(t, 3),
    lambda t: F.local_response_norm(t, 2),
    lambda t: t.amax((2, 3)),
    lambda t: t.flatten(1),
    lambda t: F.unfold(t, 3),
    lambda t: F.grid_sample(t, torch.zeros(t.shape[0], 2, 2, 2), align_corners=False),
    lambda t: F.dropout2d(t, 0.5, False),
    lambda t: F.conv1d(t[0] if len(t) else t.sum(0), torch.ones(2, 3, 3) if t.shape[2] == 3 else torch.ones(2, 7, 3)),
    lambda t: F.relu(F.conv2d(t, torch.ones(4, 3, 3, 3))) + 1,
    lambda t: F.max_pool2d(F.relu(t), 2).exp(),
    lambda t: t.softmax(1),
]


def program(function, inputs):
    def run(compile, call):
        fast = compile(function)
        for t in inputs():
            call(fast, t)
            call(fast, t)

    return run


TABLES = {"pointwise": (POINTWISE, floats), "rows": (ROWS, rows), "integers": (INTEGERS, integers)}
TABLES |= {"to_integers": (TO_INTEGERS, lambda: [torch.tensor([0.0, -0.5, 1.5, 200.0, 3e9]), torch.zeros(5)])}
TABLES |= {"images": (IMAGES, images)}


def constant_rows_first(compile, call):
    """A trace made from harmless numbers meets the others."""
    net = nn.Sequential(nn.Linear(9, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 9), nn.Softmax(-1)).eval()
    fast = compile(net)
    for t in rows():
        call(fast, t)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    fast = compile(lambda t, m: attention(t, t, t, key_padding_mask=m, need_weights=False)[0])
    for m in (torch.zeros(2, 4), torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 1]]), torch.ones(2, 4)):
        call(fast, torch.randn(2, 4, 8), m.bool())


def odd_sizes(compile, call):
    for n_in, n_out in ((1, 1), (1, 7), (3, 1), (13, 17), (33, 31), (64, 65), (127, 5)):
        net = nn.Sequential(nn.Linear(n_in, n_out), nn.ReLU(), nn.Linear(n_out, n_in)).eval()
        fast = compile(net)
        for rows_ in (1, 2, 3, 5, 12, 13, 31):
            call(fast, torch.randn(rows_, n_in))
    for c_in, c_out, k, size in (
        (1, 1, 1, 1),
        (3, 5, 3, 3),
        (5, 3, 5, 7),
        (17, 33, 3, 8),
        (2, 2, 7, 7),
        (16, 16, 3, 13),
    ):
        for stride in (1, 2, 3):
            net = nn.Sequential(nn.Conv2d(c_in, c_out, k, stride, k // 2), nn.SiLU()).eval()
            fast = compile(net)
            for n in (1, 3):
                call(fast, torch.randn(n, c_in, size, size))


CASES = [constant_rows_first, odd_sizes]
for _name, (_functions, _inputs) in TABLES.items():
    for _i, _f in enumerate(_functions):
        _p = program(_f, _inputs)
        _p.__name__ = f"{_name} {_i} {_f.__name__.strip('<>')}"
        CASES.append(_p)


@pytest.mark.parametrize("program", CASES, ids=lambda program: program.__name__)
def test_as_eager(program):
    battery.check(program)
