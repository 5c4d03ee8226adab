"""Numbers from Python's generators: drawn again by each replay; a break only where they decide something."""

import random

import pytest
import torch

import framelift


class Drops(torch.nn.Module):
    """Layers that drop out in training, as several of transformers' do."""

    def __init__(self, training=False, rate=0.5):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3))
        self.rate = rate
        self.train(training)

    def forward(self, x):
        for layer in self.layers:
            probability = random.uniform(0, 1)
            if self.training and probability < self.rate:
                continue
            x = layer(x)
        return x


def same_draws(fast, function, calls=4):
    """Answers, and the generator's state after each call, as in eager."""
    for i in range(calls):
        x = torch.randn(2, 4)
        random.seed(i)
        want = function(x)
        state = random.getstate()
        random.seed(i)
        torch.testing.assert_close(fast(x), want)
        assert random.getstate() == state


def test_a_number_that_decides_nothing():
    net = Drops()
    fast = framelift.compile(net)
    with torch.inference_mode():
        same_draws(fast, net)
    explanation = framelift.explain(fast)
    assert explanation.segments == 1 and not explanation.breaks and explanation.replayed == 3


def test_a_number_that_decides():
    net = Drops(training=True)
    fast = framelift.compile(net)
    with torch.inference_mode():
        same_draws(fast, net, 12)
    explanation = framelift.explain(fast)
    assert explanation.breaks or explanation.native_reason


def scaled(x):
    return x * random.random()


def given_back(x):
    return x + 1, random.random()


def kept(x):
    box.append(random.random() * 2)
    return x + 1


def compared(x):
    return x + (1 if random.random() * 2 < 1 else 2)


def converted(x):
    return x + int(random.random() * 10) + round(random.random(), 1)


def formatted(x):
    return x + len(f"{random.random():.3f}{random.random()!r:.4}")


def shown(x):
    p = random.random()
    print(p)
    return x + 1


def across_a_break(x):
    p = random.random() + 1
    print("between")
    q = random.random()
    return x + (1 if p > 1.5 else 2), q


def in_a_container(x):
    return x + max([random.random(), 0.5]) + sum({"a": random.random()}.values())


class Scale:
    def __init__(self, p):
        self.p = p

    def __float__(self):
        return self.p


def through_an_object(x):
    return x * float(Scale(random.random())) + Scale(random.random()).p


def by_its_truth(x):
    p = random.random()
    return x + (1 if p - p * 1 else 2) + (3 if not p else 4) + (-p) + abs(p) + p**2


def among_others(x):
    p = random.random()
    return x + (p in (0.5, 0.25)) + {0.5: 1}.get(p, 2) + isinstance(p, float) + (p == p)


def in_a_closure(x):
    p = random.random() * 3

    by_default = random.random()

    def add(y, by=by_default):
        return y + p + by

    return add(x)


def of_a_generator(x):
    return x + sum(random.random() for _ in range(3)) + [random.random() for _ in range(2)][1]


def integers(x):
    return x + random.randint(1, 9) + random.choice([1, 2, 3])


def to_an_operator(x):
    return torch.dropout(x, random.random() * 0, False) + torch.full((1,), random.random())


box = []


@pytest.mark.parametrize(
    "function",
    [
        scaled,
        given_back,
        kept,
        compared,
        converted,
        formatted,
        shown,
        across_a_break,
        in_a_container,
        through_an_object,
        by_its_truth,
        among_others,
        in_a_closure,
        of_a_generator,
        integers,
        to_an_operator,
    ],
)
def test_a_number_that_is_used(function, capsys):
    fast = framelift.compile(function)
    with torch.no_grad():
        for i in range(6):
            x = torch.randn(2, 4)
            random.seed(i)
            del box[:]
            want = function(x), list(box), capsys.readouterr().out
            state = random.getstate()
            random.seed(i)
            del box[:]
            got = fast(x), list(box), capsys.readouterr().out
            torch.testing.assert_close(got[0], want[0], rtol=0, atol=0)
            assert got[1:] == want[1:] and random.getstate() == state


def test_a_generator_of_the_calls_own():
    def function(x):
        return x * random.Random(3).random()

    fast = framelift.compile(function)
    with torch.no_grad():
        for _ in range(3):
            x = torch.randn(2, 4)
            assert torch.equal(fast(x), function(x))


def test_a_call_that_raises_after_a_draw():
    def function(x):
        random.random()
        return x.view(3, 3)

    fast = framelift.compile(function)
    with torch.no_grad():
        for i in range(4):
            x = torch.randn(9 if i < 2 else 8)
            random.seed(i)
            try:
                function(x)
                raised = False
            except RuntimeError:
                raised = True
            state = random.getstate()
            random.seed(i)
            if raised:
                with pytest.raises(RuntimeError):
                    fast(x)
            else:
                fast(x)
            assert random.getstate() == state
