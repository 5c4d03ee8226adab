"""Arguments, and tensors that unknown code gives, that share memory with a weight in later calls only: what is written
there by way of numpy counts no version of the weight, and what was computed of it beforehand must not be used."""

import random

import numpy
import pytest
import torch

import framelift
from conftest import assert_close


class Holder:
    """A global of its own for each program."""

    def __init__(self, make):
        self.weight = make()
        self.seen = []


def filled(h, x):
    h.seen.append(float(x.sum()))
    x.numpy().fill(3.0)
    return h.weight.flip(0) * 2, x + 1


def added(h, x):
    a = torch.from_numpy(x.numpy())
    a.add_(1.0)
    print(end="")
    return h.weight.flip(0), a * 2


def decided(h, x):
    x.numpy().fill(2.0)
    if x.sum() > 0:  # both ways read the weight
        return h.weight.t().contiguous() + 1
    return h.weight.flip(1)


def shares(h):
    return h.weight


def part(h):
    return h.weight[1:]


def turned(h):
    return h.weight.t()


def dense():
    return torch.linspace(-1, 1, 12).reshape(3, 4)


def columns():
    return torch.linspace(-1, 1, 24).reshape(3, 8)[:, :4]


def every_other():
    return torch.linspace(-1, 1, 48).reshape(3, 2, 8)[:, 1, ::2]


@pytest.mark.parametrize("program", [filled, added, decided])
@pytest.mark.parametrize("argument", [shares, part, turned])
@pytest.mark.parametrize("weight", [dense, columns, every_other])
def test_an_argument_shares_memory_with_a_weight(program, argument, weight):
    eager, fast = Holder(weight), Holder(weight)
    compiled = framelift.compile(lambda x: program(fast, x))
    with torch.no_grad():
        for own in (True, True, True, False, True, False, True):
            x = torch.full((3, 4), 0.5)
            want = program(eager, x.clone() if own else argument(eager))
            got = compiled(x.clone() if own else argument(fast))
            assert_close(got, want)
            assert_close(fast.weight, eager.weight)
    assert framelift.explain(compiled).recorded <= 3


def test_unknown_code_gives_the_memory_of_a_weight():
    def run(wrap):
        weight = torch.linspace(-1, 1, 12).reshape(3, 4)
        places = {"own": numpy.zeros((3, 4), numpy.float32), "weight": weight.numpy()}

        def step(x, place):
            a = torch.from_numpy(places[place[0]])
            a.mul_(2.0).add_(x)
            print(end="")
            return weight.flip(0) + 1

        fast, results = wrap(step), []
        with torch.no_grad():
            place = ["own"]
            for now in ("own", "own", "own", "weight", "own", "weight", "weight"):
                place[0] = now
                results.append((fast(torch.ones(4), place), weight.clone()))
        return results

    assert_close(run(framelift.compile), run(lambda f: f))


def test_a_weight_seen_by_unknown_code_is_computed_with_in_a_branch():
    def run(wrap):
        weight, kept = torch.linspace(-1, 1, 12).reshape(3, 4), []

        def step(x):
            kept.append(weight.numpy())  # and written to before the next call, or below
            if x.sum() > 0:
                return x + 1
            kept[0].fill(float(len(kept)))
            return weight.flip(0) * x

        fast, results = wrap(step), []
        with torch.no_grad():
            for sign in (1, 1, -1, -1, 1, -1, -1):
                results.append(fast(torch.full((3, 4), float(sign))))
        return results

    assert_close(run(framelift.compile), run(lambda f: f))


EIGHTH = numpy.arange(400) == 7


def one(h, x):
    """An element of each row, none of them a sample of the weight's."""
    v = x.numpy()
    numpy.negative(v, out=v, where=EIGHTH)
    return h.weight.flip(0) * 2, x + 1


def wide():
    return torch.linspace(-1, 1, 1200).reshape(3, 400)


@pytest.mark.parametrize("program", [filled, added, one])
def test_many_traces_and_weights_that_move(program):
    """Of all traces it is known where their weights lie: also of those recorded since, and of weights that moved."""
    eager, fast = Holder(wide), Holder(wide)
    compiled, choose = framelift.compile(lambda x: program(fast, x)), random.Random(7)
    with torch.no_grad():
        for n in (1, 2, 3, 1, 2, 3):
            assert_close(compiled(torch.ones(n, 400)), program(eager, torch.ones(n, 400)))
        for _ in range(60):
            n, what = choose.randint(1, 3), choose.choice(["own", "own", "part", "move", "replace"])
            for h in (eager, fast):
                if what == "move":
                    h.weight.data = h.weight.data.clone()
                elif what == "replace":
                    h.weight = h.weight.clone()
            arguments = [h.weight[:n] if what == "part" else torch.full((n, 400), 0.5) for h in (eager, fast)]
            assert_close(compiled(arguments[1]), program(eager, arguments[0]))
            assert_close(fast.weight, eager.weight)
    e = framelift.explain(compiled)
    assert e.recorded <= 12 and e.replayed > 40
