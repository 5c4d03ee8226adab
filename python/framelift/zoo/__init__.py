"""The models that tests, demo and benchmarks share, under their TorchBench names where they have one.

Every model is made from its configuration with fixed seeds; nothing is downloaded. load() also takes
"module:function" for a model of your own: function() returns (model, args) or (model, args, kwargs).

On a GPU a model gets the batch, and a text the length, that TorchBench evaluates it with; on the CPU one picture, one
text of 128 tokens. `small` keeps a model's family, its layers few and its inputs little, so that tests are fast.

Adding a model is one row in vision.py or text.py.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field

SEED = 0
DTYPES = ("fp32", "fp16", "bf16")


@dataclass(frozen=True)
class Scale:
    """How much of a model is asked for: builders take one."""

    batch: int | None = None  # None: the device's default
    gpu: bool = False  # the sizes that a GPU is measured with
    small: bool = False


@dataclass(frozen=True)
class Entry:
    """A model in evaluation mode with the arguments of one call."""

    name: str
    model: Callable
    args: tuple = ()
    kwargs: dict = field(default_factory=dict)


# name -> module that defines it; the modules import torchvision, timm and transformers only when asked for a model
MILESTONE = (
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "squeezenet1_1",
    "timm_vision_transformer",
    "hf_Bert",
    "minilm",
)

# the models that a GPU is measured with
GPU = (
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "vgg16",
    "alexnet",
    "squeezenet1_1",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mnasnet1_0",
    "shufflenet_v2_x1_0",
    "densenet121",
    "timm_vision_transformer",
    "timm_efficientnet",
    "timm_regnet",
    "timm_resnest",
    "timm_vovnet",
    "timm_nfnet",
    "hf_Bert",
    "hf_DistilBert",
    "hf_Albert",
    "hf_GPT2",
    "hf_Bart",
    "hf_T5",
)


def names():
    """Every model's name, the milestone's first."""
    from framelift.zoo import text, vision

    rest = [name for builders in (vision.BUILDERS, text.BUILDERS) for name in builders]
    return [*MILESTONE, *(name for name in rest if name not in MILESTONE)]


def load(name, batch=None, *, device="cpu", dtype="fp32", small=False):
    """Builds a model; batch None is the benchmark's default for it on that device. ValueError for an unknown name."""
    import torch

    from framelift.zoo import text, vision

    if batch is not None and batch < 1:
        raise ValueError(f"batch is {batch}; must be 1 or more")
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; must be one of {', '.join(DTYPES)}")
    device = torch.device(device)
    builder = vision.BUILDERS.get(name) or text.BUILDERS.get(name)
    if builder is None and ":" not in name:
        raise ValueError(f"no model is named {name!r}; known are {', '.join(names())}, or module:function")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        if builder is not None:
            entry = Entry(name, *builder(Scale(batch, device.type != "cpu", small)))
        else:
            entry = _load_own(name, batch)
    return moved(entry, device, dtype)


def moved(entry, device, dtype):
    """The entry with its model and its floating-point inputs on `device` as `dtype`; fp32 changes no type."""
    import torch

    to = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    if to is None and torch.device(device).type == "cpu":
        return entry

    def move(value):
        if not isinstance(value, torch.Tensor):
            return value
        return value.to(device, to if value.is_floating_point() else None)

    model = entry.model.to(device, to) if isinstance(entry.model, torch.nn.Module) else entry.model
    args, kwargs = torch.utils._pytree.tree_map(move, entry.args), torch.utils._pytree.tree_map(move, entry.kwargs)
    return Entry(entry.name, model, args, kwargs)


def _load_own(spec, batch):
    if batch is not None:
        raise ValueError(f"batch is {batch}; {spec!r} brings its own arguments, so leave batch out")
    module_name, _, function_name = spec.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"model {spec!r}: {error}") from error
    made = function()
    if not (isinstance(made, tuple) and 2 <= len(made) <= 3 and isinstance(made[1], tuple)):
        raise ValueError(f"model {spec!r}: {function_name}() must return (model, args) or (model, args, kwargs)")
    return Entry(spec, *made)
