"""What a program may change between calls: the next answer is right, and right again when it is changed back."""

import copy

import numpy
import pytest
import torch

import framelift
from conftest import assert_close

FACTOR = 2.0
ONE = torch.tensor(1)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(6, 6)
        self.norm = torch.nn.BatchNorm1d(6)
        self.steps = [1.0, 2.0]
        self.table = {"shift": 0.5}
        self.activation = torch.nn.ReLU()

    def forward(self, x):
        x = self.activation(self.norm(self.linear(x)))
        for step in self.steps:
            x = x * step
        return x + self.table["shift"]


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = Block()
        self.second = Block()
        self.skip = False

    def forward(self, x):
        x = self.first(x)
        return (x if self.skip else self.second(x)) * FACTOR


@pytest.fixture
def net():
    net = Net()
    with torch.no_grad():
        for _ in range(3):
            net.train()(torch.randn(32, 6))
    return net.eval()


def x(rows=4):
    return torch.randn(rows, 6)


def set_attribute(net):
    net.skip = True
    return lambda: setattr(net, "skip", False)


def set_list_item(net):
    net.first.steps[1] = 5.0
    return lambda: net.first.steps.__setitem__(1, 2.0)


def append_to_list(net):
    net.second.steps.append(3.0)
    return net.second.steps.pop


def set_dict_item(net):
    net.second.table["shift"] = -1.0
    return lambda: net.second.table.__setitem__("shift", 0.5)


def set_global(net):
    globals()["FACTOR"] = -3.0
    return lambda: globals().__setitem__("FACTOR", 2.0)


def replace_submodule(net):
    old, net.first.activation = net.first.activation, torch.nn.Sigmoid()
    return lambda: setattr(net.first, "activation", old)


def replace_block(net):
    old, net.second = net.second, copy.deepcopy(net.first)
    return lambda: setattr(net, "second", old)


def replace_forward(net):
    net.first.forward = lambda x: x + 1
    return lambda: delattr(net.first, "forward")


def replace_method_of_class(net):
    old = torch.nn.ReLU.forward
    torch.nn.ReLU.forward = lambda self, x: x.tanh()
    return lambda: setattr(torch.nn.ReLU, "forward", old)


def assign_parameter(net):
    old, net.first.linear.weight = net.first.linear.weight, torch.nn.Parameter(torch.randn(6, 6))
    return lambda: setattr(net.first.linear, "weight", old)


def assign_data(net):
    weight = net.first.linear.weight
    old, weight.data = weight.data, torch.randn(6, 6)
    return lambda: setattr(weight, "data", old)


def edit_in_place(net):
    with torch.no_grad():
        net.second.linear.bias.add_(1.0)

    def back():
        with torch.no_grad():
            net.second.linear.bias.sub_(1.0)

    return back


def edit_data(net):
    weight = net.second.linear.weight
    weight.data += 0.5
    return lambda: weight.data.sub_(0.5)


def edit_by_numpy(net):
    array = net.first.linear.bias.data.numpy()
    array += 1.0
    return lambda: array.__isub__(1.0)


def edit_batch_norm(net):
    net.first.norm.running_mean.add_(0.5)
    return lambda: net.first.norm.running_mean.sub_(0.5)


def edit_epsilon(net):
    net.first.norm.eps = 0.3
    return lambda: setattr(net.first.norm, "eps", 1e-5)


def load_weights(net):
    old = copy.deepcopy(net.state_dict())
    net.load_state_dict({k: v + 0.25 if v.is_floating_point() else v for k, v in old.items()})
    return lambda: net.load_state_dict(old)


def load_weights_by_assignment(net):
    old = copy.deepcopy(net.state_dict())
    net.load_state_dict({k: v * 0.5 if v.is_floating_point() else v.clone() for k, v in old.items()}, assign=True)
    return lambda: net.load_state_dict(old, assign=True)


def share_weights(net):
    old, net.second.linear.weight = net.second.linear.weight, net.first.linear.weight
    return lambda: setattr(net.second.linear, "weight", old)


def add_forward_hook(net):
    return net.first.register_forward_hook(lambda module, args, output: output * 3).remove


def add_forward_pre_hook(net):
    return net.second.linear.register_forward_pre_hook(lambda module, args: (args[0] - 1,)).remove


def add_global_hook(net):
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, args, output: output + 1 if isinstance(module, torch.nn.Linear) else None
    )
    return hook.remove


CHANGES = [
    set_attribute,
    set_list_item,
    append_to_list,
    set_dict_item,
    set_global,
    replace_submodule,
    replace_block,
    replace_forward,
    replace_method_of_class,
    assign_parameter,
    assign_data,
    edit_in_place,
    edit_data,
    edit_by_numpy,
    edit_batch_norm,
    edit_epsilon,
    load_weights,
    load_weights_by_assignment,
    share_weights,
    add_forward_hook,
    add_forward_pre_hook,
    add_global_hook,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_takes_effect_and_so_does_its_undoing(net, watch, change):
    watched = watch(net)
    inputs = x()
    with torch.no_grad():
        original = net(inputs)
    assert [watched(inputs), watched(inputs)] == ["recorded", "replayed"]
    undo = change(net)
    try:
        with torch.no_grad():
            assert not torch.allclose(net(inputs), original, atol=1e-3), "the change must be visible"
        watched(inputs)
        watched(inputs)
        watched(x())
    finally:
        undo()
    with torch.no_grad():
        torch.testing.assert_close(net(inputs), original, rtol=1e-4, atol=1e-4)
    watched(inputs)
    assert watched(x()) == "replayed"


@pytest.mark.parametrize(
    "change", [assign_data, edit_in_place, edit_batch_norm, load_weights], ids=lambda change: change.__name__
)
def test_new_weights_need_no_new_recording(net, watch, change):
    watched = watch(net)
    watched(x())
    undo = change(net)
    assert watched(x()) == "replayed"
    undo()
    assert watched(x()) == "replayed"
    assert framelift.explain(watched.fast).recorded == 1


def test_data_where_the_data_before_was(net, watch):
    """Memory is given again: then address and version are what they were."""
    watched = watch(net)
    watched(x())
    weight, memory = net.first.linear.weight, numpy.zeros((6, 6), numpy.float32)
    addresses = set()
    for _ in range(5):
        weight.data = torch.empty(0)
        memory[:] = torch.randn(6, 6).numpy()
        weight.data = torch.from_numpy(memory)
        addresses.add(weight.data_ptr())
        assert watched(x()) == "replayed"
    assert len(addresses) == 1


def views_of_the_same_memory(rank, gap):
    """Tensors that differ from the first one, of which they are views, in one respect each."""
    memory = torch.arange(1.0, 257.0)
    sizes = {0: (), 1: (4,), 2: (4, 4), 4: (2, 2, 2, 4)}[rank]
    strides = tuple(gap * step for step in {0: (), 1: (1,), 2: (4, 1), 4: (16, 8, 4, 1)}[rank])
    yield memory.as_strided(sizes, strides)
    yield memory.as_strided(sizes, strides, 3)
    for axis in range(rank):
        for step in 0, strides[axis] + 1:
            yield memory.as_strided(sizes, strides[:axis] + (step,) + strides[axis + 1 :])
        yield memory.as_strided(sizes[:axis] + (1,) + sizes[axis + 1 :], strides)
    yield memory.as_strided((1, *sizes), (1, *strides))


@pytest.mark.parametrize("gap", [1, 2])
@pytest.mark.parametrize("rank", [0, 1, 2, 4])
@torch.no_grad()
def test_data_that_is_another_view_of_the_memory(rank, gap):
    class Scale(torch.nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)

        def forward(self, x):
            return x * self.weight

    first, *others = views_of_the_same_memory(rank, gap)
    model = Scale(first)
    model.weight.data = first
    fast = framelift.compile(model)
    x = torch.ones(4)
    for _ in range(3):
        assert_close(fast(x), x * first)
    for view in others:
        for data in view, first:
            model.weight.data = data
            assert_close(fast(x), x * data)


@pytest.mark.parametrize("calls", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8], ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 2), (5, 7), (64, 33), "strided", "channels_last"], ids=str)
def test_edits_that_count_no_version(shape, dtype, calls):
    """Of all elements, of the first ones, of the last ones: by `.data`, without a version, nor a new place."""
    numbers = torch.randint(1, 9, (4, 6, 3, 5) if isinstance(shape, str) else shape).to(dtype)
    weight = {"strided": lambda t: t[1:, ::2], "channels_last": lambda t: t.to(memory_format=torch.channels_last)}.get(
        shape, lambda t: t
    )(numbers)
    fast = framelift.compile(lambda t: weight * 3 + t)
    edits = [
        lambda t: t.mul_(2),
        lambda t: t.view(-1)[:4].add_(1),
        lambda t: t.view(-1)[-4:].add_(1),
        lambda t: t.fill_(7),
    ]
    for edit in edits[:1] + edits[-1:] if isinstance(shape, str) else edits:
        for _ in range(calls):
            assert torch.equal(fast(ONE), weight * 3 + 1)
        edit(weight.data)
    assert torch.equal(fast(ONE), weight * 3 + 1)
    assert framelift.explain(fast).recorded == 1


def test_many_edits_in_a_row(net, watch):
    watched = watch(net)
    watched(x())
    for _ in range(20):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        assert watched(x()) == "replayed"


def test_shapes(net, watch):
    watched = watch(net)
    sizes = [4, 1, 9]
    assert [watched(x(n)) for n in sizes] == ["recorded"] * 3
    assert [watched(x(n)) for n in reversed(sizes * 2)] == ["replayed"] * 6
    assert framelift.explain(watched.fast).segments == 3


def test_more_shapes_than_are_kept(watch):
    watched = watch(lambda t: t.relu() + 1)
    for n in [*range(1, 40), *range(1, 40)]:
        watched(x(n))


def test_dtypes(watch):
    watched = watch(lambda t: t * 2 + 1)
    for dtype in (torch.float32, torch.float64, torch.int64, torch.float32):
        watched(torch.arange(6).to(dtype))
    assert watched(torch.arange(6).to(torch.float64)) == "replayed"


def test_strides(watch):
    watched = watch(lambda t: torch.nn.functional.softmax(t + 1, dim=-1))
    base = torch.randn(6, 6)
    for view in (base, base.t(), base[:, ::2], base.t(), base):
        watched(view)
    assert watched(torch.randn(6, 6).t()) == "replayed"


def test_memory_formats(watch):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()).eval()
    watched = watch(model)
    image = torch.randn(2, 3, 9, 9)
    nhwc = image.to(memory_format=torch.channels_last)
    for _ in range(2):
        watched(image)
        watched(nhwc)
        with torch.no_grad():
            assert watched.fast(nhwc).stride() == model(nhwc).stride()


def test_offsets_into_storage(watch):
    watched = watch(lambda t: t.exp())
    base = torch.randn(10)
    assert [watched(base[0:4]), watched(base[3:7]), watched(base[6:])] == ["recorded", "replayed", "replayed"]


def test_two_arguments_that_are_one_tensor():
    def model(a, b):
        a = a + 1
        return a * b, a is b

    fast = framelift.compile(model)
    a, b = x(), x()
    with torch.no_grad():
        for left, right in ((a, b), (a, a), (b, a), (b, b)):
            assert_close(fast(left, right)[0], model(left, right)[0])


def test_identity_of_arguments_decides():
    def model(a, b):
        return a + 1 if a is b else a - b

    fast = framelift.compile(model)
    a, b = x(), x()
    with torch.no_grad():
        for left, right in ((a, a), (a, b), (b, b), (b, a)):
            assert torch.equal(fast(left, right), model(left, right))


def test_python_arguments_decide(watch):
    def model(t, n, mode="a"):
        for _ in range(n):
            t = t + 1 if mode == "a" else t * 2
        return t

    watched = watch(model)
    for n, mode in ((1, "a"), (2, "a"), (2, "b"), (0, "b"), (1, "a")):
        watched(x(), n, mode=mode)
    assert watched(x(), 2, mode="b") == "replayed"


def test_values_of_tensors_decide(watch):
    def model(t):
        return t * 2 if t.sum() > 0 else t - 1

    watched = watch(model)
    for sign in (1, 1, -1, -1, 1, -1):
        watched(sign * torch.rand(5))


def test_train_and_eval(net):
    fast = framelift.compile(net)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for training in (False, True, True, False, False, True):
            net.train(training)
            twin.train(training)
            inputs = x(16)
            assert_close(fast(inputs), twin(inputs))
            for ours, theirs in zip(net.buffers(), twin.buffers(), strict=True):
                torch.testing.assert_close(ours, theirs)


def test_buffers_that_the_model_writes():
    class Counter(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))
            self.calls = 0

        def forward(self, t):
            self.seen += t.sum()
            self.calls += 1
            return t + self.seen

    ours, theirs = Counter(), Counter()
    fast = framelift.compile(ours)
    with torch.no_grad():
        for _ in range(5):
            inputs = x()
            assert_close(fast(inputs), theirs(inputs))
            torch.testing.assert_close(ours.seen, theirs.seen)
            assert ours.calls == theirs.calls


def test_inputs_that_the_model_writes():
    def model(t):
        t.add_(1)
        return t * 2

    fast = framelift.compile(model)
    with torch.no_grad():
        for _ in range(4):
            ours = x()
            theirs = ours.clone()
            assert_close(fast(ours), model(theirs))
            assert torch.equal(ours, theirs)


def test_grad_mode_and_default_dtype():
    def model(t):
        return t + torch.ones(3, dtype=torch.get_default_dtype()), torch.is_grad_enabled()

    fast = framelift.compile(model)
    t = torch.randn(3)
    for _ in range(2):
        with torch.no_grad():
            assert fast(t)[0].dtype == torch.float32
        torch.set_default_dtype(torch.float64)
        try:
            with torch.no_grad():
                assert fast(t)[0].dtype == torch.float64
        finally:
            torch.set_default_dtype(torch.float32)


def test_autocast():
    linear = torch.nn.Linear(8, 8)
    fast = framelift.compile(linear)
    t = torch.randn(2, 8)
    with torch.no_grad():
        for _ in range(2):
            assert_close(fast(t), linear(t))
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert fast(t).dtype == torch.bfloat16
                assert_close(fast(t), linear(t))


def test_whether_a_weight_requires_a_gradient():
    weight = torch.nn.Parameter(torch.ones(1))
    fast = framelift.compile(lambda x: x * 2 if weight.requires_grad else x * 3)
    with torch.no_grad():
        for wanted in (True, True, False, False, True):
            weight.requires_grad_(wanted)
            assert torch.equal(fast(torch.ones(2)), torch.full((2,), 2.0 if wanted else 3.0))
    assert framelift.explain(fast).replayed >= 2
