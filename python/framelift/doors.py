"""optimize and disable: TorchDynamo's way in, and the way out."""

import functools
import threading
from pathlib import Path

import torch

from framelift import _C, api, backends

MAX_PER_CODE = 8  # function objects of one code: past these, new ones (closures made anew) run natively
MAX_CALLABLES = 256  # in all
_PACKAGE = str(Path(__file__).parent)


def optimize(backend="framelift", **options):
    """A decorator, or a context manager: what is called inside is compiled with this backend and compile's options.

    As a decorator it is compile. In `with optimize() as o:`, on this thread, each outermost call of an nn.Module, or of
    a Python function outside torch and the standard library, that gets a tensor among its arguments is treated as if it
    had been compiled; o.compiled lists what was, for explain(). Grad mode is off inside, and calls under a grad mode
    that the block turns on again run natively. Leaving the block keeps the recordings for the next `with o:`.
    """
    return _Optimize(backend, options)


def disable(function):
    """The same function, run natively: never captured, and a call that reaches it while recording runs natively."""
    if not callable(function):
        raise TypeError(f"disable: function must be callable, not {function!r}")

    @functools.wraps(function, updated=())
    def disabled(*args, **kwargs):
        return function(*args, **kwargs)

    return disabled


class _Optimize:
    def __init__(self, backend, options):
        self._options = {"backend": backend, **options}
        backends.resolve(backend)
        api.compile(**self._options)  # wrong options are an error here, not at the first call inside
        self._by_id, self._per_code = {}, {}
        self._local = threading.local()

    @property
    def compiled(self):
        """The compiled callables of the calls inside, in order of their first call."""
        return [c for c in self._by_id.values() if c is not None]

    def __call__(self, function):
        return api.compile(function, **self._options)

    def __enter__(self):
        stack = self._local.__dict__.setdefault("stack", [])
        before = _C.door_set(self._ask)
        stack.append((before, torch.is_grad_enabled()))
        torch.set_grad_enabled(False)
        return self

    def __exit__(self, *exc):
        before, grad = self._local.stack.pop()
        _C.door_set(before)
        torch.set_grad_enabled(grad)

    def _ask(self, callable_):
        """The compiled callable for a function or module, or None to run it natively."""
        key = id(callable_)  # stays its own: what is compiled is held, and so is what is not
        if key in self._by_id:
            return self._by_id[key]
        code = getattr(callable_, "__code__", None)
        if code is not None:
            if code.co_filename.startswith(_PACKAGE) or self._per_code.get(code, 0) >= MAX_PER_CODE:
                return None
            self._per_code[code] = self._per_code.get(code, 0) + 1
        if len(self._by_id) >= MAX_CALLABLES:
            return None
        self._by_id[key] = api.compile(callable_, **self._options)
        return self._by_id[key]


_C.door_setup(disable(len).__code__, torch.nn.Module._wrapped_call_impl.__code__)
