"""framelift makes an unmodified PyTorch model answer faster.

fast = framelift.compile(model)
y = fast(x)                      # the first call records; later calls run an engine that was checked against it
print(framelift.explain(fast))   # what was captured, what runs in the engine, what stayed eager and why
"""

try:
    from framelift._C import EngineError
    from framelift.api import compile, explain, refresh, reset
    from framelift.backends import list_backends, register_backend
    from framelift.doors import disable, optimize
    from framelift.report import Explanation
except ModuleNotFoundError as missing:
    # Without PyTorch the evaluator alone is there, for framelift.conformance.
    if missing.name != "torch":
        raise

__version__ = "0.1.0"
__all__ = [
    "EngineError",
    "Explanation",
    "__version__",
    "compile",
    "disable",
    "explain",
    "list_backends",
    "optimize",
    "refresh",
    "register_backend",
    "reset",
]
