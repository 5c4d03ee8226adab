"""Everyone a model is measured against, each at its best: prepare(entry, threads) -> function().

A function() makes one call and returns nothing of interest. Peers that run outside PyTorch get their inputs as numpy
arrays made beforehand, so that converting tensors is not held against them.
"""

import contextlib
import copy
import io
import logging
import warnings

import torch

from framelift.bench.accuracy import tensors


def eager(entry, threads):
    """PyTorch as it is, under inference_mode."""
    return inference(entry.model, entry.args, entry.kwargs)


def eager_channels_last(entry, threads):
    """Eager with weights and images in channels-last layout; None where nothing has four dimensions."""
    if not any(isinstance(a, torch.Tensor) and a.dim() == 4 for a in entry.args):
        return None
    model = copy.deepcopy(entry.model).to(memory_format=torch.channels_last)
    args = tuple(
        a.contiguous(memory_format=torch.channels_last) if isinstance(a, torch.Tensor) and a.dim() == 4 else a
        for a in entry.args
    )
    return inference(model, args, entry.kwargs)


def torch_compile(entry, threads):
    """torch.compile with weights frozen into the graph, its fastest way on a CPU."""
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(entry.model), options={"freezing": True})
    function = inference(compiled, entry.args, entry.kwargs)
    function()
    return function


def openvino(entry, threads):
    """OpenVINO's own runtime on the converted model, fp32, tuned for latency."""
    import openvino as ov

    example = entry.kwargs or (entry.args if len(entry.args) > 1 else entry.args[0])
    with _quiet(), torch.no_grad():
        converted = ov.convert_model(entry.model, example_input=example)
    tensors = _by_name([port.get_any_name() for port in converted.inputs], entry)
    for port, tensor in zip(converted.inputs, tensors, strict=True):
        port.get_node().set_partial_shape(ov.PartialShape(list(tensor.shape)))
    converted.validate_nodes_and_infer_types()
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = ov.compile_model(converted, "CPU", options).create_infer_request()
    arrays = [t.numpy() for t in tensors]
    return lambda: request.infer(arrays, share_inputs=True, share_outputs=True)


def onnxruntime(entry, threads):
    """ONNX Runtime on the exported model with every graph optimization."""
    import onnxruntime as ort

    with _quiet(), torch.no_grad():
        program = torch.onnx.export(entry.model, entry.args, kwargs=entry.kwargs, dynamo=True, verbose=False)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    model = program.model_proto.SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    feed = {n: t.numpy() for n, t in zip(names, _by_name(names, entry), strict=True)}
    return lambda: session.run(None, feed)


def torch_compile_on_cuda(entry, threads):
    """torch.compile with CUDA graphs. The next call overwrites its answer, so a copy is handed out, as others do."""
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(entry.model), mode="reduce-overhead")
    args, kwargs = entry.args, entry.kwargs

    def call():
        torch.compiler.cudagraph_mark_step_begin()
        with torch.inference_mode():
            answer = compiled(*args, **kwargs)
            return answer.clone() if isinstance(answer, torch.Tensor) else [t.clone() for t in tensors(answer)]

    return call


# name -> prepare; the names are those of `framelift bench --against` and of the results' "<name>_ms"
PEERS = {"compile": torch_compile, "openvino": openvino, "onnxruntime": onnxruntime}
HALF_PEERS = {"compile": torch_compile}  # of 16-bit models on the CPU
CUDA_PEERS = {"compile": torch_compile_on_cuda}


def inference(model, args, kwargs):
    """function() that calls a model under inference_mode."""

    def call():
        with torch.inference_mode():
            return model(*args, **kwargs)

    return call


def _by_name(names, entry):
    """The entry's tensors in the order of an exported model's inputs: positional ones first, then by name."""
    return [*entry.args, *(entry.kwargs[name] for name in names[len(entry.args) :])]


@contextlib.contextmanager
def _quiet():
    """Exporters print progress and warnings of their own."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    sink = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
