"""compile, explain, reset, refresh: the checks of their arguments, and the call into C."""

import inspect
import math
import weakref

from framelift import _C, backends
from framelift.report import Explanation

PRECISIONS = ("fp32", "fp16", "bf16")
FALLBACKS = ("eager", "error")

_MISSING = object()
_alive = weakref.WeakSet()  # every compiled callable


def compile(
    model=_MISSING,
    *,
    backend="framelift",
    precision="fp32",
    fallback="eager",
    threads=None,
    verify=True,
    tactic_ms=None,
):
    """Returns a callable that gives `model`'s answers faster. Works as a decorator too, with and without options.

    The first call with new arguments runs the model for real while recording its operators, and plans an engine for
    them; later calls check guards and run the engine, which is checked against the recorded outputs before that. What
    cannot be lowered stays eager; explain() tells what and why. Calls run without grad: compile is for inference.

    model      a torch.nn.Module, function, method or other callable; it is neither changed nor copied, and changes
               made to it later (weights, attributes, mode, hooks) take effect on the next call. What is compiled of a
               module has its attributes and may be another module's part (`model.encoder = compile(model.encoder)`);
               where the whole is compiled as well, it is one graph. Items and len() of a Sequential are those of
               `compiled.__wrapped__`
    backend    "framelift": the engine; "eager": recorded and replayed operator by operator, to see where a
               difference comes from; "inductor": torch.compile's code generator on each recorded graph; "auto": the
               fastest of all these for each graph, by timing; a name given to register_backend; or a callable
               `backend(gm, example_inputs) -> callable`, gm being a torch.fx.GraphModule of torch.ops.aten calls
    precision  what engines on a GPU compute float32 operators in: "fp32"; "fp16" or "bf16": matrix products,
               convolutions, attention and what follows them in half precision, inputs, weights and outputs as they are
               outside. Operators whose results would differ from float32's (cosine under 0.999, overflow) are found
               while an engine is checked, and stay float32. A model that is already .half() needs no option. Engines on
               the CPU compute float32 always
    fallback   "eager": a call that cannot be captured runs as plain Python; "error": it raises RuntimeError with the
               reason
    threads    threads of the engine; None: as many as torch.get_num_threads()
    verify     compare each new engine with the recorded outputs before it is used
    tactic_ms  milliseconds to spend on timing kernels against each other while building; 0: cost model alone; None: up
               to a tenth of what recording took
    """
    name, segment_backend = backends.resolve(backend)
    options = {
        "backend": name,
        "segment_backend": segment_backend,
        "precision": _one_of("precision", precision, PRECISIONS),
        "fallback": _one_of("fallback", fallback, FALLBACKS),
        "threads": _thread_count(threads),
        "verify": _boolean("verify", verify),
        "tactic_ms": None if tactic_ms is None else _milliseconds("tactic_ms", tactic_ms),
    }
    if model is _MISSING:
        return lambda decorated: _compile(decorated, options)
    return _compile(model, options)


def explain(compiled):
    """What framelift made of this compiled callable so far: an Explanation, readable with print()."""
    return Explanation(_C.report(_compiled("explain", compiled)))


def reset(compiled=None):
    """Forgets every trace and engine of this compiled callable, or of all of them; the next call records anew."""
    for each in list(_alive) if compiled is None else [_compiled("reset", compiled)]:
        _C.reset(each)


def refresh(compiled):
    """Makes the engines read all weights again on the next call.

    Needed only after an edit that PyTorch itself does not see, such as `p.data[7] = 1`, or a write through numpy to
    memory that a weight shares, where it leaves the first, middle and last elements as they are or the weight is on a
    GPU; in-place operations, load_state_dict, `p.data = t` and replaced parameters take effect without it.
    """
    _C.refresh(_compiled("refresh", compiled))


def _compile(model, options):
    compiled = _C.compile(_compilable(model), options)
    _alive.add(compiled)
    return compiled


def _compilable(model):
    if isinstance(model, _C.Compiled):
        raise ValueError(f"compile: model is already compiled: {model!r}; pass the original callable")
    if inspect.isclass(model):
        raise TypeError(f"compile: model is the class {model.__name__}; pass an instance of it")
    if not callable(model):
        raise TypeError(f"compile: model must be callable, not {_described(model)}")
    return model


def _compiled(function, compiled):
    if not isinstance(compiled, _C.Compiled):
        raise TypeError(f"{function}: compiled must come from framelift.compile, not {_described(compiled)}")
    return compiled


def _one_of(name, value, choices):
    if not isinstance(value, str):
        raise TypeError(f"compile: {name} must be a string, not {_described(value)}")
    if value not in choices:
        raise ValueError(f"compile: {name} is {value!r}; must be one of {', '.join(map(repr, choices))}")
    return value


def _thread_count(threads):
    if threads is None:
        return 0
    if isinstance(threads, bool) or not isinstance(threads, int):
        raise TypeError(f"compile: threads must be an int or None, not {_described(threads)}")
    if not 1 <= threads <= 1024:
        raise ValueError(f"compile: threads is {threads}; must be from 1 to 1024, or None for torch's number")
    return threads


def _boolean(name, value):
    if not isinstance(value, bool):
        raise TypeError(f"compile: {name} must be True or False, not {_described(value)}")
    return value


def _milliseconds(name, value):
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"compile: {name} must be a number of milliseconds, not {_described(value)}")
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"compile: {name} is {value}; must be a finite number of milliseconds, 0 or more")
    return float(value)


def _described(value):
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} of type {type(value).__name__}"
