"""Functions called in fresh processes that need not import PyTorch first.

A server process imports torch and the model libraries once, and no more: no tensor is made there and no CUDA context.
Each call is a fork of it, so what it measures is a process that has just begun, without the seconds of importing.
"""

import multiprocessing
import os
import signal
import tempfile
import traceback

from framelift.zoo.suites import first_line

PRELOAD = ["framelift.bench.preload"]


class Failed(Exception):
    """A function that raised, crashed or did not finish, in one line."""


def call(function, *, timeout, environment=None, **options):
    """function(**options), both picklable, in a process of its own. Failed in place of whatever went wrong there."""
    context = multiprocessing.get_context("forkserver")
    # so that asking whether there is a GPU does not make the server one that may not fork any more
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    context.set_forkserver_preload(PRELOAD)
    receive, send = context.Pipe(duplex=False)
    with tempfile.NamedTemporaryFile() as log:
        process = context.Process(target=_child, args=(send, log.name, environment or {}, function, options))
        process.start()
        send.close()
        try:
            kind, value = _received(receive, process, timeout)
        finally:
            _ended(process)
            receive.close()
        if kind == "ended":
            raise Failed(f"{_how(process.exitcode)}: {_last_line(log.name)}")
    if kind == "error":
        raise Failed(value)
    return value


def _received(receive, process, timeout):
    try:
        if not receive.poll(timeout):
            raise Failed(f"not finished after {timeout:.0f} s")
        return receive.recv()
    except EOFError:
        process.join()
        return "ended", None


def _ended(process):
    process.join(timeout=10)
    if process.is_alive():
        process.kill()
        process.join()


def _child(send, log, environment, function, options):
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(environment)
    try:
        send.send(("done", function(**options)))
    except Exception as error:
        traceback.print_exc()
        send.send(("error", first_line(error)))


def _how(code):
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit status {code}"


def _last_line(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = file.read().strip().splitlines()
    return lines[-1][:300] if lines else "no output"
