"""Imports torchvision also where its binary cannot be loaded.

torchvision's wheel is linked to one build of PyTorch. Beside another one (the CPU build, say) its compiled operators
do not load, and the import then fails because Python code in it registers shape rules for two of them. None of the
models here uses those operators, so their schemas are declared, without an implementation, and the import succeeds.
"""

import importlib
import sys

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared = []  # a Library undoes its declarations when it goes


def import_torchvision():
    """The torchvision module. ImportError if it is not installed."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error) or _declared:
            raise
    import torch

    for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in SCHEMAS:
        library.define(schema)
    _declared.append(library)
    return importlib.import_module("torchvision")
