"""Image models of torchvision and timm, made from their configuration."""

from dataclasses import dataclass, field
from functools import partial

import torch

from framelift.zoo.torchvision_import import import_torchvision

SMALL_SIZE = 64
BRANCH_SCALE = 0.25


@dataclass(frozen=True)
class Row:
    """A model of a library: its constructor's name there, and how large it is made."""

    make: str
    gpu_batch: int = 1  # TorchBench's batch for evaluation
    size: int = 224  # of the image
    options: dict = field(default_factory=dict)
    small: dict = field(default_factory=dict)  # more options of the small one
    small_size: int = SMALL_SIZE
    small_make: str | None = None  # the family's least member, where this one has no options for it


_RESIDUAL = {"zero_init_residual": True}  # then calibrated() gives the branches the weight they have once trained
TORCHVISION = {
    "resnet18": Row("resnet18", 8, options=_RESIDUAL),
    "resnet50": Row("resnet50", 32, options=_RESIDUAL),
    "resnext50_32x4d": Row("resnext50_32x4d", 8, options=_RESIDUAL),
    "wide_resnet50_2": Row("wide_resnet50_2", 16, options=_RESIDUAL),
    "mobilenet_v2": Row("mobilenet_v2", 16),
    "mobilenet_v3_large": Row("mobilenet_v3_large", 32),
    "squeezenet1_1": Row("squeezenet1_1", 16),
    "alexnet": Row("alexnet", 16),
    "vgg16": Row("vgg16", 4, small_size=32),
    "densenet121": Row("densenet121", 64),
    "shufflenet_v2_x1_0": Row("shufflenet_v2_x1_0", 64),
    "mnasnet1_0": Row("mnasnet1_0", 32),
    "googlenet": Row("googlenet"),
    "inception_v3": Row("inception_v3", size=299, small_size=96),
    "efficientnet_b0": Row("efficientnet_b0"),
    "regnet_y_400mf": Row("regnet_y_400mf"),
    "convnext_tiny": Row("convnext_tiny"),
    "vit_b_16": Row("vit_b_16", small={"image_size": 32, "num_layers": 2}, small_size=32),
    "swin_t": Row("swin_t"),
}
_TRANSFORMER = {"img_size": 32, "depth": 2}
TIMM = {
    "timm_vision_transformer": Row("vit_small_patch16_224", 8, small=_TRANSFORMER, small_size=32),
    "timm_efficientnet": Row("efficientnet_b0", 64),
    "timm_resnest": Row("resnest14d", 32),
    "timm_nfnet": Row("dm_nfnet_f0", 128, size=192, small_size=32),
    "timm_regnet": Row("regnety_120", 32, small_make="regnety_002"),
    "timm_vovnet": Row("ese_vovnet19b_dw", 32),
    "mixer_b16_224": Row("mixer_b16_224", small={"img_size": 32, "num_blocks": 2}, small_size=32),
    "deit_tiny_patch16_224": Row("deit_tiny_patch16_224", small=_TRANSFORMER, small_size=32),
    "convnextv2_atto": Row("convnextv2_atto"),
}
# these take init_weights, and warn when it is left out
_WITH_INIT_WEIGHTS = {"googlenet", "inception_v3"}


def calibrated(model, *args):
    """`model` in evaluation mode, its batch norms holding the statistics of these arguments.

    An untrained network with default statistics drifts to values where comparing answers means nothing. And what is
    initialized to zero, a head or the last scale of each residual branch, hides all that comes before it: it gets a
    value that lets it through, branches less than their sum so that rounding errors do not grow from block to block.
    """
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] != "bias" and not parameter.any():
            _let_through(parameter)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    if norms:
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = None
            norm.reset_running_stats()
        with torch.no_grad():
            model.train()(*args)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return model.eval()


def _let_through(parameter):
    """Scales (one element, or one a channel) become BRANCH_SCALE; other weights small random numbers."""
    with torch.no_grad():
        if parameter.numel() == max(parameter.shape, default=1):
            parameter.fill_(BRANCH_SCALE)
        else:
            torch.nn.init.normal_(parameter, std=0.02)


def _made(row, scale, create):
    """(model, args) of a table's row; create(name, **options)."""
    make = row.small_make if scale.small and row.small_make else row.make
    size = row.small_size if scale.small else row.size
    model = create(make, **row.options, **(row.small if scale.small else {}))
    calibrated(model, torch.randn(4, 3, size, size))
    batch = scale.batch or (row.gpu_batch if scale.gpu and not scale.small else 1)
    return model, (torch.randn(batch, 3, size, size),)


def _torchvision(name, scale):
    def create(constructor, **options):
        if constructor in _WITH_INIT_WEIGHTS:
            options["init_weights"] = True
        return getattr(import_torchvision().models, constructor)(**options)

    return _made(TORCHVISION[name], scale, create)


def _timm(name, scale):
    import_torchvision()
    import timm

    return _made(TIMM[name], scale, timm.create_model)


BUILDERS = {
    **{name: partial(_torchvision, name) for name in TORCHVISION},
    **{name: partial(_timm, name) for name in TIMM},
}
