"""Recorded segments as torch.fx.GraphModules of torch.ops.aten calls."""

import operator

import torch

from framelift import _C

_CONST, _VALUE, _LIST, _TUPLE = range(4)


class Unsupported(RuntimeError):
    """A segment that cannot be written as a GraphModule."""


def graph_modules(compiled):
    """[GraphModule] of every segment of every trace of a compiled callable, in recorded order.

    Each takes the segment's inputs, then the weights it reads (`gm.weights`, the model's own tensors), and gives a
    tuple of what later segments and the call's result need.
    """
    return [graph_module(segment) for trace in _C.segments(compiled) for segment in trace]


def graph_module(segment):
    """The GraphModule of one segment, given as the dict of `_C.segments`."""
    graph = torch.fx.Graph()
    of = {}
    for i, value in enumerate(segment["inputs"]):
        of[value] = graph.placeholder(f"input_{i}")
    for i, (value, tensor) in enumerate(segment["weights"]):
        of[value] = graph.placeholder(f"weight_{i}")
        of[value].meta["weight"] = tensor
    for recorded in segment["nodes"]:
        _add(graph, of, *recorded)
    graph.output(tuple(of[value] for value in segment["outputs"]))
    module = torch.fx.GraphModule(torch.nn.Module(), graph, "Segment")
    module.weights = tuple(tensor for _, tensor in segment["weights"])
    return module


def _add(graph, of, overload, args, kwargs, outs, file, line, module):
    node = graph.call_function(
        overload, tuple(_argument(of, a) for a in args), {name: _argument(of, a) for name, a in kwargs.items()}
    )
    node.meta["stack_trace"] = f'  File "{file}", line {line}' if file else None
    node.meta["file"], node.meta["line"], node.meta["module"] = file, line, module
    returns = overload._schema.returns
    if len(returns) == 1 and str(returns[0].type) == "Tensor":
        if outs[0] is not None:
            of[outs[0]] = node
        return
    if len(returns) > 1 and any(str(r.type) == "List[Tensor]" for r in returns):
        raise Unsupported(f"{overload} gives lists among several results")
    for i, value in enumerate(outs):
        if value is not None:
            of[value] = graph.call_function(operator.getitem, (node, i))
            of[value].meta.update(node.meta)


def _argument(of, encoded):
    kind, payload = encoded
    if kind == _CONST:
        return payload
    if kind == _VALUE:
        return of[payload]
    items = [_argument(of, item) for item in payload]
    return items if kind == _LIST else tuple(items)
