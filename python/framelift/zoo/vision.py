"""Image models of torchvision and timm, made from their configuration."""

from functools import partial

import torch

from framelift.zoo.torchvision_import import import_torchvision

# name -> (constructor in torchvision.models, image size)
TORCHVISION = {
    "resnet18": ("resnet18", 224),
    "resnet50": ("resnet50", 224),
    "resnext50_32x4d": ("resnext50_32x4d", 224),
    "wide_resnet50_2": ("wide_resnet50_2", 224),
    "mobilenet_v2": ("mobilenet_v2", 224),
    "mobilenet_v3_large": ("mobilenet_v3_large", 224),
    "squeezenet1_1": ("squeezenet1_1", 224),
    "alexnet": ("alexnet", 224),
    "vgg16": ("vgg16", 224),
    "densenet121": ("densenet121", 224),
    "shufflenet_v2_x1_0": ("shufflenet_v2_x1_0", 224),
    "mnasnet1_0": ("mnasnet1_0", 224),
    "googlenet": ("googlenet", 224),
    "inception_v3": ("inception_v3", 299),
    "efficientnet_b0": ("efficientnet_b0", 224),
    "regnet_y_400mf": ("regnet_y_400mf", 224),
    "convnext_tiny": ("convnext_tiny", 224),
    "vit_b_16": ("vit_b_16", 224),
    "swin_t": ("swin_t", 224),
}
# name -> model in timm; the image size is the model's own
TIMM = {
    "timm_vision_transformer": "vit_small_patch16_224",
    "timm_efficientnet": "efficientnet_b0",
    "timm_resnest": "resnest14d",
    "timm_nfnet": "dm_nfnet_f0",
    "timm_regnet": "regnety_120",
    "timm_vovnet": "ese_vovnet19b_dw",
    "mixer_b16_224": "mixer_b16_224",
    "deit_tiny_patch16_224": "deit_tiny_patch16_224",
    "convnextv2_atto": "convnextv2_atto",
}
# these take init_weights, and warn when it is left out
_WITH_INIT_WEIGHTS = {"googlenet", "inception_v3"}


def calibrated(model, *args):
    """`model` in evaluation mode, its batch norms holding the statistics of these arguments.

    An untrained network with default statistics drifts to values where comparing answers means nothing, and a head
    that is initialized to zero hides them all.
    """
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear) and not layer.weight.any():
            torch.nn.init.normal_(layer.weight, std=0.02)
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


def _image(batch, size):
    return torch.randn(batch or 1, 3, size, size)


def _torchvision(name, batch):
    constructor, size = TORCHVISION[name]
    options = {"init_weights": True} if constructor in _WITH_INIT_WEIGHTS else {}
    model = getattr(import_torchvision().models, constructor)(**options)
    calibrated(model, _image(4, size))
    return model, (_image(batch, size),)


def _timm(name, batch):
    import_torchvision()
    import timm

    model = timm.create_model(TIMM[name])
    size = model.default_cfg["input_size"][-1]
    calibrated(model, _image(4, size))
    return model, (_image(batch, size),)


BUILDERS = {
    **{name: partial(_torchvision, name) for name in TORCHVISION},
    **{name: partial(_timm, name) for name in TIMM},
}
