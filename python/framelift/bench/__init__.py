"""Benchmarks: a model compiled by framelift beside eager PyTorch, torch.compile, OpenVINO and ONNX Runtime."""

from framelift.bench.accuracy import compare
from framelift.bench.timing import interleave

__all__ = ["compare", "interleave"]
