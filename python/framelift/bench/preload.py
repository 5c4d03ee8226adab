"""What the server of bench.apart imports: the slow part of every benchmark's start, without touching a GPU."""

import contextlib

import torch  # noqa: F401

import framelift  # noqa: F401
import framelift.zoo.text  # noqa: F401
from framelift.zoo.torchvision_import import import_torchvision

with contextlib.suppress(ImportError):
    import_torchvision()
    import timm  # noqa: F401
with contextlib.suppress(ImportError):
    import transformers.models.albert.modeling_albert
    import transformers.models.bart.modeling_bart
    import transformers.models.bert.modeling_bert
    import transformers.models.distilbert.modeling_distilbert
    import transformers.models.gpt2.modeling_gpt2
    import transformers.models.t5.modeling_t5  # noqa: F401
