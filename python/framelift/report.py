"""Explanation: what framelift made of a compiled callable, as attributes, as plain text and as JSON."""

import json
from dataclasses import asdict, dataclass, field

COUNTS = ("contexts", "programs")  # in a partition's memory, beside bytes
SHARED = "shared"  # bytes there that an earlier partition holds, too, and that are counted with it
MOST_ROWS = 24  # of a table; `raw` and `to_json` have all
DEAD = "nobody needs its result"  # lowering's reason for operators that run nowhere


@dataclass(frozen=True)
class Eager:
    """An operator that stayed with PyTorch, how often it was recorded at this place, and why."""

    op: str
    reason: str
    file: str | None
    line: int
    module: str | None
    count: int

    @property
    def place(self):
        return _place(self.file, self.line)


@dataclass(frozen=True)
class Break:
    """Where a graph ended in the middle of a call."""

    reason: str
    detail: str | None
    file: str | None
    line: int
    count: int | None = None  # how often calls came here; None where none is counted
    exits: int = 0  # how often they went on otherwise than recorded
    exit_reason: str | None = None  # why the last of them did
    branches: tuple = ()  # how they went on then: Traces, with the first of the breaks at which frames stand alike
    branch_reason: str | None = None  # why the last one that was recorded is none of them, and runs natively

    @property
    def place(self):
        return _place(self.file, self.line)


@dataclass(frozen=True)
class GiveUp:
    """A call that could not be recorded or replayed and ran natively."""

    reason: str
    detail: str | None
    file: str | None
    line: int
    count: int

    @property
    def place(self):
        return _place(self.file, self.line)


@dataclass(frozen=True)
class Partition:
    """A run of operators that one engine, or PyTorch, executes."""

    kind: str
    operators: int
    ops: dict
    reason: str | None
    nodes: int
    steps: int
    arena_bytes: int
    arena_least_bytes: int  # what is alive in one step at most: no arena could be smaller
    const_bytes: int
    memory: dict  # of the engine: kind -> bytes held now on its device, see Explanation.memory; SHARED
    device: str | None  # of the engine
    precision: str | None  # "f16", "bf16": what it computes float32 operators in; None: as they were recorded


@dataclass(frozen=True)
class Segment:
    """One graph: the operators recorded between two breaks."""

    operators: int
    lowered: int
    dead: int
    parts: tuple
    eager: tuple
    exact: tuple  # operators that low precision would have made wrong, and that stay float32
    cosine: float | None
    max_rel_err: float | None
    backend: str | None  # what was chosen for it, where a backend was asked
    backend_reason: str | None  # why that is eager
    backend_ms: dict  # candidate -> milliseconds (backend "auto")
    backend_failed: dict  # candidate -> why it could not be one


@dataclass(frozen=True)
class Trace:
    """One way through the callable: its guards and the graphs that were recorded under them."""

    guards: dict
    autocast: str | None  # around the calls that it answers: devices and dtypes
    weights: int
    rebound: int  # how often weights that were replaced by others like them were taken
    first_call_ms: dict  # milliseconds of the call that recorded it: stage -> its share, and "total"
    ready_ms: dict  # the same of verifying its engines, where that waited for the second call, or this explanation
    hits: int  # calls that were answered by it
    segments: tuple
    breaks: tuple
    checks: tuple  # answers of tensors that are compared once the graph has been computed, as Breaks


@dataclass(frozen=True)
class Explanation:
    """See the attributes below; print() gives a report, to_dict() and to_json() the same as data.

    Sums go over all traces: after calls with two input shapes there are two traces, and one graph in each.
    """

    raw: dict = field(repr=False)

    def __post_init__(self):
        object.__setattr__(self, "traces", tuple(map(_trace, self.raw.get("traces", ()))))
        object.__setattr__(self, "give_ups", tuple(_row(GiveUp, g) for g in self.raw.get("give_ups", ())))

    @property
    def target(self):
        """The callable's name."""
        return self.raw["target"]

    @property
    def calls(self):
        """Calls so far; each was recorded, replayed or native."""
        return self.raw["calls"]

    @property
    def recorded(self):
        return self.raw["recorded"]

    @property
    def replayed(self):
        return self.raw["replayed"]

    @property
    def native(self):
        return self.raw["native"]

    @property
    def native_reason(self):
        """Why calls run as plain Python, or None."""
        return self.raw.get("native_reason")

    @property
    def misses(self):
        """{guard: how often it sent a call back to recording}"""
        return {m["guard"]: m["count"] for m in self.raw.get("misses", ())}

    @property
    def graphs(self):
        """Every Segment of every trace."""
        return tuple(s for t in self.traces for s in t.segments)

    @property
    def segments(self):
        """Number of graphs."""
        return len(self.graphs)

    @property
    def breaks(self):
        """Every Break of every trace."""
        return tuple(b for t in self.traces for b in t.breaks)

    @property
    def branches(self):
        """(Break, Trace) of every branch: where calls left a trace, and how they went on from there."""
        return tuple(_branches(self.breaks))

    @property
    def checks(self):
        """Yes or no out of tensors that the program goes on by, compared after the graph that they do not break."""
        return tuple(b for t in self.traces for b in t.checks)

    @property
    def operators(self):
        """PyTorch operators recorded."""
        return sum(s.operators for s in self.graphs)

    @property
    def lowered(self):
        """Operators that engines compute."""
        return sum(s.lowered for s in self.graphs)

    @property
    def dead(self):
        """Operators whose results nobody needs."""
        return sum(s.dead for s in self.graphs)

    @property
    def coverage(self):
        """Share of the needed operators that engines compute, 0 to 1; 0 before anything was recorded."""
        needed = self.operators - self.dead
        return self.lowered / needed if needed else 0.0

    @property
    def partitions(self):
        """Every Partition of every graph, in order."""
        return tuple(p for s in self.graphs for p in s.parts)

    @property
    def engines(self):
        """Number of engine partitions."""
        return sum(p.kind == "engine" for p in self.partitions)

    @property
    def memory(self):
        """{kind: bytes} that the engines, and those of branches, hold now on their devices, beside the caller's weights
        and results.

        "arena": between steps; "stages": stand for the caller's tensors in recorded programs; "workspaces": of
        libraries; "graphs": CUDA graphs, as the driver's free memory tells it; and what is made of weights: "computed"
        (folded), "joined" (several side by side), "copied" (in another layout), "packed", "literals". What several
        engines share of these is counted once.
        """
        held = [part.memory for _, part in self._holders()]
        kinds = dict.fromkeys(kind for m in held for kind in m if kind not in (*COUNTS, SHARED))
        return {kind: sum(m.get(kind, 0) for m in held) for kind in kinds}

    @property
    def eager(self):
        """Operators left to PyTorch, with reasons, most frequent first; dead operators are not among them."""
        left = [e for s in self.graphs for e in s.eager if e.reason != DEAD]
        return tuple(sorted(left, key=lambda e: -e.count))

    @property
    def exact(self):
        """Operators that engines of low precision compute in float32, since they would be wrong otherwise."""
        return tuple(e for s in self.graphs for e in s.exact)

    def to_dict(self):
        summary = ("operators", "lowered", "dead", "coverage", "segments", "engines")
        return {
            **self.raw,
            **{name: getattr(self, name) for name in summary},
            "memory": self.memory,
            "partitions": [asdict(p) for p in self.partitions],
            "breaks": [_place_of(b) for b in self.breaks],
            "checks": [_place_of(b) for b in self.checks],
            "eager": [asdict(e) for e in self.eager],
        }

    def to_json(self, indent=2):
        return json.dumps(self.to_dict(), indent=indent, default=str)

    def summary(self):
        """The report's first lines: what happened, in sentences."""
        if not self.calls:
            return [f"{self.target}: not called yet. Call it once, then explain again."]
        lines = [
            f"{self.target}: {_plural(self.calls, 'call')}: {self.recorded} recorded, {self.replayed} replayed, "
            f"{self.native} native"
        ]
        if self.native_reason:
            lines.append(f"runs natively: {self.native_reason}")
        if self.traces:
            lines.append(
                f"{self.lowered} of {_plural(self.operators, 'operator')} lowered ({self.coverage:.1%} of those "
                f"needed; {self.dead} dead), {_plural(self.segments, 'segment')}, "
                f"{_plural(len(self.breaks), 'break')}, {_plural(self.engines, 'engine partition')} "
                f"of {len(self.partitions)}"
            )
        return lines

    def tables(self):
        """The rest of the report: (title, column names, rows of strings), empty tables left out.

        Of a long one the first rows, the most recently used trace's before others, and how many more there are.
        """
        tables = [
            ("traces", ("trace", "guards", "weights", "segments"), self._trace_rows()),
            ("first call, milliseconds", ("trace", *self._stages()), self._first_call_rows()),
            (
                "partitions",
                ("in", "runs in", "operators", "nodes", "steps", "arena", "constants", "reason"),
                self._part_rows(),
            ),
            ("memory", ("in", "contexts", "programs", "holds"), self._memory_rows()),
            ("backends", ("segment", "chosen", "times", "reason"), self._backend_rows()),
            ("checked against eager", ("segment", "cosine", "max rel err"), self._verify_rows()),
            (
                "left to PyTorch",
                ("count", "operator", "reason", "line", "module"),
                [(str(e.count), e.op, e.reason, e.place, e.module or "") for e in self.eager],
            ),
            (
                "kept in float32",
                ("count", "operator", "reason", "line", "module"),
                [(str(e.count), e.op, e.reason, e.place, e.module or "") for e in self.exact],
            ),
            (
                "graph breaks",
                ("line", "reason", "detail"),
                [(b.place, b.reason, b.detail or "") for b in self.breaks],
            ),
            ("branches", ("line", "calls", "segments", "breaks", "reason"), self._branch_rows()),
            (
                "compared once all is computed",
                ("line", "reason", "detail"),
                [(b.place, b.reason, b.detail or "") for b in self.checks],
            ),
            (
                "not recorded",
                ("calls", "line", "reason", "detail"),
                [(str(g.count), g.place, g.reason, g.detail or "") for g in self.give_ups],
            ),
            ("guards that failed", ("count", "guard"), [(str(n), guard) for guard, n in self.misses.items()]),
        ]
        return [(title, names, _first(rows, len(names))) for title, names, rows in tables if rows]

    def __str__(self):
        return "\n".join(self.summary() + [plain_table(*table) for table in self.tables()])

    def _trace_rows(self):
        return [
            (
                str(i),
                ", ".join(f"{n} {kind}" for kind, n in t.guards.items())
                + (f", autocast {t.autocast}" if t.autocast else "")
                or "none",
                f"{t.weights}, replaced {t.rebound} times" if t.rebound else str(t.weights),
                str(len(t.segments)),
            )
            for i, t in enumerate(self.traces)
        ]

    def _times(self):
        """(trace, stage -> milliseconds): its first call, then what was put off until its engines were needed."""
        for i, t in enumerate(self.traces):
            yield from ((f"{i}{name}", ms) for name, ms in (("", t.first_call_ms), (", later", t.ready_ms)) if ms)

    def _branch_rows(self):
        rows = []
        for b in [*self.breaks, *(b for _, t in self.branches for b in t.breaks)]:
            rows += [(b.place, str(t.hits), str(len(t.segments)), str(len(t.breaks)), "") for t in b.branches]
            if b.branch_reason:
                rows.append((b.place, "", "", "", f"runs natively: {b.branch_reason}"))
        return rows

    def _stages(self):
        """Stages of the traces' first calls, each trace's in its order, the total last."""
        stages = dict.fromkeys(stage for _, times in self._times() for stage in times if stage != "total")
        return (*stages, "total")

    def _first_call_rows(self):
        return [
            (name, *(f"{times[s]:.1f}" if s in times else "" for s in self._stages())) for name, times in self._times()
        ]

    def _part_rows(self):
        rows = []
        for name, segment in self._named_segments():
            for part in segment.parts:
                is_engine = part.kind == "engine"
                rows.append(
                    (
                        name,
                        " ".join(filter(None, (part.kind, part.device, part.precision))),
                        str(part.operators),
                        str(part.nodes) if is_engine else "",
                        str(part.steps) if is_engine else "",
                        _bytes(part.arena_bytes) if is_engine else "",
                        _bytes(part.const_bytes) if is_engine else "",
                        part.reason or "",
                    )
                )
        return rows

    def _memory_rows(self):
        return [
            (
                name,
                str(part.memory["contexts"]),
                str(part.memory["programs"]),
                ", ".join(f"{k} {_bytes(n)}" for k, n in part.memory.items() if n and k not in COUNTS) or "nothing",
            )
            for name, part in self._holders()
        ]

    def _holders(self):
        """(name, partition) of every engine; branches' go by the line of their break."""
        branches = [(b.place, s) for b, t in self.branches for s in t.segments]
        segments = [*self._named_segments(), *branches]
        yield from ((name, part) for name, s in segments for part in s.parts if part.memory)

    def _verify_rows(self):
        return [
            (name, f"{s.cosine:.9f}", f"{s.max_rel_err:.2e}")
            for name, s in self._named_segments()
            if s.cosine is not None
        ]

    def _backend_rows(self):
        return [
            (
                name,
                s.backend,
                ", ".join(f"{n} {ms:.3f} ms" for n, ms in s.backend_ms.items()),
                "; ".join(filter(None, [s.backend_reason, *(f"{n}: {why}" for n, why in s.backend_failed.items())])),
            )
            for name, s in self._named_segments()
            if s.backend
        ]

    def _named_segments(self):
        return [(f"{i}.{j}", s) for i, t in enumerate(self.traces) for j, s in enumerate(t.segments)]


def _row(cls, values):
    return cls(**{name: values.get(name) for name in cls.__dataclass_fields__})


def _place_of(b):
    return {name: getattr(b, name) for name in ("reason", "detail", "file", "line")}


def _branches(breaks):
    for b in breaks:
        for t in b.branches:
            yield b, t
            yield from _branches(t.breaks)


def _break(values):
    fields = {name: values[name] for name in Break.__dataclass_fields__ if name in values}
    return Break(**{**fields, "branches": tuple(map(_trace, values.get("branches", ())))})


def _segment(values):
    verify = values.get("verify") or {}
    chosen = values.get("backend") or {}
    return Segment(
        operators=values["operators"],
        lowered=values["lowered"],
        dead=values.get("dead", 0),
        parts=tuple(_row(Partition, p) for p in values.get("parts", ())),
        eager=tuple(_row(Eager, e) for e in values.get("eager", ())),
        exact=tuple(_row(Eager, e) for e in values.get("exact", ())),
        cosine=verify.get("cosine"),
        max_rel_err=verify.get("max_rel_err"),
        backend=chosen.get("name"),
        backend_reason=chosen.get("reason"),
        backend_ms=dict(chosen.get("ms", {})),
        backend_failed=dict(chosen.get("failed", {})),
    )


def _trace(values):
    return Trace(
        guards=dict(values.get("guards", {})),
        autocast=values.get("autocast"),
        weights=values.get("weights", 0),
        rebound=values.get("rebound", 0),
        first_call_ms=dict(values.get("first_call_ms", {})),
        ready_ms=dict(values.get("ready_ms", {})),
        hits=values.get("hits", 0),
        segments=tuple(map(_segment, values.get("segments", ()))),
        breaks=tuple(map(_break, values.get("breaks", ()))),
        checks=tuple(map(_break, values.get("checks", ()))),
    )


def _place(file, line):
    return f"{file}:{line}" if file else "?"


def _plural(count, noun):
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _bytes(count):
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _first(rows, columns):
    more = len(rows) - MOST_ROWS
    return rows if more <= 0 else [*rows[:MOST_ROWS], (f"{more} more", *[""] * (columns - 1))]


def plain_table(title, header, rows):
    """Aligned columns; the last one is never cut."""
    lines = [header, *(tuple(map(str, row)) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = [f"\n{title}"] if title else []
    for line in lines:
        text.append("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return "\n".join(text)
