"""Runs a small program twice, plainly and compiled, and compares all that a caller can see.

A program is a function of (compile, call): it makes what it needs, compiles it with `compile`, and makes each call
through `call(function, *args, **kwargs)`, which notes the answer or the exception. The two runs begin from the same
seed. Of tensors, type, dtype, sizes, strides, flags and values are noted, and which of the objects among arguments,
answers and whatever the program shows with `call.show` are the same or share memory.
"""

import torch

import framelift


class Cases(list):
    """The programs of a file."""

    def add(self, program):
        self.append(program)
        return program


def x(*sizes):
    return torch.randn(*(sizes or (3, 4)))


class Notes:
    def __init__(self):
        self.notes = []
        self.objects = {}  # id -> number: kept alive, so that no id is used twice
        self.alive = []
        self.memory = {}

    def number(self, o):
        if id(o) not in self.objects:
            self.objects[id(o)] = len(self.objects)
            self.alive.append(o)
        return self.objects[id(o)]

    def tensor(self, t):
        note = {"object": self.number(t), "type": type(t).__name__, "dtype": t.dtype, "shape": tuple(t.shape)}
        note |= {"layout": t.layout, "requires_grad": t.requires_grad, "conj": t.is_conj(), "neg": t.is_neg()}
        note |= {"inference": t.is_inference(), "grad_fn": t.grad_fn is not None}
        if t.layout is torch.strided and not t.is_quantized:
            note["stride"] = t.stride()
            if t.numel():
                storage = t.untyped_storage()
                self.alive.append(storage)
                note["memory"] = self.memory.setdefault(storage.data_ptr(), len(self.memory))
        with torch.no_grad():
            t = t if t.layout is not torch.strided or type(t) is torch.Tensor else t.as_subclass(torch.Tensor)
            plain = t.detach().to_dense() if t.layout is not torch.strided else t.detach()
            plain = plain.dequantize() if plain.is_quantized else plain
            note["value"] = plain.resolve_conj().resolve_neg().clone()
        return note

    def note(self, o):
        if isinstance(o, torch.Tensor):
            return self.tensor(o)
        if isinstance(o, (tuple, list)) or hasattr(o, "keys"):
            head = type(o).__name__, None if type(o) is tuple else self.number(o)
            if hasattr(o, "keys"):
                return (*head, [(k, self.note(o[k])) for k in list(o)])
            return (*head, [self.note(x) for x in o])
        if type(o) is float:  # may have been computed in float32
            return "float", torch.tensor(o, dtype=torch.float64)
        if o is None or isinstance(o, (bool, int, float, complex, str, bytes, torch.dtype, torch.device)):
            return type(o).__name__, repr(o)
        if isinstance(o, (set, frozenset)):
            return type(o).__name__, sorted(map(repr, o))
        if hasattr(o, "__dict__") and not isinstance(o, (type, torch.nn.Module)) and not callable(o):
            return type(o).__name__, self.number(o), {k: self.note(v) for k, v in vars(o).items()}
        return type(o).__name__, self.number(o)

    def show(self, *objects):
        self.notes.append([self.note(o) for o in objects])

    def __call__(self, function, *args, **kwargs):
        args_before = [self.note(a) for a in (*args, *kwargs.values())]
        try:
            answer = self.note(function(*args, **kwargs))
        except Exception as error:
            answer = "raised", type(error).__name__, str(error)
        self.notes.append((args_before, answer, [self.note(a) for a in (*args, *kwargs.values())]))


# Engines round 16-bit floats less often than eager: a last digit may differ.
TOLERANCE = {torch.bfloat16: (8e-3, 1e-5), torch.float16: (1e-3, 1e-5)}


def differ(ours, theirs, path=""):
    """Where two notes differ, or None."""
    if isinstance(theirs, torch.Tensor):
        rtol, atol = TOLERANCE.get(theirs.dtype, (2e-4, 2e-5))
        try:
            torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol, equal_nan=True, check_device=False)
        except AssertionError as error:
            return f"{path}: {error}"
        return None
    if type(ours) is not type(theirs):
        return f"{path}: {ours!r} instead of {theirs!r}"
    if isinstance(theirs, dict):
        if ours.keys() != theirs.keys():
            return f"{path}: keys {list(ours)} instead of {list(theirs)}"
        pairs = [(f"{path}.{k}", ours[k], theirs[k]) for k in theirs]
    elif isinstance(theirs, (tuple, list)):
        if len(ours) != len(theirs):
            return f"{path}: {ours!r} instead of {theirs!r}"
        pairs = [(f"{path}[{i}]", a, b) for i, (a, b) in enumerate(zip(ours, theirs, strict=True))]
    else:
        return None if ours == theirs else f"{path}: {ours!r} instead of {theirs!r}"
    for where, a, b in pairs:
        if found := differ(a, b, where):
            return found
    return None


def run(program, compiler):
    torch.manual_seed(0)
    notes = Notes()
    with torch.no_grad():
        program(compiler, notes)
    return notes.notes


def check(program, **options):
    """Raises where the compiled run differs; returns the compiled callables."""
    made = []

    def compiler(target, **more):
        made.append(framelift.compile(target, **options, **more))
        return made[-1]

    theirs = run(program, lambda target, **more: target)
    ours = run(program, compiler)
    assert len(ours) == len(theirs)
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        found = differ(a, b)
        assert found is None, f"note {i}{found}"
    return made
