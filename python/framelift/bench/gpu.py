"""One model's benchmark on a CUDA device, in fresh processes: see docs/benchmarks.md, On a GPU."""

import collections
import concurrent.futures
import contextlib
import copy
import functools
import gc
import os
import statistics
import subprocess
import tempfile
import time

import torch
from torch.utils._pytree import tree_map

import framelift
from framelift import _C, zoo
from framelift.bench import apart, peers
from framelift.bench.accuracy import compare, nonfinite
from framelift.bench.run import counts, until_replayed
from framelift.bench.timing import interleave
from framelift.zoo.suites import first_line

SAMPLE_SECONDS = 0.01
LATENCY_ROUNDS = 3
OVERHEAD_CALLS = 1000
WARM_CALLS = 10  # torch.compile's graphs are recorded in the second call, framelift's stages are gone after some more
DEVICE = "cuda"
MIB = 1 << 20


def why_not(dtype):
    """Why nothing can be measured on this machine's GPU, or None."""
    if not torch.cuda.is_available():
        built = torch.version.cuda
        return f"PyTorch {torch.__version__} " + ("finds no GPU here" if built else "is built without CUDA")
    if dtype == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return f"{torch.cuda.get_device_name()} has no bf16"
    return None


class Compiled:
    """What torch.compile left for models that it compiled ahead: caches in a folder, and the first calls' seconds."""

    def __init__(self, folder):
        self.environment = {v: os.path.join(folder, v) for v in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
        self.seconds = {}

    def fill(self, names, jobs, *, timeout, **options):
        """Compiles the models, `jobs` of them at a time; one that fails will fail again when it is measured."""
        environment = {**self.environment, "TORCHINDUCTOR_COMPILE_THREADS": "1"}

        def compile_one(name):
            try:
                self.seconds[name] = apart.call(
                    compile_first_call, timeout=timeout, environment=environment, name=name, **options
                )
            except apart.Failed:
                return

        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            list(pool.map(compile_one, names))


def compile_first_call(name, dtype, batch):
    """Seconds until torch.compile's first answer, and then what else it compiles in its second call."""
    call = peers.torch_compile_on_cuda(_entry(name, dtype, batch), None)
    seconds, _ = _timed(call)
    call()
    torch.cuda.synchronize()
    return seconds


def measure_apart(name, *, timeout, compiled=None, first_calls=1, **options):
    """The row of a model: see docs/benchmarks.md for its keys. "error" when it did not finish.

    `first_calls`: how many processes' first calls with warm caches are measured, each followed by one of eager's.
    """
    start = time.monotonic()
    row = {"model": name, "device": DEVICE, "dtype": options["dtype"]}
    try:
        with tempfile.TemporaryDirectory(prefix="framelift-bench-", ignore_cleanup_errors=True) as folder:
            caches = ("FRAMELIFT_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
            environment = {variable: os.path.join(folder, variable) for variable in caches}
            environment |= compiled.environment if compiled else {}
            what = {"name": name, "dtype": options["dtype"], "batch": options["batch"]}
            # so that nobody measured is the first to read libraries from disk
            apart.call(eager_first_call, timeout=timeout, environment=environment, **what)
            cold = apart.call(first_call, timeout=timeout, environment=environment, **what)
            eager, warm = [apart.call(eager_first_call, timeout=timeout, environment=environment, **what)], []
            left = timeout - (time.monotonic() - start)
            row |= apart.call(measure, timeout=max(left, 1), environment=environment, name=name, **options)
            warm.append((row["first_call_warm_s"], row["first_call_warm_ms"]))
            eager.append(apart.call(eager_first_call, timeout=timeout, environment=environment, **what))
            for _ in range(first_calls - 1):
                warm.append(apart.call(first_call, timeout=timeout, environment=environment, **what))
                eager.append(apart.call(eager_first_call, timeout=timeout, environment=environment, **what))
            row["first_call_s"], row["first_call_ms"] = cold
            row["first_call_warm_s"], row["first_call_warm_ms"] = _median_call(warm)
            row["eager_first_call_s"], row["first_calls"] = statistics.median(eager), first_calls
            if compiled and "compile_ms" in row:
                row["compile_first_call_s"] = compiled.seconds.get(name)
    except apart.Failed as error:
        row["error"] = str(error)
    row["seconds"] = time.monotonic() - start
    return row


def first_call(name, dtype, batch):
    """Seconds until the engine of a compiled model answers, in this process (see _first_call), and its stages' ms."""
    fast, seconds, _ = _first_call(_entry(name, dtype, batch))
    return seconds, _stages(fast)


def _stages(fast):
    """Milliseconds of each stage of all recordings, as `explain` has them."""
    stages = collections.Counter()
    for trace in framelift.explain(fast).traces:
        stages.update(trace.first_call_ms)
        stages.update(trace.ready_ms)
    return dict(stages)


def _median_call(calls):
    """Of (seconds, stages): the call that has as many below as above it, or one more above."""
    return sorted(calls, key=lambda call: call[0])[(len(calls) - 1) // 2]


def eager_first_call(name, dtype, batch):
    """Seconds of the model's first call in this process, without framelift."""
    entry = _entry(name, dtype, batch)
    with torch.inference_mode():
        return _timed(lambda: entry.model(*entry.args, **entry.kwargs))[0]


def measure(name, *, dtype, batch=None, against=(), rounds=10):
    """Everything else of a row."""
    entry = _entry(name, dtype, batch)
    row = {"batch": _batch(entry), **machine()}
    fast, row["first_call_warm_s"], answer = _first_call(entry)
    row["first_call_warm_ms"] = _stages(fast)
    torch.backends.cudnn.benchmark = True  # eager's best; what was recorded above ran without
    with torch.inference_mode():
        reference = entry.model(*entry.args, **entry.kwargs)
    row.update(counts(framelift.explain(fast)))
    row["nonfinite"], row["eager_nonfinite"] = nonfinite(answer), nonfinite(reference)
    row["cosine"], row["max_rel_err"] = compare(answer, reference)
    if dtype != "fp32":
        truth = _in_fp32(entry)
        row["cosine_fp32"] = _cosine(answer, truth)
        row["eager_cosine_fp32"] = _cosine(reference, truth)
        del truth
    del fast, answer, reference
    contenders, failed = _prepare(entry, against, row)
    row.update(_times(contenders, against, rounds))
    row["speedup"] = row["eager_ms"] / row["framelift_ms"]
    if failed:
        row["peer_errors"] = failed
    return row


def machine():
    """What the figures were measured on."""
    cudnn = torch.backends.cudnn.version()
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": driver_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": f"{cudnn // 10000}.{cudnn // 100 % 100}.{cudnn % 100}" if cudnn else None,
        "framelift": framelift.__version__,
    }


@functools.cache
def driver_version():
    """The NVIDIA driver's version as nvidia-smi tells it, or None."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _entry(name, dtype, batch):
    """The model on the device, and the libraries that everybody's first call would load, loaded."""
    entry = zoo.load(name, batch, device=DEVICE, dtype=dtype)
    kind = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    with torch.inference_mode():
        image = torch.ones(1, 8, 8, 8, device=DEVICE, dtype=kind)
        torch.nn.functional.conv2d(image, torch.ones(8, 8, 3, 3, device=DEVICE, dtype=kind))
        torch.mm(image[0, 0], image[0, 1])
    torch.cuda.synchronize()
    return entry


def _batch(entry):
    tensors = [t for t in (*entry.args, *entry.kwargs.values()) if isinstance(t, torch.Tensor) and t.dim()]
    return tensors[0].shape[0] if tensors else None


def _first_call(entry):
    """(compiled, seconds, answer), see until_replayed."""
    fast = framelift.compile(entry.model)
    with torch.inference_mode():
        seconds, answer = until_replayed(fast, lambda: _timed(lambda: fast(*entry.args, **entry.kwargs)))
    return fast, seconds, answer


def _cosine(answer, truth):
    """None where they cannot be compared: overflow in few bits, say."""
    try:
        return compare(answer, truth, same_dtype=False)[0]
    except ValueError:
        return None


def _in_fp32(entry):
    """The answer of the same weights and inputs, computed by PyTorch in full fp32."""
    model = copy.deepcopy(entry.model)
    if isinstance(model, torch.nn.Module):
        model = model.float()
    args, kwargs = tree_map(_full, (entry.args, entry.kwargs))
    tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.inference_mode():
            return model(*args, **kwargs)
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = tf32


def _full(value):
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


# --- contenders and the memory each takes ---


def _prepare(entry, against, row):
    """({name: function()}, {peer: error}); puts memory and first calls into the row."""

    fast = framelift.compile(entry.model)
    prepare = {
        "eager": lambda: peers.eager(entry, None),
        "framelift": lambda: peers.inference(fast, entry.args, entry.kwargs),
    }
    if _is_image(entry):
        prepare["eager_channels_last"] = lambda: peers.eager_channels_last(entry, None)
    prepare |= {peer: functools.partial(peers.CUDA_PEERS[peer], entry, None) for peer in against}
    weights = sum(t.nbytes for t in _state(entry.model))
    contenders, failed = {}, {}
    for name, make in prepare.items():
        shared = weights if name in ("eager", "framelift") else 0
        try:
            contenders[name], seconds, memory, torchs = _prepared(make)
        except Exception as error:
            if name not in against:
                raise
            failed[name] = first_line(error)  # a peer that cannot take the model is a result, not our failure
            continue
        row[f"{name}_mib"] = (memory + shared) / MIB
        row[f"{name}_pytorch_mib"] = {kind: n / MIB for kind, n in torchs.items()}
        if name == "framelift":
            row["framelift_memory_mib"] = {k: n / MIB for k, n in framelift.explain(fast).memory.items() if n}
        if name in against:
            row[f"{name}_first_call_s"] = seconds
    with torch.inference_mode(), contextlib.suppress(RuntimeError, ValueError):  # where no trace fits, there is none
        row["overhead_us"] = _C.overhead(fast, entry.args, entry.kwargs, OVERHEAD_CALLS)
    return contenders, failed


def _prepared(make):
    """(function, seconds of making it and its first call, bytes it keeps and a call takes, PyTorch's share)."""
    before, before_torch = _device_bytes(), _torch_bytes()
    start = time.perf_counter()
    function = make()
    function()
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    for _ in range(WARM_CALLS):
        function()
    kept = _device_bytes() - before
    torchs = {kind: n - before_torch[kind] for kind, n in _torch_bytes().items()}
    torch.cuda.reset_peak_memory_stats()
    allocated = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    call = torch.cuda.max_memory_allocated() - allocated
    return function, seconds, kept + call, torchs | {"call": call}


def _device_bytes():
    """What the driver has given to anyone, after PyTorch has handed back what it only keeps for later."""
    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return total - free


def _torch_bytes():
    """Of what the driver gave out: what went to PyTorch's allocator, and what of that is in use."""
    return {"reserved": torch.cuda.memory_reserved(), "allocated": torch.cuda.memory_allocated()}


def _state(model):
    """Parameters and buffers, those that share memory once."""
    tensors = model.state_dict().values() if isinstance(model, torch.nn.Module) else ()
    return {t.untyped_storage().data_ptr(): t for t in tensors}.values()


def _is_image(entry):
    return any(isinstance(a, torch.Tensor) and a.dim() == 4 for a in entry.args)


def _times(contenders, against, rounds):
    timing = {"synchronize": torch.cuda.synchronize, "keep": statistics.median}
    many = interleave(contenders, rounds, sample_seconds=SAMPLE_SECONDS, **timing)
    one = interleave(contenders, min(rounds, LATENCY_ROUNDS), sample_seconds=0, **timing)
    layout = min((name for name in many if name.startswith("eager")), key=many.get)
    times = {"eager_layout": layout}
    for name, found in {"eager": layout, "framelift": "framelift", **{peer: peer for peer in against}}.items():
        times[f"{name}_ms"] = many[found] * 1e3 if found in many else None
        times[f"{name}_latency_ms"] = one[found] * 1e3 if found in one else None
    return times


def _timed(function):
    torch.cuda.synchronize()
    start = time.perf_counter()
    result = function()
    torch.cuda.synchronize()
    return time.perf_counter() - start, result
