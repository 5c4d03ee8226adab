"""Backends: what computes a segment. Names and callables for compile(backend=...), and torch.compile's backend."""

import shutil
import time
import warnings

import torch

from framelift import fx

BUILTIN = ("framelift", "eager", "inductor", "auto")
_registered = {}


MAX_REL_ERR = 5e-3  # of a backend's answer against the recorded operators', relative to the largest element
MAX_REL_ERR_16_BIT = 5e-2  # likewise, of answers in float16 or bfloat16
AUTO_ROUNDS = 15
AUTO_SECONDS = 0.5  # of timing for each candidate of each segment
AUTO_MARGIN = 0.97  # a candidate from outside must be this much faster than ours to be worth its own guards


def list_backends():
    """Names that compile(backend=...) takes."""
    return [*BUILTIN, *sorted(_registered)]


def register_backend(name, function):
    """Makes `function(gm, example_inputs) -> callable` available as compile(backend=name), as in TorchDynamo.

    gm is a torch.fx.GraphModule of torch.ops.aten calls; its placeholders are the segment's inputs and then the model's
    weights, which stay live: the callable gets all of them on each call, and gives a tuple or list like gm's.
    """
    if not isinstance(name, str) or not name:
        raise TypeError(f"register_backend: name must be a string that is not empty, not {name!r}")
    if name in BUILTIN:
        raise ValueError(f"register_backend: {name!r} is built in")
    if not callable(function):
        raise TypeError(f"register_backend: function must be callable, not {function!r}")
    _registered[name] = function


def resolve(backend):
    """(name for C, function that C asks for each segment, or None) of compile's `backend`."""
    if isinstance(backend, str):
        if backend in ("framelift", "eager"):
            return backend, None
        if backend == "auto":
            return "framelift", _Auto()
        if backend == "inductor":
            _need_compiler()
            return "eager", _Foreign("inductor", inductor)
        if backend in _registered:
            return "eager", _Foreign(backend, _registered[backend])
        names = ", ".join(map(repr, list_backends()))
        raise ValueError(f"compile: backend is {backend!r}; must be one of {names}, or a callable")
    if not callable(backend):
        raise TypeError(f"compile: backend must be a string or a callable, not {backend!r}")
    return "eager", _Foreign(getattr(backend, "__qualname__", type(backend).__name__), backend)


def inductor(gm, example_inputs):
    """torch.compile's code generator on one segment."""
    from torch._inductor.compile_fx import compile_fx

    return compile_fx(gm, example_inputs)


def _compiler_missing():
    from torch._inductor import config

    cxx = config.cpp.cxx
    names = [name for name in (cxx if isinstance(cxx, (tuple, list)) else [cxx]) if name] or ["g++"]
    return None if any(shutil.which(name) for name in names) else ", ".join(names)


def _need_compiler():
    missing = _compiler_missing()
    if missing:
        raise RuntimeError(
            f"compile: backend 'inductor' needs a C++ compiler, and none was found ({missing}); "
            "backend 'framelift' needs none"
        )


class _Foreign:
    """Asks one backend for a callable, and takes it when its answer is eager's."""

    def __init__(self, name, function):
        self.name, self.function = name, function

    def __call__(self, segment, example_inputs, runs):
        if segment["eager"]:
            return "eager", {"name": "eager", "reason": segment["eager"]}
        call, reason = _lowered(self.function, segment, example_inputs)
        if call is None:
            return "eager", {"name": "eager", "reason": f"{self.name}: {reason}"}
        return call, {"name": self.name, "reason": None}


class _Auto:
    """Times the candidates on the recorded inputs and keeps the fastest; eager is one of them."""

    def __call__(self, segment, example_inputs, runs):
        if segment["eager"]:
            return "eager", {"name": "eager", "reason": segment["eager"], "ms": {}}
        candidates, failed, calls = dict(runs), {}, {}
        if _compiler_missing():
            failed["inductor"] = "no C++ compiler"
        else:
            call, reason = _lowered(inductor, segment, example_inputs)
            if call is None:
                failed["inductor"] = reason
            else:
                calls["inductor"] = call
                candidates["inductor"] = lambda: call(*example_inputs)
        ms = _times(candidates)
        best = min(runs, key=lambda name: ms[name])
        for name in calls:
            if ms[name] < AUTO_MARGIN * ms[best]:
                best = name
        choice = {"framelift": None, "eager": "eager"}.get(best) if best in runs else calls[best]
        return choice, {"name": best, "reason": None, "ms": ms, "failed": failed}


def _times(candidates):
    """{name: fastest milliseconds}, taking turns."""
    best = dict.fromkeys(candidates, float("inf"))
    wait = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None  # work on a GPU is asynchronous
    for run in candidates.values():
        run()
    wait()
    deadline = time.perf_counter() + AUTO_SECONDS * len(candidates)
    for _ in range(AUTO_ROUNDS):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            wait()
            best[name] = min(best[name], time.perf_counter() - start)
        if time.perf_counter() > deadline:
            break
    return {name: seconds * 1e3 for name, seconds in best.items()}


def _lowered(function, segment, example_inputs):
    """(callable, None), or (None, why not). Whatever a backend raises leaves the segment to PyTorch."""
    try:
        want = fx.graph_module(segment)(*example_inputs)
        call = function(fx.graph_module(segment), list(example_inputs))
        if not callable(call):
            return None, f"gave {type(call).__name__}, not a callable"
        reason = _difference(call(*example_inputs), want, example_inputs)
    except Exception as error:  # a backend that cannot take the segment is a result, not our failure
        lines = str(error).strip().splitlines()
        return None, f"{type(error).__name__}: {lines[0] if lines else ''}"
    return (None, reason) if reason else (call, None)


def _difference(got, want, example_inputs):
    """Why the backend's answer may not stand for the recorded operators', or None."""
    if not isinstance(got, (tuple, list)) or len(got) != len(want):
        return f"gave {type(got).__name__}, not {len(want)} tensors"
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        if not isinstance(a, torch.Tensor):
            return f"output {i} is {type(a).__name__}, not a tensor"
        for name in ("dtype", "device", "shape"):
            if getattr(a, name) != getattr(b, name):
                return f"output {i}: {name} is {getattr(a, name)}, not {getattr(b, name)}"
        if a.stride() != b.stride():
            return f"output {i}: strides are {a.stride()}, not {b.stride()}"
        if not _same(a, b):
            return f"output {i}: the answer differs from eager's"
    if _sharing(got, example_inputs) != _sharing(want, example_inputs):
        return "outputs share memory with other tensors than eager's do"
    return None


def _same(a, b):
    if a.numel() == 0:
        return True
    if not (b.is_floating_point() or b.is_complex()):
        return torch.equal(a, b)
    finite = torch.isfinite(b)
    if not torch.equal(torch.isfinite(a), finite):
        return False
    rest = ~finite
    if not torch.equal(torch.nan_to_num(a[rest]), torch.nan_to_num(b[rest])):
        return False
    a, b = a[finite], b[finite]
    if a.numel() == 0:
        return True
    dtype, wide = b.dtype, torch.complex128 if b.is_complex() else torch.float64
    a, b = a.to(wide), b.to(wide)
    limit = MAX_REL_ERR if dtype not in (torch.float16, torch.bfloat16) else MAX_REL_ERR_16_BIT
    return float((a - b).abs().max()) <= limit * max(float(b.abs().max()), 1e-30)


def _sharing(outputs, inputs):
    """For each output the first tensor, among inputs and outputs before it, whose storage it shares."""
    seen, result = {}, []
    for i, tensor in enumerate([*inputs, *outputs]):
        storage = tensor.untyped_storage().data_ptr()
        first = seen.setdefault(storage, i) if storage else i
        if i >= len(inputs):
            result.append(first)
    return result


def dynamo(gm, example_inputs):
    """The backend of `torch.compile(model, backend="framelift")`: TorchDynamo captures, framelift runs its graphs."""
    import framelift

    if torch.is_grad_enabled():
        warnings.warn(
            "framelift: torch.compile was called with grad mode on; the graph runs eagerly (framelift is for "
            "inference: use torch.no_grad() or torch.inference_mode())",
            stacklevel=2,
        )
        return gm.forward
    fixed = {i: t for i, t in enumerate(example_inputs) if isinstance(t, torch.nn.Parameter)}
    return _DynamoCall(gm, fixed, framelift)


class _DynamoCall:
    """Parameters that TorchDynamo hands over as arguments are weights: engines pack them once."""

    def __init__(self, gm, fixed, framelift):
        _ = gm.code  # a lazy GraphModule writes its forward now, not inside the first recording
        self._gm, self._fixed = gm, fixed
        parameters = [fixed.get(i) for i in range(1 + max(fixed, default=-1))]

        def forward(*inputs):
            rest = iter(inputs)
            args = [next(rest) if p is None else p for p in parameters]
            return gm.forward(*args, *rest)

        self.compiled = framelift.compile(forward)

    def __call__(self, *args):
        if torch.is_grad_enabled() or any(args[i] is not p for i, p in self._fixed.items()):
            return self._gm.forward(*args)
        return self.compiled(*(a for i, a in enumerate(args) if i not in self._fixed))
