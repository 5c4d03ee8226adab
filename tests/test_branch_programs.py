"""Branches of programs at random."""

import random

import pytest
import torch

import framelift
from branching import LIN, STATE, UNKNOWN, fresh  # noqa: F401  (fresh: a fixture of every test)
from exits import DO, x


class Writer:
    """Writes a program of a few statements at random: breaks, decisions by numbers, effects, views, calls."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.lines, self.helpers, self.depth = [], 0, 0

    def pick(self, *kinds):
        return self.random.choice(kinds)

    def var(self):
        return self.pick("a", "b", "c")

    def statement(self, indent):
        v, w, r = self.var(), self.var(), self.random
        kinds = ["math", "math", "unknown", "log", "item", "effect", "list", "view", "write", "state"]
        kinds += ["loop", "helper", "if"] if self.depth < 2 else []
        kind = self.pick(*kinds)
        if kind == "math":
            text = self.pick(f"{v} = LIN({w}) * 0.5", f"{v} = {v} + {w}.tanh()", f"{v} = ({w} - {v}).relu() + 0.1")
        elif kind == "unknown":
            text = self.pick(f"k = DO(UNKNOWN)\n{v} = {v} * k", "k = DO(UNKNOWN)", f"u = GIVE({v})\n{w} = {w} + u")
        elif kind == "log":
            text = f"log.append(('{v}', len(parts)))"
        elif kind == "item":
            text = f"s = {v}.mean().item()\n{w} = {w} + s"
        elif kind == "effect":
            text = self.pick(
                "STATE['scale'] = STATE['scale'] * 2", f"STATE['last'] = {v}", f"{v} = {v} * STATE['scale']"
            )
        elif kind == "list":
            text = self.pick(
                f"parts.append({v})", f"parts = [{v}, *parts[:3]]", f"{v} = sum(parts[:2]) if parts else {w}"
            )
        elif kind == "view":
            text = self.pick(f"row = {v}[0]\n{w} = {w} + row", f"{v} = {w}.t().reshape(4, 4)")
        elif kind == "write":
            text = self.pick(f"{v} = {v}.clone()\n{v}[0].mul_(0.5)", f"{v} = {v} * 1\n{v}.add_({w})")
        elif kind == "state":
            text = "with torch.no_grad():\n    " + f"{v} = {v} * 0.9"
        else:
            return self.block(kind, indent, v, w, r)
        self.add(indent, text)

    def block(self, kind, indent, v, w, r):
        self.depth += 1
        if kind == "if":
            mark = self.pick(f"{v}.sum().item() > {r.uniform(-2, 2):.2f}", "DO(UNKNOWN) > 1", f"({v} > 0).any()")
            self.add(indent, f"if {mark}:")
            self.some(indent + 1)
            self.add(indent, "else:")
            self.some(indent + 1)
        elif kind == "loop":
            head = self.pick(
                f"while {v}.abs().max().item() > {r.uniform(0.2, 1):.2f}:\n    {v} = {v} * 0.6\n    turns.pop()",
                f"for n in range({r.randint(1, 3)}):\n    {v} = {v} + n",
                f"for name, p in zip('xy', ({v}, {w})):\n    {w} = p * 0.5 + len(name)",
            )
            self.add(indent, head)
            self.some(indent + 1)
        else:
            self.helpers += 1
            w = {"a": "b", "b": "c", "c": "a"}[v]
            name = f"helper{self.helpers}"
            self.add(indent, f"def {name}({v}, {w}):")
            self.add(
                indent + 1,
                "nonlocal total\ntotal = total + 1\nturns = list(range(9))\n{x} = {v} * 1".format(
                    x=next(n for n in "abc" if n not in (v, w)), v=v
                ),
            )
            self.add(indent + 1, "parts, k, s = [], 1, 0.0")
            self.some(indent + 1)
            self.add(indent + 1, f"return {v}")
            self.add(indent, f"{v} = {name}({v}, {w})")
        self.depth -= 1

    def some(self, indent):
        for _ in range(self.random.randint(1, 3)):
            self.statement(indent)

    def add(self, indent, text):
        self.lines += ["    " * indent + line for line in text.split("\n")]

    def program(self):
        self.add(0, "def f(x, y):")
        self.add(
            1, "a, b, c = x, y, x + y\nparts, log, total, k, s = [], STATE['log'], 0, 1, 0.0\nturns = list(range(12))"
        )
        for _ in range(self.random.randint(4, 8)):
            self.statement(1)
        self.add(1, "return a, b, c, parts, total, k, s")
        return "\n".join(self.lines)


class Give(dict):
    """Called through C, gives a new tensor."""

    def __missing__(self, t):
        return t.detach() * 0.5


GIVE = Give().__getitem__


def alike(a, b):
    if isinstance(a, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, (torch.Tensor, float)):
        return torch.allclose(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-3, atol=1e-4)
    return a == b


@pytest.mark.parametrize("seed", range(60))
def test_programs_at_random(seed):
    text = Writer(seed).program()
    scope = {"torch": torch, "LIN": LIN, "STATE": STATE, "UNKNOWN": UNKNOWN, "DO": DO, "GIVE": GIVE}
    exec(compile(text, f"program{seed}", "exec"), scope)
    plain = scope["f"]
    fast = framelift.compile(plain)
    numbers = random.Random(seed)
    for call in range(14):
        gives = [numbers.choice([1, 1, 1, 2, 0.5]) for _ in range(200)]
        p, q = x(1000 * seed + call)[:, :4], x(call)
        p, q = torch.cat([p, p[:1]]), torch.cat([q, q[1:2]])
        outcomes = []
        for f in (fast, plain):
            at = iter(gives)
            UNKNOWN.action = lambda at=at: next(at)
            STATE["log"].clear()
            STATE.update(scale=1.0, last=None)
            try:
                got = f(p.clone(), q.clone())
            except Exception as e:  # the program's own
                got = (type(e), str(e))
            outcomes.append((got, list(STATE["log"]), STATE["scale"], STATE["last"], len(list(at))))
        assert alike(*outcomes), f"{text}\n{outcomes}\n{framelift.explain(fast)}"
