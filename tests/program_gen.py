"""Small random PyTorch programs, for comparing eager and framelift on values, effects and exceptions.

A program is source text that defines `step(x, y, n, flag, items, table, obj)` and module globals (program_text.py).
program_run.py executes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import strategies as st

from program_text import (
    BINARY,
    BREAKS,
    CONDITIONS,
    CONTEXTS,
    EFFECTS,
    INPLACE,
    LOOPS,
    PRELUDE,
    RESULTS,
    SCALARS,
    TENSORS,
    UNARY,
)


@dataclass
class Program:
    source: str
    calls: list = field(default_factory=list)  # one dict of changes per call

    def __str__(self):
        return self.source + "\n# calls: " + repr(self.calls)


@st.composite
def _expr(draw, depth=0):
    kind = draw(st.integers(0, 9))
    pick = lambda: draw(st.sampled_from(TENSORS))  # noqa: E731
    if kind < 6 or depth > 1:
        return draw(st.sampled_from(UNARY)).format(pick())
    return draw(st.sampled_from(BINARY)).format(pick(), pick())


@st.composite
def _block(draw, depth):
    lines = []
    for _ in range(draw(st.integers(1, 4 if depth == 0 else 2))):
        lines += draw(_statement(depth))
    return lines


@st.composite
def _statement(draw, depth):
    pick = lambda: draw(st.sampled_from(TENSORS))  # noqa: E731
    kind = draw(st.integers(0, 23))
    if kind > 21 and depth < 2:
        return draw(_suspended(depth))
    if kind > 19:
        line = draw(st.sampled_from(BREAKS)).format(pick(), pick(), draw(st.sampled_from("abc")))
        first, *rest = line.split("; ")
        return [first] + ["    " + r if first.endswith(":") else r for r in rest]
    if kind < 9 or (depth >= 2 and kind >= 15):
        return [f"{draw(st.sampled_from('abc'))} = {draw(_expr())}"]
    if kind < 11:
        return [f"s = {draw(st.sampled_from(SCALARS)).format(pick())}"]
    if kind == 11:
        return [draw(st.sampled_from(INPLACE)).format(draw(st.sampled_from("abcxy")), pick())]
    if kind == 12:
        return [draw(st.sampled_from([e for e in EFFECTS if "global" not in e])).format(pick())]
    if kind == 13:
        return ["a = a * s"] if draw(st.booleans()) else ["a = a + float(s)"]
    if kind == 14:
        return [f"if {draw(st.sampled_from(CONDITIONS)).format(pick())}: return {draw(_result())}"]
    body = ["    " + line for line in draw(_block(depth + 1))]
    if kind in (15, 16):
        lines = [f"if {draw(st.sampled_from(CONDITIONS)).format(pick())}:"] + body
        if draw(st.booleans()):
            lines += ["else:"] + ["    " + line for line in draw(_block(depth + 1))]
        return lines
    if kind == 17:
        return [draw(st.sampled_from(LOOPS)).format(k=draw(st.integers(0, 3))) + ":"] + body
    if kind == 18:
        bad = draw(
            st.sampled_from(
                [
                    "raise ValueError(n)",
                    "table['missing']",
                    "s = 1 / (n - n)",
                    "pass",
                    "a = a @ torch.zeros(3, 3)",
                    "obj.nothing",
                ]
            )
        )
        return (
            ["try:"]
            + body
            + [
                f"    {bad}",
                "except (ValueError, KeyError, ZeroDivisionError) as e:",
                "    s = len(str(e))",
                "finally:",
                "    b = b + 1",
            ]
        )
    return [f"with {draw(st.sampled_from(CONTEXTS))}:"] + body


@st.composite
def _suspended(draw, depth):
    """A generator that a loop drives, or a context manager made of one, with blocks around its yield."""
    name = f"g{depth}"
    block = lambda: ["    " + line for line in draw(_block(depth + 1))]  # noqa: E731
    body = block() + ["    yield a * 2"] + block()
    if draw(st.booleans()):
        head = ["@contextlib.contextmanager"]
        use = [f"with {name}(a, b, c, s) as b:"]
        if draw(st.booleans()):
            body = ["    try:"] + ["    " + line for line in body] + ["    finally:", "        LOG.write('left')"]
    else:
        head, use = [], [f"for a in {name}(a, b, c, s):"]
        body += ["    yield b"]
    return head + [f"def {name}(a, b, c, s):"] + body + use + block()


@st.composite
def _result(draw):
    pick = lambda: draw(st.sampled_from("abcxy"))  # noqa: E731
    return draw(st.sampled_from(RESULTS)).format(pick(), pick())


@st.composite
def programs(draw):
    lines = ["a = x + 0.5", "b = y * 2", "c = a - b", "s = 1"]
    lines += draw(_block(0)) + draw(_block(0))
    lines.append(f"return {draw(_result())}")
    source = PRELUDE + "\ndef step(x, y, n, flag, items, table, obj, **kw):\n" + "".join(f"    {ln}\n" for ln in lines)
    change = st.fixed_dictionaries(
        {},
        optional={
            "n": st.integers(0, 4),
            "flag": st.booleans(),
            "seed": st.integers(0, 5),
            "scale": st.sampled_from([0.5, 1.5, 2]),
            "mode": st.sampled_from(["a", "b"]),
            "K": st.sampled_from([2, 2.5]),
            "items": st.lists(st.integers(0, 5), max_size=4),
            "shape": st.sampled_from(
                ["same", "strided", "double", "half", "bf16", "int", "view", "overlap", "weight", "expanded", "state"]
            ),
            "values": st.sampled_from(["nan", "inf", "zero", "ties", "large"]),
            "under": st.sampled_from(["inference", "autocast", "float64", "autocast half", "threads"]),
            "patch": st.sampled_from(
                [
                    "helper",
                    "method",
                    "forward",
                    "hook",
                    "unhook",
                    "class",
                    "module",
                    "train",
                    "eval",
                    "late",
                    "sum",
                    "code",
                ]
            ),
            "kw": st.sampled_from([{"p": 1}, {"p": 1, "q": 2}, {"q": 2, "p": 1}, {"p": True}, {"p": 1.0}]),
            "weight": st.sampled_from(["inplace", "assign", "data", "block", "load", "double"]),
            "same": st.booleans(),
            "global_tensor": st.booleans(),
        },
    )
    calls = [{}, {}] + draw(st.lists(change, min_size=1, max_size=4))
    return Program(source, calls)
