"""Lists, dicts and records among the arguments that a call gives back or writes to: those of each call."""

import collections
import dataclasses
import types

import pytest
import torch

import battery
import framelift
from battery import x

torch.manual_seed(0)
LIN = torch.nn.Linear(4, 4).eval()
CASES = {}


def case(*makes):
    def add(program):
        CASES[program.__name__] = program, makes
        return program

    return add


@dataclasses.dataclass
class Record:
    x: torch.Tensor
    scale: float = 2.0
    items: list = dataclasses.field(default_factory=list)


def features():
    return {"x": x(), "mask": x().relu()}


@case(features, lambda: {"mask": x(), "x": x()}, lambda: collections.OrderedDict(x=x(), mask=x()))
def gives_back_what_it_was_given(d):
    return d, [d["x"] + 1, {"same": d}]


@case(features, features)
def adds_items(d):
    d["y"] = LIN(d["x"])
    d["z"] = d["y"] * d["mask"]
    return d


@case(features)
def replaces_and_deletes(d):
    d["x"] = LIN(d["x"])
    del d["mask"]
    d["count"] = len(d)
    return None


@case(features, lambda: collections.OrderedDict(x=x(), mask=x()))
def updates(d):
    y = LIN(d["x"])
    d.update({"x": y, "y": y[0]})
    d.setdefault("z", 3)
    return d.pop("mask"), d


@case(features)
def moves_a_key(d):
    v = d.pop("x")
    d["x"] = LIN(v)
    return list(d)


@case(lambda: [x(), x()], lambda: [x()])
def grows_a_list(items):
    items.append(LIN(items[0]))
    items[0] = items[0] * 2
    items.sort(key=lambda t: 0)
    return items


@case(lambda: {"a": [x()], "b": ({"c": x()},)})
def writes_deep_inside(d):
    d["a"].append(LIN(d["a"][0]))
    d["b"][0]["d"] = d["a"][1] + 1
    return d["b"][0]


@case(lambda: {"a": {"v": x()}, "b": [x()]})
def replaces_containers_that_it_writes_to(d):
    inner = d["a"]
    inner["w"] = LIN(inner["v"])
    d["a"] = {"new": inner["w"]}
    d["b"].append(1)
    return inner


@case(lambda: {"a": {"v": x()}})
def keeps_one_in_another(d):
    d["b"] = d["a"]
    return LIN(d["a"]["v"])


@case(lambda: Record(x()), lambda: Record(x(), 3.0, [1]))
def changes_a_record(r):
    r.x = LIN(r.x)
    r.items.append(r.scale)
    r.scale = r.scale + 1
    return r


@case(lambda: types.SimpleNamespace(x=x(), d={}))
def changes_a_namespace(n):
    n.d["y"] = LIN(n.x)
    n.z = n.d["y"].sum(0)
    del n.x
    return n


@case(features)
def reads_what_it_has_written(d):
    d["y"] = LIN(d["x"])
    total = sum(v.sum() for v in d.values())
    return total, sorted(d), "y" in d, len(d), {**d}


@case(features)
def raises_after_a_write(d):
    d["y"] = LIN(d["x"])
    raise KeyError("late")


@case(features)
def breaks_after_a_write(d):
    d["y"] = LIN(d["x"])
    print(end="")
    d["z"] = LIN(d["y"])
    return d


@case(features)
def breaks_before_a_write(d):
    y = LIN(d["x"])
    print(end="")
    d["y"] = LIN(y)
    return d


def run(program, makes):
    def go(compile, call):
        fast = compile(program)
        for k in range(4):
            for make in makes:
                torch.manual_seed(k)
                argument = make()
                call(fast, argument)
                call.show(argument)
        same = makes[0]()
        for _ in range(3):
            call(fast, same)
            call.show(same)

    return go


@pytest.mark.parametrize("name", CASES)
def test_like_eager(name):
    battery.check(run(*CASES[name]))


@pytest.mark.parametrize(
    "name",
    ["gives_back_what_it_was_given", "adds_items", "replaces_and_deletes", "updates", "grows_a_list"]
    + ["writes_deep_inside", "replaces_containers_that_it_writes_to", "reads_what_it_has_written"],
)
def test_such_calls_are_replayed(name):
    program, makes = CASES[name]
    fast = framelift.compile(program)
    for _ in range(3):
        fast(makes[0]())
    e = framelift.explain(fast)
    assert (e.recorded, e.replayed, e.native) == (1, 2, 0)


@pytest.mark.parametrize("program", [changes_a_record, changes_a_namespace])
def test_records_are_told_by_what_is_in_them(program):
    fast = framelift.compile(program)
    for _ in range(4):
        fast(CASES[program.__name__][1][0]())
    e = framelift.explain(fast)
    assert (e.recorded, e.replayed, e.native) == (2, 2, 0)


def test_nothing_is_kept_of_them():
    import gc
    import weakref

    class Item:
        pass

    fast = framelift.compile(adds_items)
    for _ in range(3):
        d = {**features()}
        t = weakref.ref(d["x"])
        fast(d)
        d.clear()
        gc.collect()
        assert t() is None


class Encoding(collections.UserDict):
    """As tokenizers give it: items, and something else in each call."""

    def __init__(self, data, encodings):
        super().__init__(data)
        self._encodings = encodings
        self._n = len(data)

    def __getattr__(self, name):
        try:
            return self.data[name]
        except KeyError:
            raise AttributeError(name) from None

    def to(self, dtype):
        self.data = {k: v.to(dtype) for k, v in self.data.items()}
        return self


def encoding(**more):
    return Encoding({**features(), **more}, [object()])


def encodes(e):
    e["y"] = LIN(e["x"]) * e.mask
    return e


def looks_at_all(e):
    return sorted(e), len(e), "x" in e, {k: v * 2 for k, v in e.items()}, e.get("none"), hasattr(e, "zz"), e._n


def converts(e):
    return e.to(torch.float64)["x"], e.data["mask"]


def replaces_the_rest(e):
    e._encodings = None
    e.extra = LIN(e.x)
    return e


def looks_at_the_rest(e):
    return LIN(e.x) * len(e._encodings)


def looks_at_all_attributes(e):
    return LIN(e.x), sorted(vars(e)), len(list(e.__dict__.values()))


USER_DICTS = [encodes, looks_at_all, converts, replaces_the_rest, looks_at_the_rest, looks_at_all_attributes]


@pytest.mark.parametrize("program", USER_DICTS, ids=lambda p: p.__name__)
def test_dictionaries_in_python(program):
    def go(compile, call):
        fast = compile(program)
        for k in range(4):
            for more in ({}, {"n": torch.ones(2)}):
                torch.manual_seed(k)
                e = encoding(**more)
                call(fast, e)
                call.show(e.data, sorted(vars(e)), e.__dict__.get("extra"))
        e = Encoding(features(), [1, 2, 3])
        for _ in range(3):
            call(fast, e)
            call.show(e.data, sorted(vars(e)))

    battery.check(go)


@pytest.mark.parametrize("program", USER_DICTS[:4], ids=lambda p: p.__name__)
def test_dictionaries_in_python_are_told_by_their_items(program):
    fast = framelift.compile(program)
    for _ in range(4):
        fast(encoding())
    e = framelift.explain(fast)
    assert (e.recorded, e.replayed, e.native) == (1, 3, 0)


def test_what_transformers_gives():
    transformers = pytest.importorskip("transformers")
    fast = framelift.compile(lambda b: {"y": LIN(b["x"]), **b})
    for kind in (transformers.BatchEncoding, transformers.BatchFeature):
        for k in range(3):
            b = kind({"x": x() + k})
            assert torch.equal(fast(b)["y"], LIN(b["x"]))
    e = framelift.explain(fast)
    assert (e.recorded, e.replayed, e.native) == (2, 4, 0)


class Elsewhere:
    table = {"x": x()}
    items = [x()]
    record = Record(x())


def writes_to_its_argument(d):
    d["y"] = 1
    return Elsewhere.table.get("y"), LIN(d["x"])


def writes_to_its_own(d):
    Elsewhere.table["y"] = 7
    return d.get("y"), LIN(d["x"])


def replaces_an_item(d):
    d["x"] = d["x"] * 3
    return LIN(Elsewhere.table["x"])


def appends(items):
    Elsewhere.items.append(1)
    return len(items), LIN(items[0])


def sets_an_attribute(r):
    r.scale = 5.0
    return Elsewhere.record.scale, LIN(r.x)


ELSEWHERE = {
    writes_to_its_argument: ("table", features),
    writes_to_its_own: ("table", features),
    replaces_an_item: ("table", features),
    appends: ("items", lambda: [x()]),
    sets_an_attribute: ("record", lambda: Record(x())),
}


@pytest.mark.parametrize("program", ELSEWHERE, ids=lambda p: p.__name__)
def test_an_argument_that_the_program_has_on_another_way(program):
    name, make = ELSEWHERE[program]

    def go(compile, call):
        fast = compile(program)
        for own in (False, False, False, True, False, True):
            torch.manual_seed(0)
            setattr(Elsewhere, name, make())
            call(fast, getattr(Elsewhere, name) if own else make())
            call.show(getattr(Elsewhere, name))
        kept = getattr(Elsewhere, name)
        for own in (False, False, True, False, True):
            call(fast, kept if own else make())

    battery.check(go)


class Named(dict):
    def __init__(self, items, label=None):
        super().__init__(items)
        self.label = label
        self.first = next(iter(items.values()))


class Ordered(collections.OrderedDict):
    def __init__(self, items, label=None):
        super().__init__(items)
        self.label = label
        self.first = next(iter(items.values()))


def of_a_subclass(d):
    return LIN(d["x"]), d.first * 2, list(d), [k for k in d.items()][0][0], d.label, d.get("none"), len(d), d


def moved(d):
    d.move_to_end("x")
    return d


@pytest.mark.parametrize("kind", [Named, Ordered])
def test_subclasses_of_dict(kind):
    def go(compile, call):
        fast = compile(of_a_subclass)
        kept = kind(features())
        for k in range(5):
            torch.manual_seed(k)
            call(fast, kind(features()))
            call(fast, kind(dict(reversed(features().items())), label=k % 2))
            call(fast, kept)
            if kind is Ordered:
                call(fast, moved(kind(features())))
            kept["x"] = x()
            kept.label = k

    battery.check(go)
    fast = framelift.compile(of_a_subclass)
    for _ in range(4):
        fast(kind(features()))
    e = framelift.explain(fast)
    assert (e.recorded, e.replayed, e.native) == (2, 2, 0)


def test_what_transformers_models_give():
    outputs = pytest.importorskip("transformers.modeling_outputs")

    def f(out):
        return (
            LIN(out.last_hidden_state),
            out[0] + 1,
            out["hidden_states"][1],
            len(out),
            out.to_tuple()[0] is out[0],
            out,
        )

    fast = framelift.compile(f)
    for k in range(5):
        torch.manual_seed(k)
        out = outputs.BaseModelOutput(last_hidden_state=x(), hidden_states=(x(), x()))
        got, want = fast(out), f(out)
        assert all(torch.equal(g, w) for g, w in zip(got[:3], want[:3], strict=True))
        assert got[3:5] == want[3:5] and got[5] is out
    e = framelift.explain(fast)
    assert (e.recorded, e.replayed, e.native) == (2, 3, 0)
