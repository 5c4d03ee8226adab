"""What a call writes to objects that existed before it is written again by every replay, after its guards."""

import copy
import gc
import weakref
from collections import OrderedDict

import pytest
import torch

import framelift

TOTAL = 0


class Box:
    pass


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for k in a:
            assert_same(a[k], b[k])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


class Pair:
    """A module, and a copy of it that eager calls: answers and everything in `state` must agree after each call."""

    def __init__(self, net, state):
        self.net, self.twin, self.state = net, copy.deepcopy(net), state
        self.fast = framelift.compile(net)

    def __call__(self, *args):
        before = framelift.explain(self.fast)
        with torch.no_grad():
            answer = self.fast(*args)
            torch.testing.assert_close(answer, self.twin(*args))
            assert_same(self.state(self.net), self.state(self.twin))
        after = framelift.explain(self.fast)
        return [n for n in ("recorded", "replayed", "native") if getattr(after, n) > getattr(before, n)]


def inputs(n, *shape):
    return [torch.randn(*shape) for _ in range(n)]


class KeepsLast(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = torch.nn.Linear(4, 4)

    def forward(self, x):
        self.last = self.lin(x)
        self.seen = (x.shape[0], {"y": self.last})
        return self.last.relu()


def test_an_attribute_set_to_a_result_is_set_by_replays():
    p = Pair(KeepsLast(), lambda m: (m.last, m.seen))
    assert [p(x) for x in inputs(4, 2, 4)] == [["recorded"], ["replayed"], ["replayed"], ["replayed"]]
    assert p.net.last is p.net.seen[1]["y"]


class Smooth(torch.nn.Module):
    """State a call leaves to the next one."""

    def __init__(self):
        super().__init__()
        self.lin = torch.nn.Linear(4, 4)
        self.register_buffer("mean", torch.zeros(2, 4))

    def forward(self, x):
        y = self.lin(x) + self.mean
        self.mean = self.mean * 0.5 + y * 0.5
        return y.relu()


def test_a_buffer_assigned_by_each_call_is_an_input_of_the_next():
    p = Pair(Smooth(), lambda m: dict(m.named_buffers()))
    xs = inputs(6, 2, 4)
    assert [p(x) for x in xs] == [["recorded"]] + [["replayed"]] * 5
    segments = framelift.explain(p.fast).to_dict()["traces"][0]
    assert segments["effects"] == 1 and segments["sources"] == 1 and len(segments["segments"]) == 1


def test_such_a_buffer_of_another_shape_is_a_miss():
    p = Pair(Smooth(), lambda m: dict(m.named_buffers()))
    p(torch.randn(2, 4))
    for net in (p.net, p.twin):
        net.mean = torch.ones(4)
    assert p(torch.randn(2, 4)) == ["recorded"]
    for net in (p.net, p.twin):
        net.mean = torch.full((2, 4), 3.0)
    assert p(torch.randn(2, 4)) == ["replayed"]


class Cache(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = torch.nn.Linear(4, 4)
        self.store = {}

    def forward(self, x):
        y = self.lin(x)
        if "k" in self.store:
            y = y + self.store["k"]
        self.store["k"] = y
        return y * 2


def test_a_cache_in_a_dict_is_empty_first_and_an_input_then():
    p = Pair(Cache(), lambda m: m.store)
    assert [p(x) for x in inputs(5, 2, 4)] == [["recorded"], ["recorded"], ["replayed"], ["replayed"], ["replayed"]]
    for net in (p.net, p.twin):
        net.store.clear()
    assert p(torch.randn(2, 4)) == ["replayed"]


class Grows(Cache):
    def forward(self, x):
        y = self.lin(x)
        self.store["k"] = torch.cat([self.store["k"], y]) if "k" in self.store else y
        return self.store["k"].sum(0)


def test_a_cache_that_grows_runs_natively_after_a_few_calls():
    p = Pair(Grows(), lambda m: m.store)
    how = [p(x) for x in inputs(8, 1, 4)]
    assert how[0] == ["recorded"] and how[-1] == ["native"] and how.count(["recorded"]) <= 4
    assert "each call changes what the next one reads" in framelift.explain(p.fast).native_reason


class Counts(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = torch.nn.Linear(4, 4)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.lin(x) * self.calls


def test_a_counter_is_right_and_runs_natively_after_a_few_calls():
    p = Pair(Counts(), lambda m: m.calls)
    how = [p(x) for x in inputs(8, 2, 4)]
    assert how[0] == ["recorded"] and how[-1] == ["native"] and p.net.calls == 8
    assert "each call changes what the next one reads: Counts calls" in framelift.explain(p.fast).native_reason


class Flips(Counts):
    def forward(self, x):
        self.calls = 1 - self.calls
        return self.lin(x) if self.calls else x.relu()


def test_two_states_are_two_traces():
    p = Pair(Flips(), lambda m: m.calls)
    assert [p(x) for x in inputs(6, 2, 4)] == [["recorded"]] * 2 + [["replayed"]] * 4


def drive(f, box, calls=4, make=lambda: torch.randn(2, 3)):
    """Values and state of f(box, x) over several calls against eager; how the calls were answered."""
    twin = copy.deepcopy(box)
    fast = framelift.compile(lambda x: f(box, x))
    for _ in range(calls):
        x = make()
        torch.testing.assert_close(fast(x), f(twin, x))
        assert_same(vars(box), vars(twin))
    return framelift.explain(fast)


def box_of(**state):
    b = Box()
    b.__dict__.update(state)
    return b


def append(b, x):
    b.items.append(x * 2)
    b.items.extend([1, x.sum()])
    return x + 1


def overwrite(b, x):
    b.table["a"] = x + 1
    b.table["b"] = [x, b.name]
    return x


def delete(b, x):
    b.extra = 1
    del b.extra
    b.name = "other"
    return x * 2


def update(b, x):
    b.fresh = {}
    b.fresh.update(a=x + 1, b=2)
    b.fresh.setdefault("c", x)
    return x


def shared(b, x):
    y = x.exp()
    b.one = b.two = y
    b.both = [y, y]
    return y


def view(b, x):
    y = x.exp()
    b.whole = y
    b.part = y[:1]
    return y


def argument(b, x):
    b.arg = x
    b.arg2 = (x, x.t())
    return x * 1


@pytest.mark.parametrize("f", [append, overwrite, delete, update, shared, view, argument])
def test_writes_that_depend_on_nothing_are_replayed(f):
    e = drive(f, box_of(items=[], table={}, name="n"))
    assert e.native == 0 and e.replayed >= 2, e.native_reason


def test_what_is_shared_in_eager_is_shared_after_a_replay():
    b = box_of()
    fast = framelift.compile(lambda x: (shared(b, x), view(b, x))[0])
    for _ in range(3):
        y = fast(torch.randn(2, 3))
        assert b.one is y and b.both[0] is b.both[1] is y and b.whole is not y
        b.part.fill_(7)
        assert (b.whole[:1] == 7).all()
    assert framelift.explain(fast).replayed == 2


def pop(b, x):
    return x * b.items.pop()


def insert(b, x):
    b.items.insert(0, len(b.items))
    return x * b.items[1]


def members(b, x):
    b.names.add("new")
    return x * len(b.names)


def set_item(b, x):
    b.items[1] = b.items[0] + 1
    return x * b.items[1]


def dict_pop(b, x):
    return x * b.table.pop("k", 5)


def sort(b, x):
    b.items.sort()
    return x * b.items[0]


@pytest.mark.parametrize("f", [pop, insert, members, set_item, dict_pop, sort])
def test_writes_that_depend_on_the_contents_are_right(f):
    e = drive(f, box_of(items=[5, 4, 3, 2, 1, 0, -1, -2], names={"old"}, table={"k": 3, "z": 1}), calls=6)
    assert e.recorded >= 1


def test_a_write_of_what_is_there_already_is_still_done():
    b = box_of(mode="x")

    def f(x):
        b.mode = "x"
        return x * 2

    fast = framelift.compile(f)
    for mode in ("x", "x", "y", "x", "y"):
        b.mode = mode
        fast(torch.ones(2))
        assert b.mode == "x"


def test_an_undone_write_sees_another_state():
    b = box_of(mode=0)

    def f(x):
        b.mode = 1
        y = x * b.mode
        b.mode = 0
        return y

    fast = framelift.compile(f)
    for mode in (0, 0, 5, 0, 5):
        b.mode = mode
        fast(torch.ones(2))
        assert b.mode == 0


def test_globals_and_cells_are_written():
    count = None

    def f(x):
        global TOTAL
        nonlocal count
        TOTAL = x.sum()
        count = x + 1
        return x * 2

    fast = framelift.compile(f)
    for _ in range(4):
        x = torch.randn(3)
        assert torch.equal(fast(x), x * 2) and torch.allclose(TOTAL, x.sum()) and torch.equal(count, x + 1)
    assert framelift.explain(fast).replayed == 3


def test_nothing_is_written_when_a_guard_or_a_value_differs():
    b = box_of(log=[], scale=2.0)

    def f(x):
        b.log.append(b.scale)
        y = x * b.scale
        if y.sum() > 0:
            b.sign = "+"
            return y
        b.sign = "-"
        return -y

    fast = framelift.compile(f)
    expected = []
    for scale, sign in ((2.0, 1), (2.0, 1), (3.0, 1), (3.0, -1), (2.0, -1), (2.0, 1), (3.0, -1)):
        b.scale = scale
        expected.append(scale)
        assert torch.equal(fast(torch.full((2,), float(sign))), torch.full((2,), scale))
        assert b.log == expected and b.sign == ("+" if sign > 0 else "-")
    e = framelift.explain(fast)
    assert e.native == 0 and e.recorded == 4 and e.replayed == 3


def test_an_error_leaves_what_eager_leaves():
    b = box_of(step=0, table=torch.randn(4, 2))

    def f(i):
        b.step = "begun"
        y = b.table[i]
        b.step = "done"
        return y

    fast = framelift.compile(f)
    for _ in range(3):
        fast(torch.tensor([1, 2]))
        assert b.step == "done"
    with pytest.raises(IndexError):
        fast(torch.tensor([1, 9]))
    assert b.step == "begun"


def test_a_container_of_the_arguments_is_not_copied():
    b = box_of()

    def f(xs):
        b.kept = xs
        return xs[0] * 2

    fast = framelift.compile(f)
    for _ in range(3):
        xs = [torch.randn(2)]
        fast(xs)
        assert b.kept is xs
    assert framelift.explain(fast).replayed == 0


def test_a_written_argument_is_the_callers_own():
    def f(d):
        d["out"] = d["x"] * 2
        return d["out"]

    fast = framelift.compile(f)
    for _ in range(3):
        d = {"x": torch.randn(2)}
        assert fast(d) is d["out"] and torch.equal(d["out"], d["x"] * 2)


def test_a_tensor_kept_in_two_places_is_no_input():
    b = box_of(a=torch.zeros(2))
    b.same = b.a

    def f(x):
        y = x + b.a + b.same
        b.a = y
        return y

    twin = box_of(a=torch.zeros(2))
    twin.same = twin.a
    fast = framelift.compile(f)
    for _ in range(6):
        x = torch.randn(2)
        want = x + twin.a + twin.same
        twin.a = want
        torch.testing.assert_close(fast(x), want)


def test_the_kept_tensor_given_as_the_argument():
    p = Pair(Smooth(), lambda m: m.mean)
    for _ in range(3):
        p(torch.randn(2, 4))
    for _ in range(3):
        with torch.no_grad():
            torch.testing.assert_close(p.fast(p.net.mean), p.twin(p.twin.mean))


def test_outputs_kept_by_the_caller_stay():
    p = Pair(Smooth(), lambda m: m.mean)
    kept = []
    for x in inputs(4, 2, 4):
        p(x)
        kept.append((p.net.mean, p.net.mean.clone()))
    assert all(torch.equal(a, b) for a, b in kept)


def test_a_tuple_that_was_looked_at_is_made_again():
    def f(x):
        out = (x * 2, [x])
        assert isinstance(out, tuple)
        return out

    fast = framelift.compile(f)
    for _ in range(3):
        x = torch.randn(2)
        assert torch.equal(fast(x)[0], x * 2)
    assert framelift.explain(fast).replayed == 2


def test_what_is_written_to_is_released():
    def run():
        p = Pair(Smooth(), lambda m: m.mean)
        p.net.fast = p.fast
        for x in inputs(3, 2, 4):
            p(x)
        return weakref.ref(p.net), weakref.ref(p.net.mean)

    refs = run()
    gc.collect()
    assert [r() for r in refs] == [None, None]


def test_tensors_of_earlier_calls_are_released():
    p = Pair(Smooth(), lambda m: m.mean)
    old = []
    for x in inputs(4, 2, 4):
        p(x)
        old.append(weakref.ref(p.net.mean))
    gc.collect()
    assert [r() is None for r in old] == [True, True, True, False]


def test_an_object_out_of_a_tuple_is_the_same_object():
    b = box_of(pair=((box_of(n=1),), 2))

    def f(x):
        b.chosen = b.pair[0][0]
        return x * b.chosen.n, b.pair[0]

    fast = framelift.compile(f)
    for _ in range(3):
        assert fast(torch.ones(2))[1][0] is b.pair[0][0] and b.chosen is b.pair[0][0]
    assert framelift.explain(fast).replayed == 2


def test_an_object_whose_dictionary_lies_where_a_new_one_was():
    class Counter:
        pass

    def count(wrap):
        counter = Counter()
        counter.n = 0  # lies in the object: the dictionary is made during the recorded call

        def f(x):
            gone = [{}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}]
            del gone
            counter.n += 1
            return x + 1

        fast = wrap(f)
        with torch.no_grad():
            for _ in range(4):
                fast(torch.ones(2))
        return counter.n

    assert count(framelift.compile) == count(lambda f: f) == 4


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy])
def test_a_copy_of_an_object_that_existed_before(how):
    """Of a class of which no copy was made before, with object's own __delattr__ beside a __setattr__ of its own."""

    class Config:
        def __init__(self):
            self.encoder_size, self.size, self.seen = 1, 2, []

        def __setattr__(self, name, value):
            super().__setattr__(name, value + 1 if name == "size" else value)

    config = Config()

    def f(x):
        mine = how(config)
        delattr(mine, "encoder_size")
        mine.size = mine.size + x.shape[0]
        mine.seen.append(mine.size)
        return x * mine.size, "encoder_size" in vars(mine), mine.seen is config.seen

    fast = framelift.compile(f)
    with torch.no_grad():
        for size in (2, 2, 2, 5, 5):
            config.size = size
            config.seen.clear()
            assert_same(fast(torch.ones(3)), f(torch.ones(3)))
            assert len(config.seen) == (0 if how is copy.deepcopy else 2) and config.encoder_size == 1
    e = framelift.explain(fast)
    assert (e.recorded, e.native, e.segments, len(e.breaks)) == (2, 0, 2, 0), str(e)  # one a trace


def test_object_has_no_such_attribute_to_delete():
    class Config:
        def __setattr__(self, name, value):
            super().__setattr__(name, value)

    config = Config()

    def f(x):
        try:
            delattr(config, "size")
        except AttributeError as error:
            return x + 1, str(error)
        return x, ""

    fast = framelift.compile(f)
    with torch.no_grad():
        for _ in range(3):
            assert_same(fast(torch.ones(3)), f(torch.ones(3)))
        config.size = 1
        assert fast(torch.ones(3))[1] == "" and not vars(config)
        assert_same(fast(torch.ones(3)), f(torch.ones(3)))


class Recent:
    """Keeps what was used last."""

    def __init__(self, most):
        self.entries, self.most = OrderedDict(), most

    def get(self, key):
        if key not in self.entries:
            return None
        self.entries.move_to_end(key)
        return self.entries[key]

    def put(self, key, value):
        if key not in self.entries and len(self.entries) >= self.most:
            self.entries.popitem(last=False)
        self.entries[key] = value
        self.entries.move_to_end(key)


def with_a_cache():
    cache = Recent(2)

    def function(x, key):
        value = cache.get(key)
        if value is None:
            value = torch.full((3,), float(len(key)))
            cache.put(key, value)
        return x * value

    return function, cache.entries


def test_an_ordered_dict_is_written_in_its_order():
    plain, expected = with_a_cache()
    function, entries = with_a_cache()
    fast = framelift.compile(function)
    with torch.inference_mode():
        for key in ["a", "a", "a", ("b", 1), ("b", 1), "a", ("b", 1), "a", "ccc", "a", "a", "ccc", "ccc", "ccc"]:
            x = torch.randn(3)
            assert torch.equal(fast(x, key), plain(x, key))
            assert list(entries) == list(expected)
            assert all(torch.equal(a, b) for a, b in zip(entries.values(), expected.values(), strict=True))
    assert framelift.explain(fast).replayed >= 2


def test_an_entry_that_is_the_last_already_stays():
    function, entries = with_a_cache()
    fast = framelift.compile(function)
    with torch.inference_mode():
        x = torch.randn(3)
        function(x, "a"), function(x, "bb")
        for _ in range(3):
            assert torch.equal(fast(x, "bb"), x * 2)
        explanation = framelift.explain(fast)
        assert explanation.recorded == 1 and explanation.replayed == 2 and explanation.segments == 1
        entries.move_to_end("a")
        assert torch.equal(fast(x, "bb"), x * 2) and list(entries) == ["a", "bb"]
