"""What the tests of branches share: unknown code, and what the report says of exits and branches."""

import pytest
import torch

import framelift

with torch.random.fork_rng():
    torch.manual_seed(5)
    LIN = torch.nn.Linear(4, 4).eval()
STATE = {"log": [], "scale": 1.0}


class Unknown:
    """Called through C (methodcaller), so that nothing of it is seen."""

    def __init__(self):
        self.action = lambda: None

    def do(self):
        return self.action()


UNKNOWN = Unknown()


def trace(fast):
    (t,) = framelift.explain(fast).traces
    return t


def branches(fast):
    """(line within the file, calls, segments) of each branch."""
    return [(b.line, t.hits, len(t.segments)) for b, t in framelift.explain(fast).branches]


def left(fast):
    """Calls that left a trace, and those of them that CPython ran to their end."""
    e = framelift.explain(fast)
    every = {id(b): b for b in e.breaks}
    every.update({id(b): b for _, t in e.branches for b in t.breaks})
    exits = sum(b.exits for b in every.values())
    return exits, exits - sum(t.hits for _, t in e.branches) - len(e.branches)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.fixture(autouse=True)
def fresh():
    STATE.update(log=[], scale=1.0)
    UNKNOWN.action = lambda: None
    with torch.no_grad():
        yield
