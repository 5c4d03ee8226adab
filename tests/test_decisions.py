"""A yes or no out of a tensor is compared after the graph: where it differs, nothing has been done."""

import contextlib
import io

import pytest
import torch

import framelift

UP, DOWN = torch.ones(4), -torch.ones(4)


def both_ways(f, *, first=UP, rounds=3, segments=1, checks=1, breaks=0):
    """Calls with either answer, from the one that is recorded first; then what the report says of the first trace."""
    fast = framelift.compile(f)
    with torch.no_grad():
        torch.testing.assert_close(fast(first.clone()), f(first.clone()))
        e = framelift.explain(fast)
        assert (e.native, e.segments, len(e.checks), len(e.breaks)) == (0, segments, checks, breaks), str(e)
        for _ in range(rounds):
            for x in (UP, DOWN):
                mine, theirs = x.clone(), x.clone()
                torch.testing.assert_close(fast(mine), f(theirs))
                torch.testing.assert_close(mine, theirs)
    return fast


def test_one_graph_and_what_it_is_worth():
    def f(x):
        y = x * 2
        for _ in range(3):
            if (y > 0).all():
                y = y + 1
        return y.exp()

    fast = both_ways(f, checks=3)
    e = framelift.explain(fast)
    assert e.replayed >= 4 and e.engines == e.segments == len(e.traces) == 2
    assert "test_decisions.py" in e.checks[0].place and "compared once all is computed" in str(e)


def test_numbers_end_the_segment():
    def f(x):
        y = x * 2
        return y + 1 if y.sum().item() > 0 else y - 1

    both_ways(f, segments=2, checks=0, breaks=2)


def test_code_that_is_not_understood_runs_for_the_right_answer_alone():
    def f(x):
        y = x * 2
        if (y > 0).all():
            print("yes")
        return y + 1

    for first in (UP, DOWN):
        fast = framelift.compile(f)
        for x in (first, UP, DOWN, UP, DOWN):
            out = io.StringIO()
            with torch.no_grad(), contextlib.redirect_stdout(out):
                torch.testing.assert_close(fast(x), x * 2 + 1)
            assert out.getvalue() == ("yes\n" if x is UP else "")


@pytest.mark.parametrize("first", [UP, DOWN])
def test_writes_wait(first):
    class Counter:
        def __init__(self):
            self.seen = 0
            self.buffer = torch.zeros(4)

        def argument(self, x):
            y = x * 2
            if (y > 0).all():
                x.add_(1)
            return y + x

        def kept(self, x):
            y = x * 2
            if (y > 0).all():
                self.buffer += y
            return y + 1

        def attribute(self, x):
            y = x * 2
            if (y > 0).all():
                self.seen = "yes"
            else:
                self.seen = "no"
            return y + 1

    for name in ("argument", "kept", "attribute"):
        ours, theirs = Counter(), Counter()
        fast = framelift.compile(getattr(ours, name))
        for x in (first, UP, DOWN, UP, DOWN, DOWN):
            mine, other = x.clone(), x.clone()
            with torch.no_grad():
                torch.testing.assert_close(fast(mine), getattr(theirs, name)(other))
            torch.testing.assert_close(mine, other)
            torch.testing.assert_close(ours.buffer, theirs.buffer)
            assert ours.seen == theirs.seen


def test_what_was_asked_may_be_overwritten():
    def f(x):
        y = x * 2
        mask = y > 0
        answer = mask.all()
        if answer:
            y = y + 1
        answer.logical_not_()
        mask.zero_()
        return y + mask, answer

    both_ways(f, segments=2)


def test_random_numbers_are_drawn_once():
    def f(x):
        y = x * 2
        return y + torch.rand(4) if (y > 0).all() else y - torch.rand(4)

    fast = framelift.compile(f)
    for x in (UP, UP, DOWN, UP, DOWN):
        with torch.no_grad():
            torch.manual_seed(3)
            want, then = f(x), torch.rand(1)
            torch.manual_seed(3)
            torch.testing.assert_close(fast(x), want)
            assert torch.equal(torch.rand(1), then)


def test_an_error_on_the_way_not_taken_is_none():
    table = torch.arange(12.0).reshape(4, 3)

    def f(x):
        index = x.long()
        if (index >= 0).all():
            return table[index + 2] + 1
        return table[index * 0]

    fast = both_ways(f)
    assert framelift.explain(fast).native == 0
    with torch.no_grad(), pytest.raises(IndexError):
        fast(UP * 7)


def test_errors_of_the_program():
    def f(x):
        y = x * 2
        if (y < 0).any():
            raise ValueError("negative")
        return y + 1

    fast = framelift.compile(f)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(fast(UP), UP * 2 + 1)
            with pytest.raises(ValueError, match="negative"):
                fast(DOWN)


def test_loops():
    def f(x):
        x = x.abs()
        while (x > 0.1).any():
            x = x * 0.1
        return x + 1

    fast = framelift.compile(f)
    with torch.no_grad():
        for scale in (1, 1, 100, 0.01, 1, 100):
            torch.testing.assert_close(fast(UP * scale), f(UP * scale))
    assert framelift.explain(fast).segments == len(framelift.explain(fast).traces)


LENGTHS = [torch.tensor(v) for v in ([3, 5], [5, 2], [7, 1], [9, 9])]


@pytest.mark.parametrize(
    "compare",
    [
        lambda n, most: n.max().item() <= most,
        lambda n, most: int(n.max()) < most,
        lambda n, most: most > n.sum().item(),
        lambda n, most: n.argmax().item() == 0,
        lambda n, most: n.max().item() >= 5.5,
    ],
)
def test_an_integer_that_is_only_compared_decides_by_the_comparison(compare):
    """Other numbers with the same outcome are no other trace, and none of it cuts the graph."""

    def f(x, n, most):
        y = x * 2
        n = n * 1
        if compare(n, most):
            y = y + 1
        return y.exp()

    fast = framelift.compile(f)
    seen = set()
    with torch.no_grad():
        for n in [LENGTHS[0]] * 2 + LENGTHS * 3:
            n = n.repeat(60)  # too long to be guarded by their elements
            seen.add(bool(compare(n, 7)))
            torch.testing.assert_close(fast(UP, n, 7), f(UP, n, 7))
    e = framelift.explain(fast)
    assert e.native == 0 and e.recorded == e.segments == len(seen) and not e.breaks and len(e.checks) == len(seen)


def test_an_integer_that_is_used_too_is_itself_decisive():
    def used(x, n):
        most = (n * 1).max().item()
        return x[:most] + 1 if most > 2 else x

    def in_an_expression(x, n):
        return x + 1 if (n * 1).max().item() + 1 > 4 else x

    def unbound(x, n):
        try:
            if (n * 1).max().item() > late:  # noqa: F821
                return x
            late = 3  # noqa: F841
        except UnboundLocalError:
            return x * 2

    def of_a_tensor(x, n):
        return x + 1 if (n * 1).max().item() > n.min() else x

    def chained(x, n):
        return x + 1 if 2 < (n * 1).max().item() < 6 else x

    for f in (used, in_an_expression, unbound, of_a_tensor, chained):
        fast = framelift.compile(f)
        with torch.no_grad():
            for n in LENGTHS * 2:
                n = n.repeat(60)
                torch.testing.assert_close(fast(UP, n), f(UP, n))


def runs_of(f, xs, **options):
    """How often graphs ran in each call, after three calls that record."""
    ran = []

    def backend(gm, inputs):
        def call(*args):
            ran.append(1)
            return gm(*args)

        return call

    fast = framelift.compile(f, backend=backend, **options)
    counts = []
    with torch.no_grad():
        for x in (UP, DOWN, UP):
            fast(x)
        for x in xs:
            ran.clear()
            torch.testing.assert_close(fast(x), f(x))
            counts.append(len(ran))
    assert framelift.explain(fast).recorded == 2
    return counts


def test_a_decision_that_came_out_otherwise_is_asked_first():
    """Where few operators tell: no graph is computed in vain while answers change."""

    def f(x):
        return (x * 2).exp() + 1 if (x > 0).all() else (x - 1).sin()

    assert runs_of(f, [DOWN, UP, DOWN, UP, UP, DOWN]) == [1] * 6


def test_a_decision_that_comes_from_much_is_not_asked_first():
    def f(x):
        y = x
        for _ in range(20):
            y = y + 1
        return y.exp() if (y > 20).all() else y.sin()

    assert runs_of(f, [DOWN, UP, DOWN, DOWN]) == [2, 2, 2, 1]


def test_what_was_asked_first_is_compared_in_its_place():
    """A forecast is not relied on: here what it reads is written to by then."""

    def f(x):
        x.neg_()
        y = x.view(2, 2)
        return y.exp() if (y > 0).all() else y.sin()

    fast = framelift.compile(f)
    with torch.no_grad():
        for x in (UP, DOWN, UP, DOWN, DOWN, UP):
            mine, theirs = x.clone(), x.clone()
            torch.testing.assert_close(fast(mine), f(theirs))
            assert torch.equal(mine, theirs)


def test_an_error_of_what_is_asked_first():
    table = torch.arange(4.0)

    def f(x):
        y = (x * 3).exp()
        return y + 1 if (table[x.long() + 1] > 1).all() else y.sin()

    fast = both_ways(f)
    with torch.no_grad():
        for x in (UP, DOWN, UP * 9, UP, UP * 9, DOWN):
            if x[0] > 1:
                with pytest.raises(IndexError, match="index 10 is out of bounds"):
                    fast(x)
            else:
                torch.testing.assert_close(fast(x), f(x))
