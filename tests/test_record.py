"""Recording and replay: what is recorded, what runs in the engine, and that a replay answers as eager does."""

import collections
import dataclasses

import pytest
import torch

import framelift
from framelift import _C


def check(fn, *args, calls=3, **kwargs):
    """Calls the compiled function several times; each answer must be eager's. Returns its report."""
    fast = framelift.compile(fn)
    for _ in range(calls):
        with torch.no_grad():
            torch.manual_seed(3)
            want = fn(*args, **kwargs)
        torch.manual_seed(3)
        same(fast(*args, **kwargs), want)
    return _C.report(fast)


def same(got, want):
    assert type(got) is type(want)
    if isinstance(want, torch.Tensor):
        assert got.dtype == want.dtype and got.shape == want.shape and got.stride() == want.stride()
        assert got.requires_grad == want.requires_grad and got.is_inference() == want.is_inference()
        torch.testing.assert_close(got, want, rtol=2e-4, atol=2e-5, equal_nan=True)
    elif isinstance(want, (list, tuple)):
        assert len(got) == len(want)
        for g, w in zip(got, want, strict=True):
            same(g, w)
    elif isinstance(want, dict):
        assert list(got) == list(want)
        for k in want:
            same(got[k], want[k])
    elif dataclasses.is_dataclass(want):
        same(vars(got), vars(want))
    else:
        assert got == want


def only_trace(report):
    assert report["recorded"] == 1 and len(report["traces"]) == 1 and not report["give_ups"]
    assert report["native"] == 0 and report["replayed"] == report["calls"] - 1
    return report["traces"][0]


def test_straight_line_is_one_engine_part():
    trace = only_trace(check(lambda x, w: torch.relu(x @ w + 1).sum(1), torch.randn(4, 8), torch.randn(8, 16)))
    (segment,) = trace["segments"]
    assert [p["kind"] for p in segment["parts"]] == ["engine"]
    assert segment["operators"] == segment["lowered"] == 4 and not segment["eager"]
    assert segment["verify"]["cosine"] > 0.9999
    assert trace["inputs"] == 2 and trace["weights"] == 0


def test_new_inputs_give_new_answers():
    fast = framelift.compile(lambda x: torch.tanh(x) * 2)
    for i in range(4):
        x = torch.full((3, 3), float(i))
        same(fast(x), torch.tanh(x) * 2)
    assert _C.report(fast)["replayed"] == 3


def test_shapes_dtypes_and_strides_get_their_own_traces():
    fast = framelift.compile(lambda x: (x * 2 + 1).sum(-1))
    inputs = [
        torch.randn(2, 3),
        torch.randn(3, 2),
        torch.randn(2, 3).double(),
        torch.randn(3, 2).t(),
        torch.arange(6).view(2, 3),
    ]
    for _ in range(2):
        for x in inputs:
            same(fast(x), (x * 2 + 1).sum(-1))
    report = _C.report(fast)
    assert report["recorded"] == 5 and report["replayed"] == 5


@dataclasses.dataclass
class Answer:
    a: torch.Tensor
    n: int = 3
    more: dict = None


Named = collections.namedtuple("Named", "x y")


@pytest.mark.parametrize(
    "build",
    [
        lambda y: [y, (y * 2, None, 1.5), "s"],
        lambda y: {"b": y, "a": {"c": [y + 1]}},
        lambda y: collections.OrderedDict(b=y, a=y + 1),
        lambda y: Named(y, y - 1),
        lambda y: Answer(y, 4, {"k": y * 3}),
        lambda y: torch.max(y, 0),
        lambda y: None,
        lambda y: (y, y),
        lambda y: y.shape,
        lambda y: (),
    ],
)
def test_result_structures(build):
    only_trace(check(lambda x: build(torch.exp(x)), torch.randn(3, 4)))


def test_results_are_fresh_objects_each_call():
    fast = framelift.compile(lambda x: {"y": [torch.exp(x)]})
    x = torch.randn(3)
    fast(x)
    first, second = fast(x), fast(x)
    assert first is not second and first["y"] is not second["y"]
    first["y"][0].zero_()
    first["y"].append(1)
    same(fast(x), second)


def test_the_same_object_twice_stays_one_object():
    fast = framelift.compile(lambda x: (lambda items: (items, items))([torch.exp(x)]))
    x = torch.randn(3)
    fast(x)
    a, b = fast(x)
    assert a is b


def test_views_in_results_share_memory_as_in_eager():
    def f(x):
        y = torch.exp(x)
        return y, y.t(), y[0]

    fast = framelift.compile(f)
    x = torch.randn(3, 4)
    fast(x)
    y, t, row = fast(x)
    same((y, t, row), f(x))
    y.fill_(7)
    assert (t == 7).all() and (row == 7).all()
    reasons = {e["op"]: e["reason"] for e in _C.report(fast)["traces"][0]["segments"][0]["eager"]}
    assert reasons["aten.t.default"] == "the result shares memory with another tensor"


def test_an_argument_given_back_is_the_same_object():
    fast = framelift.compile(lambda x: (x, x.view(-1), x + 1))
    x = torch.randn(3, 4)
    fast(x)
    same_x, view, _ = fast(x)
    assert same_x is x and view.data_ptr() == x.data_ptr()


def test_a_weight_given_back_is_the_same_object():
    linear = torch.nn.Linear(4, 4)
    fast = framelift.compile(lambda x: (linear.weight, linear(x)))
    x = torch.randn(2, 4)
    fast(x)
    assert fast(x)[0] is linear.weight


def test_in_place_on_a_temporary_stays_in_the_engine():
    def f(x):
        y = x + 1
        y.relu_()
        y += 2
        return y.mul_(3)

    trace = only_trace(check(f, torch.randn(5)))
    assert [p["kind"] for p in trace["segments"][0]["parts"]] == ["engine"]


def test_in_place_through_a_view_is_right():
    def f(x):
        y = x + 1
        y[0] = 5
        y[:, 1].mul_(2)
        return y * 2

    trace = only_trace(check(f, torch.randn(3, 3)))
    assert trace["segments"][0]["eager"] == [] and trace["segments"][0]["parts"][0]["kind"] == "engine"


def test_writing_to_an_argument_is_repeated_each_call():
    fast = framelift.compile(lambda x: x.add_(1))
    x = torch.zeros(3)
    for i in range(1, 5):
        assert fast(x) is x and (x == i).all()
    assert _C.report(fast)["replayed"] == 3


def test_random_operators_stay_eager_and_follow_the_seed():
    def f(x):
        return torch.nn.functional.dropout(x, 0.5, True) + torch.rand(4) + torch.relu(x)

    trace = only_trace(check(f, torch.randn(4)))
    assert {e["reason"] for e in trace["segments"][0]["eager"]} >= {"random"}


def test_recording_and_verifying_use_random_numbers_once():
    def f(x):
        return torch.exp(torch.exp(x).sin()) * torch.rand(4)

    fast = framelift.compile(f)
    torch.manual_seed(5)
    got = [fast(torch.ones(4)) for _ in range(3)]
    torch.manual_seed(5)
    same(got, [f(torch.ones(4)) for _ in range(3)])


def test_batch_norm_in_training_updates_its_statistics():
    torch.manual_seed(0)
    a, b = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    fast = framelift.compile(b)
    for i in range(4):
        x = torch.randn(5, 3) + i
        with torch.no_grad():
            want = a(x)
        same(fast(x), want)
        same(b.running_mean, a.running_mean)
        assert b.num_batches_tracked == i + 1


def test_numbers_out_of_tensors_choose_the_trace():
    def f(x):
        return x * 2 if x.sum().item() > 0 else x - 1

    fast = framelift.compile(f)
    for s in (1.0, 1.0, -1.0, 1.0, -1.0, 2.0):
        x = torch.full((3,), s)
        same(fast(x), f(x))


def test_shapes_that_depend_on_data():
    def f(x):
        return torch.exp(x[x > 0]).sum(), torch.nonzero(x > 0)

    fast = framelift.compile(f)
    for x in (torch.tensor([1.0, -1, 2]), torch.tensor([-1.0, 1, 3]), torch.tensor([1.0, 1, 3]), torch.zeros(3)):
        same(fast(x), f(x))
    assert _C.report(fast)["traces"][0]["breaks"][0]["reason"] == "the shape of a result depends on data"


def test_tensors_made_from_python_values_are_made_anew():
    def f(x):
        t = torch.tensor([1.0, 2.0, 3.0])
        t += x
        return t

    only_trace(check(f, torch.ones(3)))


def test_lists_dicts_and_keywords_as_arguments():
    def f(xs, *, scale, extra=None):
        return (xs[0] + xs[1]["k"]) * scale

    a, b = torch.randn(3), torch.randn(3)
    fast = framelift.compile(f)
    for scale in (2, 2, 3):
        same(fast([a, {"k": b}], scale=scale), f([a, {"k": b}], scale=scale))
    assert _C.report(fast)["recorded"] == 2
    same(fast([b, {"k": a}], scale=2), f([b, {"k": a}], scale=2))
    assert _C.report(fast)["recorded"] == 2


def test_one_object_given_twice_is_told_apart():
    def f(x, y):
        x.add_(1)
        return y * 2

    fast = framelift.compile(f)
    for _ in range(2):
        x = torch.ones(3)
        same(fast(x, x), torch.full((3,), 4.0))
        same(fast(torch.ones(3), torch.ones(3)), torch.full((3,), 2.0))
    assert _C.report(fast)["recorded"] == 2


def test_errors_are_the_programs_own():
    def f(x):
        if x.shape[0] == 2:
            raise KeyError("mine")
        return torch.nn.functional.embedding(x, table)

    table = torch.randn(4, 3)
    fast = framelift.compile(f)
    with pytest.raises(KeyError, match="mine"):
        fast(torch.tensor([1, 2]))
    ok = torch.tensor([1, 2, 3])
    same(fast(ok), table[ok])
    same(fast(ok), table[ok])
    with pytest.raises(IndexError):
        fast(torch.tensor([1, 2, 4]))


def test_an_argument_that_requires_grad_runs_natively_with_a_warning():
    fast = framelift.compile(lambda x: (x * 2).sum())
    x = torch.randn(3, requires_grad=True)
    with pytest.warns(UserWarning, match="requires grad"):
        y = fast(x)
    y.backward()
    assert (x.grad == 2).all()
    with torch.no_grad():
        assert not fast(x).requires_grad
    assert fast(x).requires_grad


def test_results_carry_no_grad_and_grad_mode_is_left_alone():
    linear = torch.nn.Linear(3, 3)
    fast = framelift.compile(linear)
    for _ in range(3):
        assert not fast(torch.randn(2, 3)).requires_grad and torch.is_grad_enabled()


def test_inference_mode_gives_inference_tensors():
    fast = framelift.compile(lambda x: torch.exp(x))
    x = torch.randn(3)
    for _ in range(2):
        with torch.inference_mode():
            assert fast(x).is_inference()
        assert not fast(x).is_inference()
    assert _C.report(fast)["recorded"] == 2


def test_transforms_run_natively_and_autocast_does_not():
    fast = framelift.compile(lambda x, w: x @ w)
    x = torch.randn(3, 3)
    fast(x, x.clone())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fast(x, x.clone()).dtype == torch.bfloat16
    assert _C.report(fast)["native"] == 0
    same(torch.func.vmap(fast)(x, x), torch.func.vmap(lambda a, b: a @ b)(x, x))


def test_fallback_error_tells_the_reason():
    fast = framelift.compile(lambda x: object(), fallback="error")
    with pytest.raises(RuntimeError, match="framelift: a result of a kind"):
        fast(torch.randn(3))


def test_give_ups_run_natively_and_are_reported():
    class Slots:
        __slots__ = ("x",)

    def f(x):
        s = Slots()
        s.x = x + 1
        return s

    fast = framelift.compile(f)
    for _ in range(3):
        assert (fast(torch.ones(2)).x == 2).all()
    report = _C.report(fast)
    assert report["native"] == 3 and report["recorded"] == 0
    assert report["give_ups"][0]["count"] == 3 and "cannot be made again" in report["give_ups"][0]["reason"]


def test_the_compiled_module_stands_for_the_module():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config = {"a": 1}
            self.linear = torch.nn.Linear(2, 2)

        def forward(self, x):
            return self.linear(x)

    net = Net()
    fast = framelift.compile(net)
    assert fast.config is net.config and fast.__wrapped__ is net and fast.training
    fast.eval()
    assert not net.training
    fast.extra = 3
    assert net.extra == 3
    del fast.extra
    assert not hasattr(net, "extra")
    assert list(fast.state_dict()) == ["linear.weight", "linear.bias"]


def test_as_a_method():
    class A:
        k = 3

        @framelift.compile
        def scaled(self, x):
            return x * self.k

    a = A()
    for _ in range(2):
        same(a.scaled(torch.ones(2)), torch.full((2,), 3.0))


def test_reset_forgets():
    fast = framelift.compile(lambda x: x + 1)
    fast(torch.ones(2))
    framelift.reset(fast)
    assert not _C.report(fast)["traces"]
    same(fast(torch.ones(2)), torch.full((2,), 2.0))


def test_backend_eager_replays_operator_by_operator():
    fast = framelift.compile(lambda x: torch.exp(x).sum(), backend="eager")
    x = torch.randn(3)
    for _ in range(2):
        same(fast(x), torch.exp(x).sum())
    segment = _C.report(fast)["traces"][0]["segments"][0]
    assert [p["kind"] for p in segment["parts"]] == ["eager"] and segment["lowered"] == 0


def test_memory_of_temporaries_is_freed():
    import gc
    import weakref

    seen = []

    def f(x):
        y = torch.exp(x)
        seen.append(weakref.ref(y))
        return y.sum()

    fast = framelift.compile(f)
    fast(torch.randn(3))
    gc.collect()
    assert seen[0]() is None


def test_threads_share_a_compiled_function():
    import concurrent.futures

    linear = torch.nn.Linear(8, 8)
    fast = framelift.compile(lambda x: linear(x).relu().sum(1))
    inputs = [torch.randn(1 + i % 3, 8) for i in range(24)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(fast, inputs))
    with torch.no_grad():
        for x, got in zip(inputs, answers, strict=True):
            same(got, linear(x).relu().sum(1))
    assert _C.report(fast)["recorded"] == 3


def test_constants_made_in_inference_mode_are_the_recordings_own():
    def f(x):
        return torch.cat([torch.tensor([], dtype=x.dtype), x * torch.tensor([2.0, 3.0])])

    fast = framelift.compile(f)
    with torch.inference_mode():
        for _ in range(3):
            x = torch.randn(2)
            assert torch.equal(fast(x), f(x))
    e = framelift.explain(fast)
    assert (e.recorded, e.replayed, e.segments, len(e.breaks)) == (1, 2, 1, 0), str(e)
