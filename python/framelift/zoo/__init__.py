"""The models that tests, demo and benchmarks share, under their TorchBench names where they have one.

Every model is made from its configuration with fixed seeds; nothing is downloaded. load() also takes
"module:function" for a model of your own: function() returns (model, args) or (model, args, kwargs).

Adding a model is one row in vision.py or text.py.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field

SEED = 0


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


def names():
    """Every model's name, the milestone's first."""
    from framelift.zoo import text, vision

    rest = [name for builders in (vision.BUILDERS, text.BUILDERS) for name in builders]
    return [*MILESTONE, *(name for name in rest if name not in MILESTONE)]


def load(name, batch=None):
    """Builds a model; batch None is the benchmark's default for it. ValueError for an unknown name."""
    import torch

    from framelift.zoo import text, vision

    if batch is not None and batch < 1:
        raise ValueError(f"batch is {batch}; must be 1 or more")
    builder = vision.BUILDERS.get(name) or text.BUILDERS.get(name)
    if builder is None and ":" not in name:
        raise ValueError(f"no model is named {name!r}; known are {', '.join(names())}, or module:function")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        if builder is not None:
            return Entry(name, *builder(batch))
        return _load_own(name, batch)


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
