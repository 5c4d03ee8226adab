"""Recordings that are no account of the call, since memory was written where nobody saw it: they are refused, for good.

ctypes' memmove stands for C++ that fills what an operator gave, after the operator has returned.
"""

import ctypes
import functools
import gc
import re
import weakref

import numpy
import pytest
import torch

import battery
import framelift

PROTOTYPE = ctypes.PYFUNCTYPE(ctypes.c_void_p, *[ctypes.c_void_p] * 2, ctypes.c_size_t, ctypes.py_object)
MEMMOVE = PROTOTYPE(("memmove", ctypes.CDLL(None)))  # and whatever else it is called with
torch.manual_seed(0)
LIN = torch.nn.Linear(4, 4).eval()
STATE = {}


class Token:
    pass


def fill_when_tokens_die(memory, values):
    for token in [o for o in gc.get_objects() if type(o) is Token]:
        values = values.numpy().copy()
        fill = functools.partial(MEMMOVE, memory.data_ptr(), values.ctypes.data, values.nbytes)
        STATE["fill"] = values, weakref.ref(token, fill)


def later(x):
    """Zeros, which become 2x + 1 when the program lets go of its token."""
    out = torch.zeros_like(x)
    fill_when_tokens_die(out, x * 2 + 1)
    return out


def into(x):
    """x + 1; x itself becomes 2x + 1 when the program lets go of its token."""
    fill_when_tokens_die(x, x * 2 + 1)
    return x + 1


def count(x):
    STATE["calls"] += 1
    return x + STATE["calls"]


def number(n):
    STATE["calls"] += 1
    return torch.full((n,), float(STATE["calls"]))


def noise(x):
    return x + torch.from_numpy(numpy.random.rand(*x.shape).astype("float32"))


def log(x):
    STATE["log"].append(x.shape)


def poke(size):
    ctypes.memmove(STATE["to"].data_ptr(), STATE["from"].data_ptr(), size)
    return size


def hidden_write(x):
    x.numpy()[:] = 7
    return x * 2


LIBRARY = torch.library.Library("framelift_unfaithful", "DEF")
for function, schema in {
    later: "(Tensor x) -> Tensor",
    into: "(Tensor x) -> Tensor",
    count: "(Tensor x) -> Tensor",
    noise: "(Tensor x) -> Tensor",
    number: "(int n) -> Tensor",
    log: "(Tensor x) -> ()",
    poke: "(int n) -> int",
    hidden_write: "(Tensor x) -> Tensor",
}.items():
    LIBRARY.define(function.__name__ + schema)
    LIBRARY.impl(function.__name__, function, "CompositeExplicitAutograd")
OPS = torch.ops.framelift_unfaithful


@pytest.fixture(autouse=True)
def state():
    STATE.clear()


def x(seed=0, rows=3):
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed))


def checked(make, n=4, **options):
    """make() gives a program and what it leaves behind; called n times, compared with itself run plainly."""

    def program(compile, call):
        STATE.clear()
        function, *shown = make()
        fast = compile(function)
        for k in range(n):
            call(fast, x(k))
            call.show(*shown)

    return framelift.explain(battery.check(program, **options)[0])


def filled_later():
    def f(t):
        token = Token()
        y = OPS.later(LIN(t))
        token = None
        return LIN(y) + (token is None)

    return (f,)


def filled_later_and_given_back():
    def f(t):
        token = Token()
        y = OPS.later(t)
        token = None
        return y if token is None else t

    return (f,)


def filled_later_and_given_away():
    def f(t):
        token = Token()
        y = OPS.later(LIN(t))
        token = None
        return torch.from_numpy(numpy.exp(y.numpy())) + (token is None)

    return (f,)


def filled_later_before_an_effect():
    total = torch.zeros(3, 4)

    def f(t):
        token = Token()
        y = OPS.later(LIN(t))
        token = None
        total.add_(y)
        return total * 2 + (token is None)

    return f, total


@pytest.mark.parametrize(
    "make", [filled_later, filled_later_and_given_back, filled_later_and_given_away, filled_later_before_an_effect]
)
@pytest.mark.parametrize("options", [{}, {"backend": "eager"}])
def test_what_another_library_gave_is_filled_later(make, options):
    e = checked(make, **options)
    assert not e.replayed and not e.traces
    assert e.native_reason == "memory written without an operator: framelift_unfaithful.later.default"


def written_later():
    def f(t):
        token = Token()
        y = LIN(t)
        z = OPS.into(y)
        token = None
        return LIN(y) + z + (token is None)

    return (f,)


def written_later_before_a_break():
    def f(t):
        token = Token()
        y = LIN(t)
        z = OPS.into(y)
        token = None
        print(end="")
        return LIN(y) + z + (token is None)

    return (f,)


def written_later_after_a_break():
    def f(t):
        print(end="")
        token = Token()
        y = LIN(t)
        z = OPS.into(y)
        token = None
        return LIN(y) + z + (token is None)

    return (f,)


def an_argument_written():
    def f(t):
        a = t.exp()
        y = OPS.hidden_write(t)
        return a + t.exp() + LIN(y)

    return (f,)


def an_argument_written_later():
    """Nothing reads it before that, so that all that was recorded is consistent."""

    def f(t):
        token = Token()
        z = OPS.into(t)
        token = None
        return LIN(t) + z + (token is None)

    return (f,)


@pytest.mark.parametrize("make", [an_argument_written, an_argument_written_later])
@pytest.mark.parametrize("options", [{}, {"backend": "eager"}])
def test_an_argument_is_written_unseen(make, options):
    e = checked(make, **options)
    assert not e.replayed and e.native_reason == "memory written without an operator: an argument's"


UNFAITHFUL = [written_later, written_later_before_a_break, written_later_after_a_break]


@pytest.mark.parametrize("make", UNFAITHFUL)
@pytest.mark.parametrize("options", [{}, {"backend": "eager"}, {"backend": lambda graph, inputs: graph}])
def test_it_is_refused(make, options):
    e = checked(make, **options)
    assert (e.recorded, e.replayed, e.native) == (0, 0, 4) and not e.traces
    (reason,) = e.give_ups
    assert reason.reason == "the recorded operators do not give the recorded answer"
    assert re.match(r"framelift_unfaithful\.into\.default", reason.detail)
    assert reason.file == __file__ and reason.count == 4
    assert reason.detail in str(e) and "test_unfaithful.py:" in str(e)


def test_each_kind_of_arguments_is_refused_once():
    fast = framelift.compile(written_later()[0])
    with torch.no_grad():
        for rows in (2, 3, 2, 3):
            for k in range(2):
                torch.testing.assert_close(fast(x(k, rows)), fast.__wrapped__(x(k, rows)))
    e = framelift.explain(fast)
    assert [g.count for g in e.give_ups] == [4, 4] and e.native == 8


def test_without_verification_it_is_not_seen():
    fast = framelift.compile(written_later()[0], verify=False)
    with torch.no_grad():
        for _ in range(2):
            fast(x())
    assert framelift.explain(fast).replayed == 1


def test_a_branch_is_refused():
    """What comes before the break is sound, and so is the other way to go on."""

    def f(t):
        y = LIN(t)
        if float(y.sum()) > 0:
            token = Token()
            z = OPS.into(y)
            token = None
            return LIN(y) + z + (token is None)
        return LIN(y) * 2

    fast = framelift.compile(f)
    signs = set()
    with torch.no_grad():
        for k in range(16):
            torch.testing.assert_close(fast(x(k)), f(x(k)))
            signs.add(float(LIN(x(k)).sum()) > 0)
    assert signs == {True, False}


def weight_written_in_between():
    """All operators are an engine's, so that it is verified in the second call."""
    weight = torch.ones(4)
    source = torch.arange(4.0)

    class Key:
        __hash__ = functools.partial(ctypes.memmove, weight.data_ptr(), source.data_ptr(), 16)

    key = Key()

    def f(t):
        y = LIN(t) * weight
        hash(key)
        return y + weight

    STATE["alive"] = source
    return f, weight


@pytest.mark.parametrize("asked", [False, True])
def test_it_is_refused_in_the_second_call(asked):
    f, weight = weight_written_in_between()
    fast = framelift.compile(f)
    with torch.no_grad():
        for k in range(4):
            before = weight.clone()
            torch.testing.assert_close(fast(x(k)), LIN(x(k)) * before + torch.arange(4.0))
            if asked:
                assert not framelift.explain(fast).traces
    e = framelift.explain(fast)
    assert (e.recorded, e.replayed, e.native) == (1, 0, 3) and not e.traces
    assert [g.reason for g in e.give_ups] == ["the recorded operators do not give the recorded answer"]


def fbgemm_in_16_bits(weight):
    packed = torch.ops.aten.fbgemm_pack_gemm_matrix_fp16(weight)
    return lambda t: torch.fbgemm_linear_fp16_weight_fp32_activation(t, packed, torch.zeros(4))


def fbgemm_in_8_bits(weight):
    quantized, offsets, scale, zero = torch.fbgemm_linear_quantize_weight(weight)
    packed = torch.fbgemm_pack_quantized_matrix(quantized)
    args = quantized, packed, offsets, scale, zero, torch.zeros(4)
    return lambda t: torch.fbgemm_linear_int8_weight_fp32_activation(t, *args)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [fbgemm_in_16_bits, fbgemm_in_8_bits])
@pytest.mark.parametrize("around", [lambda f: f, lambda f: lambda t: LIN(f(LIN(t)))], ids=["alone", "inside"])
def test_composites_that_fill_their_result_themselves(kind, around):
    try:
        linear = kind(torch.randn(4, 4))
        linear(x())
    except RuntimeError as error:
        pytest.skip(str(error))
    assert "a tensor made without an operator" in str(checked(lambda: (around(linear),)))


@pytest.mark.parametrize("options", [{}, {"backend": "eager"}])
def test_new_memory_that_is_filled_unseen(options):
    """Tensors of inference mode count no versions. What `empty` gives is most often what has just been freed."""

    def f(t):
        y = torch.empty(3, 4)
        return OPS.hidden_write(y) + LIN(y) + t

    fast = framelift.compile(f, **options)
    with torch.inference_mode():
        for k in range(4):
            torch.testing.assert_close(fast(x(k)), f(x(k)))
    e = framelift.explain(fast)
    assert e.native == 4 and e.give_ups[0].detail == "aten.empty.memory_format"
    assert e.give_ups[0].reason == "an answer comes out of memory that no recorded operator fills"


def memory_of_its_own():
    def f(t):
        y, z, u = torch.empty(3, 4), torch.empty_like(t), t.new_empty(3, 4)
        y.copy_(LIN(t))
        torch.add(t, 1, out=z)
        u[:2], u[2] = t[:2], 1.0
        return OPS.log(y), LIN(y) + z + u, torch.zeros_like(torch.empty(2, 2)), torch.empty(3, 4).fill_(2)

    STATE["log"] = []
    return f, STATE["log"]


def counted():
    STATE["calls"] = 0
    return (lambda t: LIN(OPS.count(LIN(t))),)


def counted_alone():
    STATE["calls"] = 0
    return (lambda t: OPS.count(t),)


def counted_alike():
    """The same arguments in each call do not make the same answer."""
    STATE["calls"] = 0
    ones = torch.ones(4)
    return (lambda t: LIN(t) * OPS.count(ones) + OPS.count(torch.zeros(4)) + OPS.number(4),)


def noisy():
    numpy.random.seed(0)
    return (lambda t: LIN(OPS.noise(LIN(t))),)


def logged():
    STATE["log"] = []

    def f(t):
        y = LIN(t)
        OPS.log(y)
        return y * 2

    return f, STATE["log"]


@pytest.mark.parametrize("make", [memory_of_its_own, counted, counted_alone, counted_alike, noisy, logged])
@pytest.mark.parametrize("options", [{}, {"backend": "eager"}])
def test_what_is_sound_is_replayed(make, options):
    """What other libraries' operators do besides giving results is done once in each call, the verified one too."""
    e = checked(make, **options)
    assert (e.recorded, e.replayed, e.native) == (1, 3, 0)


def test_numbers_of_other_libraries_operators():
    """No tensor goes in or comes out; memory is written all the same."""
    STATE.update({"to": torch.ones(4), "from": torch.arange(4.0)})

    def f(t):
        y = LIN(t) * STATE["to"]
        OPS.poke(16)
        return y + STATE["to"]

    fast = framelift.compile(f)
    with torch.no_grad():
        for k in range(4):
            STATE["to"].fill_(k)
            want = f(x(k))
            STATE["to"].fill_(k)
            torch.testing.assert_close(fast(x(k)), want)
