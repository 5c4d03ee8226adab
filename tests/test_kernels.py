"""Engine operators against PyTorch, at every instruction set the machine has.

Loads libframelift_eval_graph.so, which a build with FL_TESTS=ON makes: from FRAMELIFT_BUILD, or else from
build/*, but not from one with sanitizers, which a plain Python cannot load.
"""

import ctypes
import glob
import math
import os

import pytest
import torch
import torch.nn.functional as F

inf, nan = math.inf, math.nan
NAMES = {
    torch.float32: "f32", torch.float64: "f64", torch.float16: "f16", torch.bfloat16: "bf16", torch.int64: "i64",
    torch.int32: "i32", torch.int16: "i16", torch.int8: "i8", torch.uint8: "u8", torch.bool: "bool",
}  # fmt: skip
ISAS = {"portable": 0, "avx2": 1, "avx512": 2, "avx512_bf16": 3}


def find_library():
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    where = os.environ.get("FRAMELIFT_BUILD") or os.path.join(root, "build", "*")
    found = [p for p in glob.glob(os.path.join(where, "libframelift_eval_graph.so")) if "asan" not in p]
    found.sort(key=os.path.getmtime)
    return found[-1] if found else None


LIBRARY = find_library()
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="no build with FL_TESTS=ON")


def has_isa(isa):
    capability = torch.backends.cpu.get_cpu_capability()
    if isa == "avx512_bf16":
        with open("/proc/cpuinfo") as f:
            return "avx512_bf16" in f.read()
    return isa == "portable" or "AVX512" in capability or (isa == "avx2" and "AVX2" in capability)


def text_type(t):
    return f"{NAMES[t.dtype]}[{','.join(map(str, t.shape))}]"


def evaluate(isa, op, inputs, attrs, like):
    """The engine's `op attrs` of these tensors (None = absent); `like` is a tensor of the result's type."""
    present = [t.contiguous() for t in inputs if t is not None]
    names = iter(range(len(present)))
    args = ", ".join("_" if t is None else f"%{next(names)}" for t in inputs)
    heads = ", ".join(f"%{i}: {text_type(t)}" for i, t in enumerate(present))
    n = len(present)
    text = f"graph({heads}) {{\n  %{n} = {op}({args}) {attrs} : {text_type(like)}\n  return %{n}\n}}\n"
    out = torch.empty(like.shape, dtype=like.dtype)
    pointers = (ctypes.c_void_p * max(1, n))(*[t.data_ptr() for t in present])
    result = (ctypes.c_void_p * 1)(out.data_ptr())
    message = ctypes.create_string_buffer(400)
    library = ctypes.CDLL(LIBRARY)
    library.fl_eval_graph.argtypes = [
        ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t,
    ]  # fmt: skip
    failed = library.fl_eval_graph(text.encode(), ISAS[isa], 2, pointers, result, message, 400)
    if failed:
        raise RuntimeError(message.value.decode() + "\n" + text)
    return out


def same(isa, op, inputs, attrs, want, rtol=2e-5, atol=1e-6):
    got = evaluate(isa, op, inputs, attrs, want)
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol, equal_nan=True)


@pytest.fixture(params=list(ISAS))
def isa(request):
    if not has_isa(request.param):
        pytest.skip("not on this machine")
    return request.param


def numbers(*shape):
    """Floats of all kinds; the first ones are the awkward ones."""
    torch.manual_seed(1)
    x = torch.randn(*shape) * 3
    odd = torch.tensor([0.0, -0.0, 1, -1, 0.5, 1.5, 2.5, -2.5, nan, inf, -inf, 1e-7, -1e-7, 90, -90, 1e30, 88.6, 30])
    x.view(-1)[: len(odd)] = odd
    return x


UNARY = {
    "neg": torch.neg, "abs": torch.abs, "exp": torch.exp, "expm1": torch.expm1, "log": torch.log,
    "log1p": torch.log1p, "sqrt": torch.sqrt, "rsqrt": torch.rsqrt, "reciprocal": torch.reciprocal,
    "tanh": torch.tanh, "sigmoid": torch.sigmoid, "erf": torch.erf, "relu": torch.relu, "silu": F.silu,
    "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid, "floor": torch.floor, "ceil": torch.ceil,
    "round": torch.round, "trunc": torch.trunc, "sign": torch.sign, "isnan": torch.isnan,
}  # fmt: skip


@pytest.mark.parametrize("op", UNARY)
def test_unary(isa, op):
    x = numbers(37, 41)
    same(isa, op, [x], "", UNARY[op](x))


@pytest.mark.parametrize("op", ["sin", "cos"])
def test_periodic(isa, op):
    x = torch.cat([torch.linspace(-2000, 2000, 4001), torch.tensor([0.0, -0.0, 1e5, -3e6, 1e30, inf, nan])])
    same(isa, op, [x], "", getattr(torch, op)(x), atol=2e-6)


@pytest.mark.parametrize(
    "op,attrs,fn",
    [
        ("softplus", "beta=1.5 threshold=20", lambda x: F.softplus(x, 1.5, 20)),
        ("elu", "alpha=1.3", lambda x: F.elu(x, 1.3)),
        ("leaky_relu", "slope=0.01", lambda x: F.leaky_relu(x, 0.01)),
        ("clamp", "lo=-1 hi=2", lambda x: torch.clamp(x, -1, 2)),
        ("clamp", "lo=-inf hi=2", lambda x: torch.clamp(x, max=2)),
        ("clamp", "lo=3 hi=2", lambda x: torch.clamp(x, 3, 2)),
    ],
)
def test_unary_with_attributes(isa, op, attrs, fn):
    x = numbers(19, 23)
    same(isa, op, [x], attrs, fn(x))


@pytest.mark.parametrize("op,fn", [
    ("gelu", F.gelu), ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh")), ("mish", F.mish),
])  # fmt: skip
def test_gates_on_finite_numbers(isa, op, fn):
    x = torch.linspace(-20, 20, 3001)
    same(isa, op, [x], "", fn(x), atol=2e-6)


BINARY = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div,
    "floor_div": torch.floor_divide, "trunc_div": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    "rem": torch.remainder, "maximum": torch.maximum, "minimum": torch.minimum, "eq": torch.eq, "ne": torch.ne,
    "lt": torch.lt, "le": torch.le, "gt": torch.gt, "ge": torch.ge,
}  # fmt: skip


@pytest.mark.parametrize("op", BINARY)
@pytest.mark.parametrize("shape", [(33, 40), (40,), (33, 1), (1, 1), ()])
def test_binary_broadcast(isa, op, shape):
    a, b = numbers(33, 40), torch.randn(shape) if shape != (33, 40) else numbers(33, 40).flip(0)
    same(isa, op, [a, b], "", BINARY[op](a, b))


@pytest.mark.parametrize("exponent", [2.0, 3.0, 0.5, -1.0, 1.7, 0.0])
def test_pow(isa, exponent):
    x, e = numbers(20, 20), torch.tensor(exponent)
    same(isa, "pow", [x, e], "", torch.pow(x, e))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
@pytest.mark.parametrize("op", ["add", "sub", "mul", "floor_div", "trunc_div", "rem", "maximum", "lt", "eq", "pow"])
def test_integers(isa, op, dtype):
    torch.manual_seed(2)
    a = torch.randint(0 if dtype == torch.uint8 else -100, 100, (13, 17)).to(dtype)
    b = torch.randint(1, 9, (13, 17)).to(dtype)
    if op != "pow" and dtype != torch.uint8:
        b = b * (torch.randint(0, 2, (13, 17)).to(dtype) * 2 - 1)
    same(isa, op, [a, b], "", torch.pow(a, b) if op == "pow" else BINARY[op](a, b))


def test_division_by_zero_is_reported(isa):
    a, b = torch.tensor([1, 2, 3]), torch.tensor([1, 0, 2])
    with pytest.raises(RuntimeError, match="out of range|zero|invalid|eager"):
        evaluate(isa, "floor_div", [a, b], "", a)


def test_logic_and_where(isa):
    torch.manual_seed(3)
    p, q, x, y = torch.rand(9, 31) > 0.5, torch.rand(31) > 0.5, torch.randn(9, 31), torch.randn(())
    same(isa, "and", [p, q], "", p & q)
    same(isa, "or", [p, q], "", p | q)
    same(isa, "xor", [p, q], "", p ^ q)
    same(isa, "not", [p], "", ~p)
    same(isa, "where", [q, x, y], "", torch.where(q, x, y))


CASTS = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool]


@pytest.mark.parametrize("source", CASTS)
@pytest.mark.parametrize("target", CASTS)
def test_cast(isa, source, target):
    x = torch.tensor([0.0, 1, 2, 3.7, 100.5, 65504, 1e-6, 2049, 255, 17.25]).to(source)
    if source.is_floating_point and target == torch.uint8:
        x = x.clamp(max=255)  # beyond the range PyTorch itself is undefined
    same(isa, "cast", [x], f"dtype={NAMES[target]}", x.to(target), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("op", ["add", "mul", "div"])
def test_other_floats(isa, op, dtype):
    a, b = torch.randn(15, 9).to(dtype), torch.randn(9).to(dtype)
    same(isa, op, [a, b], "", BINARY[op](a, b), rtol=0, atol=0)


# --- reductions ---

AXES = [
    ([0], (40, 12, 30)),
    ([1], (40, 12, 30)),
    ([2], (40, 12, 30)),
    ([0, 1, 2], (4, 12, 30)),
    ([2, 3], (2, 20, 7, 7)),
]


@pytest.mark.parametrize("axes,shape", AXES)
@pytest.mark.parametrize("keepdim", [0, 1])
def test_reductions(isa, axes, shape, keepdim):
    torch.manual_seed(4)
    x, attrs = torch.randn(shape), f"axes=[{','.join(map(str, axes))}] keepdim={keepdim}"
    k = bool(keepdim)
    same(isa, "sum", [x], attrs, x.sum(axes, k), rtol=1e-4, atol=1e-4)
    same(isa, "mean", [x], attrs, x.mean(axes, k))
    same(isa, "amax", [x], attrs, x.amax(axes, k))
    same(isa, "amin", [x], attrs, x.amin(axes, k))
    same(isa, "var", [x], attrs + " correction=1", x.var(axes, correction=1, keepdim=k), rtol=1e-4)
    b = x > -2
    same(isa, "all", [b], attrs, torch.all(b, dim=axes, keepdim=k))
    same(isa, "any", [~b], attrs, torch.any(~b, dim=axes, keepdim=k))


def test_nan_in_extremes(isa):
    x = torch.randn(5, 70)
    x[1, 3] = x[1, 69] = x[2, 65] = nan
    x[3, 10] = x[3, 50] = 9
    for op, fn in ("amax", torch.amax), ("amin", torch.amin):
        same(isa, op, [x], "axes=[1] keepdim=0", fn(x, 1))
    for op, fn in ("argmax", torch.argmax), ("argmin", torch.argmin):
        same(isa, op, [x], "axes=[1] keepdim=0", fn(x, 1))
        same(isa, op, [x], "axes=[0] keepdim=1", fn(x, 0, True))
        same(isa, op, [x], "axes=[0,1] keepdim=0", fn(x))


def test_integer_reductions(isa):
    x = torch.randint(-9, 9, (7, 11))
    same(isa, "sum", [x], "axes=[1] keepdim=0", x.sum(1))
    same(isa, "prod", [x], "axes=[0] keepdim=0", x.prod(0))
    same(isa, "amax", [x], "axes=[0] keepdim=0", x.amax(0))
    same(isa, "argmin", [x], "axes=[1] keepdim=0", x.argmin(1))
    same(isa, "cumsum", [x], "axis=1", x.cumsum(1))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_softmax(isa, axis):
    x = torch.randn(6, 33, 20)
    x[0, :, 0] = -inf
    x[1, :, 1] = nan
    x[2, 0, :] = -inf
    x[3] += 1000
    for op, fn in ("softmax", torch.softmax), ("log_softmax", torch.log_softmax):
        same(isa, op, [x], f"axis={axis}", fn(x, axis), atol=2e-6)
    same(isa, "softmax", [torch.full((3, 20), -inf)], "axis=1", torch.softmax(torch.full((3, 20), -inf), 1))
    y = torch.randn(6, 33, 20)
    same(isa, "cumsum", [y], f"axis={axis}", y.cumsum(axis), atol=1e-5)


# --- norms ---


def test_norms(isa):
    torch.manual_seed(5)
    x, w, b = torch.randn(5, 7, 100) * 4 + 3, torch.randn(100), torch.randn(100)
    same(isa, "layer_norm", [x, w, b], "axes=1 eps=1e-12", F.layer_norm(x, (100,), w, b, 1e-12), atol=1e-5)
    same(isa, "layer_norm", [x], "axes=2 eps=1e-05", F.layer_norm(x, (7, 100)), atol=1e-5)
    same(isa, "rms_norm", [x, w], "axes=1 eps=1e-06", F.rms_norm(x, (100,), w, 1e-6), atol=1e-5)
    y, cw, cb = torch.randn(3, 12, 9, 5), torch.randn(12), torch.randn(12)
    same(isa, "group_norm", [y, cw, cb], "groups=4 eps=1e-05", F.group_norm(y, 4, cw, cb), atol=1e-5)
    m, v = torch.randn(12), torch.rand(12) + 0.1
    want = F.batch_norm(y, m, v, cw, cb, False, 0.1, 1e-5)
    same(isa, "batch_norm", [y, cw, cb, m, v], "eps=1e-05", want, atol=1e-5)


# --- images ---


@pytest.mark.parametrize("ceil", [0, 1])
@pytest.mark.parametrize("kernel,stride,pad", [(3, 2, 1), (2, 2, 0), (3, 1, 1), (5, 3, 2)])
def test_pooling(isa, kernel, stride, pad, ceil):
    x = torch.randn(2, 20, 17, 14)
    x[0, 0, 3, 3] = nan
    box = f"kernel=[{kernel},{kernel}] stride=[{stride},{stride}] pad=[{pad},{pad}]"
    want = F.max_pool2d(x, kernel, stride, pad, ceil_mode=bool(ceil))
    same(isa, "max_pool2d", [x], f"{box} dilation=[1,1] ceil={ceil}", want)
    for include in 0, 1:
        want = F.avg_pool2d(x, kernel, stride, pad, bool(ceil), bool(include))
        same(isa, "avg_pool2d", [x], f"{box} ceil={ceil} include_pad={include} divisor=0", want)
    want = F.avg_pool2d(x, kernel, stride, pad, bool(ceil), True, 3)
    same(isa, "avg_pool2d", [x], f"{box} ceil={ceil} include_pad=1 divisor=3", want)


@pytest.mark.parametrize("out", [(1, 1), (3, 5), (20, 17)])
def test_adaptive_pooling(isa, out):
    x = torch.randn(2, 20, 17, 14)
    same(isa, "adaptive_avg_pool2d", [x], f"out=[{out[0]},{out[1]}]", F.adaptive_avg_pool2d(x, out), atol=1e-5)


def test_dilated_max_pooling(isa):
    x = torch.randn(1, 16, 15, 15)
    attrs = "kernel=[3,3] stride=[2,2] pad=[1,1] dilation=[2,2] ceil=0"
    same(isa, "max_pool2d", [x], attrs, F.max_pool2d(x, 3, 2, 1, 2))


@pytest.mark.parametrize("size", [(20, 30), (5, 4), (9, 13)])
def test_resize(isa, size):
    x = torch.randn(2, 18, 9, 13)
    out = f"out=[{size[0]},{size[1]}] scale_h=0 scale_w=0"
    same(isa, "resize2d", [x], f"{out} bilinear=0 align_corners=0", F.interpolate(x, size))
    for corners in 0, 1:
        want = F.interpolate(x, size, mode="bilinear", align_corners=bool(corners))
        same(isa, "resize2d", [x], f"{out} bilinear=1 align_corners={corners}", want, atol=1e-5)
    want = F.interpolate(x, scale_factor=1.7, mode="bilinear")
    attrs = f"out=[{want.shape[2]},{want.shape[3]}] scale_h=1.7 scale_w=1.7 bilinear=1 align_corners=0"
    same(isa, "resize2d", [x], attrs, want, atol=1e-5)


# --- attention ---


@pytest.mark.parametrize("S,T,D", [(1, 50, 64), (7, 7, 32), (40, 40, 64), (33, 300, 80), (70, 20, 40), (3, 600, 128)])
@pytest.mark.parametrize("mask", ["none", "bool", "float", "keys", "causal"])
def test_attention(isa, S, T, D, mask):
    torch.manual_seed(6)
    q, k, v = torch.randn(2, 4, S, D), torch.randn(2, 4, T, D), torch.randn(2, 4, T, D)
    m, causal = None, mask == "causal"
    if mask == "bool":
        m = torch.rand(2, 1, S, T) > 0.3
        m[0, 0, 0] = False  # eager gives zeros for a row without keys
    elif mask == "float":
        m = torch.randn(S, T)
        m[S // 2, : T // 2] = -inf
        m[0] = torch.finfo(torch.float32).min
    elif mask == "keys":
        m = torch.rand(2, 1, 1, T) > 0.5
        m[1] = False
    want = F.scaled_dot_product_attention(q, k, v, m, is_causal=causal)
    if m is not None and m.dtype == torch.bool:
        same(isa, "attention", [q, k, v, m], f"scale={D**-0.5!r} causal=0", want, atol=2e-5)
        m = torch.zeros(m.shape).masked_fill(~m, -inf)
    args = [q, k, v] if m is None else [q, k, v, m]
    same(isa, "attention", args, f"scale={D**-0.5!r} causal={int(causal)}", want, atol=2e-5)


def test_grouped_attention(isa):
    q, k, v = torch.randn(1, 8, 9, 64), torch.randn(1, 2, 9, 64), torch.randn(1, 2, 9, 64)
    want = F.scaled_dot_product_attention(q, k, v, scale=0.3, enable_gqa=True)
    same(isa, "attention", [q, k, v], "scale=0.3 causal=0", want, atol=2e-5)


# --- movement ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool, torch.float16])
def test_movement(isa, dtype):
    x = (torch.randn(6, 5, 12) * 3).to(dtype)
    y = (torch.randn(6, 2, 12) * 3).to(dtype)
    i, j = torch.tensor([[0, -1, 3], [5, 2, 2]]), torch.tensor([4, 0, -5])
    k = torch.tensor([4, 0, 2])
    same(isa, "cat", [x, y], "axis=1", torch.cat([x, y], 1))
    same(isa, "pad", [x], "pads=[0,0,1,2,3,0] value=1", F.pad(x, (3, 0, 1, 2), value=1))
    same(isa, "flip", [x], "axes=[0,2]", x.flip(0, 2))
    same(isa, "tri", [x], "diagonal=1 upper=1", x.triu(1))
    same(isa, "tri", [x], "diagonal=-1 upper=0", x.tril(-1))
    same(isa, "embedding", [x, i.abs()], "", x[i.abs()])
    same(isa, "index_select", [x, k], "axis=1", x.index_select(1, k))
    same(isa, "index", [x, i], "axis=0", x[i])
    same(isa, "index", [x, i, j], "axis=0", x[i, j])
    same(isa, "index", [x, j], "axis=1", x[:, j])
    g = torch.randint(0, 12, (6, 5, 3))
    same(isa, "gather", [x, g], "axis=2", x.gather(2, g))


@pytest.mark.parametrize(
    "op,attrs", [("embedding", ""), ("index_select", "axis=0"), ("index", "axis=0"), ("gather", "axis=0")]
)
@pytest.mark.parametrize("bad", [9, -7, 2**40])
def test_index_out_of_range_is_reported(isa, op, attrs, bad):
    x, i = torch.randn(6, 12), torch.tensor([1, bad])
    if op == "gather":
        i = i.view(2, 1).expand(2, 12)
    like = torch.empty(2, 12)
    with pytest.raises(RuntimeError, match="range"):
        evaluate(isa, op, [x, i], attrs, like)


@pytest.mark.parametrize("op,attrs", [("embedding", ""), ("index_select", "axis=0"), ("gather", "axis=0")])
def test_negative_index_is_reported(isa, op, attrs):
    i = torch.tensor([[1], [-1]]).expand(2, 12) if op == "gather" else torch.tensor([1, -1])
    with pytest.raises(RuntimeError, match="range"):
        evaluate(isa, op, [torch.randn(6, 12), i], attrs, torch.empty(2, 12))


def test_iota(isa):
    same(isa, "iota", [], "dims=[7] axis=0 start=2 step=3 dtype=i64", torch.arange(2, 23, 3))
    same(isa, "iota", [], "dims=[5] axis=0 start=0.5 step=0.25 dtype=f32", torch.arange(0.5, 1.75, 0.25))
