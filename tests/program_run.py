"""Runs a random program in eager and compiled, and compares values, effects and exceptions.

Each side executes the text in its own namespace with its own copies of all arguments, so that effects can be
compared too.
"""

from __future__ import annotations

import contextlib
import copy
import math
import re
import sys
import traceback
import types
import warnings

import torch

from program_gen import Program


class Side:
    """One execution of a program: a namespace of its own and the state that lives from call to call."""

    def __init__(self, program: Program, wrap):
        module = types.ModuleType("program")
        sys.modules["program"] = module  # dataclasses look their module up
        self.ns = vars(module)
        with torch.no_grad():
            exec(compile(program.source, "<program>", "exec"), self.ns)
        with torch.no_grad():
            self.obj = self.ns["Obj"]()
        self.items, self.table, self.hooks = [1, 3], {"k": 2}, []
        self.step = wrap(self.ns["step"])

    def change(self, call: dict):
        if "scale" in call:
            self.obj.scale = call["scale"]
        if "mode" in call:
            self.obj.mode = call["mode"]
        if "K" in call:
            self.ns["K"] = call["K"]
        if "items" in call:
            self.items = list(call["items"])
        if call.get("global_tensor"):
            self.ns["G"] = torch.full((3, 4), 0.25)
        with torch.no_grad():
            self.change_weights(call.get("weight"))
        self.patch(call.get("patch"))

    def change_weights(self, kind):
        lin, block = self.obj.lin, self.obj.block
        if kind == "inplace" and not lin.weight.is_inference():  # a program may have put one there
            lin.weight.mul_(1.25)
        elif kind == "assign":
            lin.weight = torch.nn.Parameter(torch.full((4, 4), 0.125))
        elif kind == "data":
            lin.weight.data = torch.full((4, 4), 0.375)
        elif kind == "block":
            block[0].weight.copy_(block[0].weight.flip(0))
        elif kind == "load":
            block.load_state_dict({k: v * 2 for k, v in block.state_dict().items()})
        elif kind == "double":
            block.to(torch.float64 if block[0].weight.dtype == torch.float32 else torch.float32)

    def patch(self, kind):
        ns, obj = self.ns, self.obj
        if kind == "helper":
            ns["helper"] = lambda t, k=3: t - k
        elif kind == "method":
            type(obj).method = lambda self, t, k: t - k
        elif kind == "forward":
            obj.lin.forward = lambda t: t * 0.25
        elif kind == "hook":
            self.hooks.append(obj.block[0].register_forward_hook(lambda m, args, out: out + 1))
        elif kind == "unhook" and self.hooks:
            self.hooks.pop().remove()
        elif kind == "class":
            obj.__class__ = type("Obj", (type(obj),), {"method": lambda self, t, k: t * k, "double": 0.5})
        elif kind == "module":
            obj.block[2] = torch.nn.Tanh()
        elif kind in ("train", "eval"):
            obj.block.train(kind == "train")
        elif kind == "late":
            ns["LATE"].__defaults__ = (7,)
        elif kind == "sum":
            ns["sum"] = lambda values: 11
        elif kind == "code":
            ns["LATE"].__code__ = (lambda limit=3: limit * 2).__code__

    def inputs(self, call):
        g = torch.Generator().manual_seed(call.get("seed", 0))
        x, y = torch.randn(3, 4, generator=g), torch.randn(3, 4, generator=g)
        special = {"nan": float("nan"), "inf": -float("inf"), "zero": -0.0, "large": 1e30}
        if call.get("values") == "ties":
            x, y = x.round(), y.round()
        elif "values" in call:
            x[1, 2] = y[0, 0] = special[call["values"]]
        kind = call.get("shape")
        if kind == "strided":
            x = x.t().contiguous().t()
        elif kind in ("double", "half", "bf16", "int"):
            dtype = {"double": torch.float64, "half": torch.float16, "bf16": torch.bfloat16, "int": torch.int64}[kind]
            x, y = x.to(dtype), y.to(dtype)
        elif kind == "view":
            y = x.view(-1).view(3, 4)
        elif kind == "overlap":
            base = torch.cat([x, y])
            x, y = base[0:3], base[1:4]
        elif kind == "weight":
            x = self.obj.lin.weight
            x = (x.clone() if x.is_inference() else x).detach()[:3]
        elif kind == "expanded":
            x = x[:1].expand(3, 4)
        elif kind == "state":
            x = self.ns["G"]
        return (x, x) if call.get("same") else (x, y)

    def call(self, call, x, y):
        n, flag = call.get("n", 3), call.get("flag", True)
        return self.step(x, y, n, flag, self.items, self.table, self.obj, **call.get("kw", {}))

    def run(self, call: dict):
        self.change(call)
        x, y = self.inputs(call)
        torch.manual_seed(call.get("seed", 0))
        with warnings.catch_warnings(record=True) as warned, torch.no_grad(), under(call.get("under")):
            warnings.simplefilter("always")
            try:
                value = self.call(call, x, y)
            except Exception as e:  # compared below: type, text and the program's line
                value = (type(e).__name__, _message(e), _line(e))
        state = {k: v for k, v in vars(self.obj).items() if k not in ("lin", "block")}
        return copy.deepcopy(
            {
                "value": _plain(value),
                "x": x,
                "y": y,
                "items": self.items,
                "table": self.table,
                "obj": state,
                "block": {k: v.clone() for k, v in self.obj.block.state_dict().items()},
                "K": self.ns["K"],
                "counts": self.ns["COUNTS"],
                "memory": self.memory(value, x, y),
                "G": self.ns["G"],
                "log": self.ns["LOG"].getvalue(),
                "rng": (self.ns["RNG"].getstate(), torch.get_rng_state().sum().item()),
                "times": len(self.ns["T"]),
                "globals": (self.ns["ITEMS"], self.ns["TABLE"], self.ns["HELD"], self.ns["ROWS"]),
                "context": self.ns["CV"].get(),
                "warned": [w.category.__name__ for w in warned if "prim" not in str(w.message)],
            }
        )

    def memory(self, value, x, y):
        """Which tensors a caller can see share memory or are the same."""
        block = self.obj.block[0].weight
        seen = [x, y, self.ns["G"], self.ns["W"], self.obj.lin.weight, block, *_tensors(value)]
        seen += _tensors(
            [v for k, v in vars(self.obj).items() if k not in ("lin", "block")] + [self.table, self.ns["ROWS"]]
        )
        places, objects = {}, {}
        return [
            (
                places.setdefault(t.untyped_storage().data_ptr(), len(places)),
                objects.setdefault(id(t), i),
            )
            for i, t in enumerate(seen)
            if t.numel()
        ]


@contextlib.contextmanager
def under(kind):
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    try:
        if kind == "float64":
            torch.set_default_dtype(torch.float64)
        elif kind == "threads":
            torch.set_num_threads(2 if threads == 1 else 1)
        if kind == "inference":
            with torch.inference_mode():
                yield
        elif kind in ("autocast", "autocast half"):
            with torch.autocast("cpu", dtype=torch.float16 if "half" in kind else torch.bfloat16):
                yield
        else:
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)


def _message(e):
    return re.sub(r"0x[0-9a-f]+", "0x", str(e))


def _line(e):
    """The last line of the program in the traceback, if there is one."""
    if isinstance(e, UnboundLocalError):
        return None  # a warm CPython stores a name and loads the next in one instruction, of the first one's line
    lines = [entry.lineno for entry in traceback.extract_tb(e.__traceback__) if entry.filename == "<program>"]
    return lines[-1] if lines else None


def _tensors(v):
    if isinstance(v, torch.Tensor):
        return [v]
    if isinstance(v, dict):
        return [t for u in v.values() for t in _tensors(u)]
    if isinstance(v, (list, tuple)):
        return [t for u in v for t in _tensors(u)]
    return []


def _plain(v):
    """The value with its types as part of it."""
    if isinstance(v, torch.Tensor):
        marks = str(v.dtype), tuple(v.shape), tuple(v.stride()), v.requires_grad, v.is_inference()
        return ("tensor", *marks, v.detach().clone())
    if isinstance(v, dict):
        return (type(v).__name__, [(k, _plain(u)) for k, u in v.items()])
    if isinstance(v, (list, tuple)):
        return (type(v).__name__, [_plain(u) for u in v])
    if hasattr(v, "__dataclass_fields__"):
        return (type(v).__name__, [(k, _plain(getattr(v, k))) for k in v.__dataclass_fields__])
    return (type(v).__name__, v)


def difference(a, b, path="result", overflow=False):
    """None when equal within fp32 rounding, else where and how they differ. `overflow`: sums of numbers near the
    largest are infinite or NaN as the order of adding has it, and whether a product is rounded before it is added."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{path}: {a.dtype}{tuple(a.shape)} against {b.dtype}{tuple(b.shape)}"
        if overflow:
            lost = ~(a.isfinite() | b.isfinite())
            a, b = a.masked_fill(lost, 0), b.masked_fill(lost, 0)
        low = max((torch.finfo(t.dtype).eps for t in (a, b) if t.dtype in (torch.float16, torch.bfloat16)), default=0)
        top = b.double().abs().nan_to_num(0, 0, 0).max().item() if b.numel() else 0
        rtol, atol = max(1e-4, 4 * low), max(1e-5, 1e-5 * top, 4 * low * top)
        if not torch.allclose(a.double(), b.double(), rtol=rtol, atol=atol, equal_nan=True):
            return f"{path}: {a} against {b}"
        return None
    if type(a) is not type(b):
        return f"{path}: {a!r} against {b!r}"
    if isinstance(a, dict):
        if list(a) != list(b):
            return f"{path}: keys {list(a)} against {list(b)}"
        return next((d for k in a if (d := difference(a[k], b[k], f"{path}[{k!r}]", overflow))), None)
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return f"{path}: {a!r} against {b!r}"
        pairs = enumerate(zip(a, b, strict=True))
        return next((d for i, (p, q) in pairs if (d := difference(p, q, f"{path}[{i}]", overflow))), None)
    if isinstance(a, float):
        lost = overflow and not (math.isfinite(a) or math.isfinite(b))
        same = lost or (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-5)
        return None if same else f"{path}: {a!r} against {b!r}"
    return None if a == b else f"{path}: {a!r} against {b!r}"


def compare(program: Program, wrap):
    """Runs all calls on both sides; None, or (call index, difference)."""
    eager, fast, overflow = Side(program, lambda f: f), Side(program, wrap), False
    for i, call in enumerate(program.calls):
        overflow |= call.get("values") == "large"
        try:
            want = eager.run(call)
        except Exception:  # not the program's, which are values: its state forbids what is done around it
            return None
        if d := difference(want, fast.run(call), overflow=overflow):
            return i, d
    return None
