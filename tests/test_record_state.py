"""Changes to the program's state between calls take effect on the next call."""

import pytest
import torch

import framelift
from framelift import _C

SCALE = 2.0


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear(4, 4)
        self.b = torch.nn.Linear(4, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.factor = 3
        self.order = ["a", "b"]
        self.table = {"k": 1.0}

    def forward(self, x):
        for name in self.order:
            x = getattr(self, name)(x)
        return self.norm(x) * self.factor * SCALE + self.table["k"]


def set_global(net):
    global SCALE
    SCALE += 1


def in_place(net):
    with torch.no_grad():
        net.a.weight.mul_(1.5)


def load(net):
    net.load_state_dict({k: v + 1 if v.is_floating_point() else v for k, v in net.state_dict().items()})


def set_data(net):
    net.b.bias.data = torch.randn(4)


def transposed_data(net):
    net.b.weight.data = net.b.weight.data.t()


def new_parameter(net):
    net.a.weight = torch.nn.Parameter(torch.randn(4, 4))


def new_submodule(net):
    net.a = torch.nn.Linear(4, 4)


def new_attribute(net):
    net.factor = 5


def list_edited(net):
    net.order.reverse()


def list_longer(net):
    net.order.append("a")


def dict_edited(net):
    net.table["k"] = 7.0


def hook(net):
    net.b.register_forward_hook(lambda m, i, o: o * 2)


def instance_forward(net):
    net.a.forward = lambda x: x + 1


def class_patched(net):
    Net.extra = 1
    type(net).forward = lambda self, x: self.a(x) - 1


def buffer_edited(net):
    net.norm.running_mean.add_(1)


def train_then_eval(net):
    net.train()
    net(torch.randn(5, 4))
    net.eval()


def eps(net):
    net.norm.eps = 0.5


CHANGES = [
    set_global,
    in_place,
    load,
    set_data,
    transposed_data,
    new_parameter,
    new_submodule,
    new_attribute,
    list_edited,
    list_longer,
    dict_edited,
    hook,
    instance_forward,
    class_patched,
    buffer_edited,
    train_then_eval,
    eps,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_takes_effect_at_once(change):
    torch.manual_seed(0)
    forward = Net.forward
    net = Net().eval()
    fast = framelift.compile(net)
    x = torch.randn(3, 4)
    try:
        with torch.no_grad():
            for _ in range(2):
                torch.testing.assert_close(fast(x), net(x))
            before = net(x)
            change(net)
            after = net(x)
            for _ in range(2):
                torch.testing.assert_close(fast(x), after)
        assert change is train_then_eval or not torch.allclose(before, after)
        report = _C.report(fast)
        assert report["native"] == 0 and report["replayed"] >= 2, report
    finally:
        Net.forward = forward


@pytest.mark.parametrize("change", [in_place, load, set_data, buffer_edited])
def test_weights_are_refreshed_without_recording_again(change):
    net = Net().eval()
    fast = framelift.compile(net)
    x = torch.randn(3, 4)
    fast(x)
    change(net)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), net(x))
    assert _C.report(fast)["recorded"] == 1


def test_train_and_eval_each_have_a_trace():
    torch.manual_seed(0)
    net, twin = Net(), Net()
    twin.load_state_dict(net.state_dict())
    fast = framelift.compile(net)
    for mode in (False, True, False, True, True, False):
        net.train(mode)
        twin.train(mode)
        x = torch.randn(5, 4)
        with torch.no_grad():
            torch.testing.assert_close(fast(x), twin(x))
    assert _C.report(fast)["recorded"] == 2


def test_refresh_sees_what_pytorch_does_not():
    net = Net().eval()
    fast = framelift.compile(net)
    x = torch.randn(3, 4)
    fast(x)
    net.a.weight.data.mul_(2)
    framelift.refresh(fast)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), net(x))


def test_a_closure_variable_is_guarded():
    k = 2

    def f(x):
        return x * k

    fast = framelift.compile(f)
    for k in (2, 2, 3, 4):
        assert (fast(torch.ones(2)) == k).all()


def test_a_default_argument_is_guarded():
    def f(x, k=2):
        return x * k

    fast = framelift.compile(f)
    assert (fast(torch.ones(2)) == 2).all()
    f.__defaults__ = (5,)
    assert (fast(torch.ones(2)) == 5).all()


def test_an_attribute_written_and_restored_is_no_effect():
    class Holder:
        state = 0

    h = Holder()
    h.state = 1

    def f(x):
        h.state = 2
        y = x * h.state
        h.state = 1
        return y

    fast = framelift.compile(f)
    for _ in range(3):
        assert (fast(torch.ones(2)) == 2).all() and h.state == 1


def test_an_effect_is_done_each_time():
    calls = []

    def f(x):
        calls.append(1)
        return x + 1

    fast = framelift.compile(f)
    for n in range(1, 4):
        fast(torch.ones(2))
        assert len(calls) == n
    assert _C.report(fast)["replayed"] == 2


def test_a_counter_on_a_module_is_counted_each_time():
    class Counter(torch.nn.Module):
        n = 0

        def forward(self, x):
            self.n += 1
            return x * self.n

    fast = framelift.compile(Counter())
    for n in range(1, 4):
        assert (fast(torch.ones(2)) == n).all()


def test_the_guards_that_failed_are_named():
    net = Net().eval()
    fast = framelift.compile(net)
    fast(torch.randn(3, 4))
    net.factor = 9
    fast(torch.randn(3, 4))
    assert {"guard": "namespace: factor", "count": 1} in _C.report(fast)["misses"]


def test_collected_with_the_module_that_holds_it():
    import gc
    import weakref

    net = Net().eval()
    net.fast = framelift.compile(net)
    net.fast(torch.randn(3, 4))
    alive = weakref.ref(net)
    del net
    gc.collect()
    assert alive() is None


def test_what_the_garbage_collector_calls_is_not_recorded():
    import gc
    import time

    def f(x):
        return [x + i for i in range(3)]

    def collected(phase, info):
        time.perf_counter()

    fast = framelift.compile(f)
    threshold = gc.get_threshold()
    gc.callbacks.append(collected)
    gc.set_threshold(1)
    try:
        with torch.no_grad():
            for _ in range(3):
                assert torch.equal(fast(torch.ones(2))[2], torch.full((2,), 3.0))
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(collected)
    e = framelift.explain(fast)
    assert (e.recorded, e.replayed, e.native) == (1, 2, 0), str(e)


class MovesItself(torch.nn.Module):
    """Puts modules where they are already, as some models do to keep a part in float32."""

    def __init__(self):
        super().__init__()
        self.part = torch.nn.Linear(4, 4)
        self.norm = torch.nn.BatchNorm1d(4).eval()

    def forward(self, x):
        self.part = self.part.to(torch.float32)
        self.norm.to(x.device)
        return self.norm(self.part(x))


def test_a_module_moved_to_where_it_is():
    net = MovesItself()
    fast = framelift.compile(net)
    with torch.inference_mode():
        for _ in range(3):
            x = torch.randn(2, 4)
            torch.testing.assert_close(fast(x), net(x))
    explanation = framelift.explain(fast)
    assert explanation.segments == 1 and not explanation.breaks and explanation.replayed == 2
    with torch.no_grad():
        net.part.weight.mul_(2)
    net.part.weight.grad = torch.ones(4, 4)  # to() moves it too
    with torch.inference_mode():
        for _ in range(3):
            x = torch.randn(2, 4)
            torch.testing.assert_close(fast(x), net(x))
    net.part.weight.grad = None
    net.part.double()
    with torch.inference_mode():
        x = torch.randn(2, 4)
        first, weight = fast(x), net.part.weight
        torch.testing.assert_close(first, net(x))
        assert weight.dtype == torch.float32


def test_a_tensor_of_the_call_that_requires_a_gradient():
    kept = []

    def function(x, keep):
        y = torch.zeros_like(x).requires_grad_()
        if keep:
            kept[:] = [y]
        return (y + x) * (2 if y.requires_grad else 3)

    fast = framelift.compile(function)
    with torch.no_grad():
        for _ in range(3):
            x = torch.randn(2, 4)
            assert torch.equal(fast(x, False), function(x, False))
        assert framelift.explain(fast).segments == 1 and not framelift.explain(fast).breaks
        for _ in range(3):
            assert torch.equal(fast(x, True), function(x, True)) and kept[0].requires_grad


def test_an_argument_made_to_require_a_gradient():
    def function(x):
        return x.requires_grad_() * 2

    fast = framelift.compile(function)
    for _ in range(3):
        x = torch.randn(2, 4)
        with torch.no_grad():
            assert torch.equal(fast(x), x * 2) and x.requires_grad
