"""Whole model suites, at the smallest size at which each model can be built and called.

names(suite) lists every model; load(suite, name) builds one, finds arguments that eager PyTorch accepts, and returns an
Entry. NotBuilt, with the reason, where that does not succeed. Nothing is downloaded.
"""

import contextlib

import torch

from framelift.zoo import SEED, Entry
from framelift.zoo.torchvision_import import import_torchvision

SUITES = ("torchvision", "timm", "transformers")
IMAGE_SIZES = (64, 128, 224, 299)
CALIBRATION_BATCH = 4
# marks of the small members of a family, smallest first
_SMALL = ("atto", "femto", "pico", "nano", "zepto", "xxs", "_xs", "tiny", "_xt", "_s0", "_b0", "_f0", "mini", "small")


class NotBuilt(Exception):
    """A model of a suite that could not be built or called without framelift."""


def names(suite):
    """The names of every model of a suite, sorted. ImportError where its package is not installed."""
    return {"torchvision": _torchvision_names, "timm": _timm_names, "transformers": _transformers_names}[suite]()


def load(suite, name):
    """An Entry whose model is in evaluation mode and whose arguments eager PyTorch accepts; or NotBuilt."""
    build = {"torchvision": _torchvision, "timm": _timm, "transformers": _transformers}[suite]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model, args, kwargs = build(name)
    return Entry(name, model, args, kwargs)


def first_line(error):
    """An exception in one line, its second line where the first only announces it."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    text = " ".join(lines[:2]) if lines and lines[0].endswith(":") else "".join(lines[:1])
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def accepted(model, candidates, repaired=lambda kwargs, error: None):
    """The first (args, kwargs) that a model takes; NotBuilt with the first candidate's error where it takes none.

    repaired(kwargs, error) may give other arguments to try after an error.
    """
    errors = []
    for args, kwargs in candidates:
        for _ in range(3):
            try:
                with torch.no_grad():
                    model(*args, **kwargs)
                return args, kwargs
            except Exception as error:  # whatever a model's code raises about its arguments
                errors.append(first_line(error))
                kwargs = repaired(kwargs, error)
            if kwargs is None:
                break
    raise NotBuilt(f"no arguments fit: {errors[0] if errors else 'none are known for its signature'}")


def _image_model(model, sizes):
    from framelift.zoo.vision import calibrated

    model = model.eval()
    (image,), _ = accepted(model, [((torch.randn(1, 3, size, size),), {}) for size in sizes])
    calibrated(model, torch.randn(CALIBRATION_BATCH, *image.shape[1:]))
    return model, (image,), {}


def _torchvision_names():
    models = import_torchvision().models
    return sorted(models.list_models(module=models))


def _torchvision(name):
    options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    return _image_model(import_torchvision().models.get_model(name, weights=None, **options), IMAGE_SIZES)


def _timm_names():
    """ "module/model": of each module the model whose name sounds smallest."""
    import_torchvision()
    import timm

    def rank(name):
        mark = next((i for i, mark in enumerate(_SMALL) if mark in name), len(_SMALL))
        return name.startswith("test_"), mark, len(name), name

    chosen = {module: timm.list_models(module=module) for module in timm.list_modules()}
    return sorted(f"{module}/{min(models, key=rank)}" for module, models in chosen.items() if models)


def _timm(name):
    import_torchvision()
    import timm

    name = name.partition("/")[2]
    model = timm.create_model(name)
    default = model.default_cfg["input_size"][-1]
    fixed = model.default_cfg.get("fixed_input_size")
    if fixed and default > IMAGE_SIZES[-1]:  # made for another size where it takes one
        with contextlib.suppress(TypeError):
            model, default = timm.create_model(name, img_size=IMAGE_SIZES[2]), IMAGE_SIZES[2]
    return _image_model(model, [default] if fixed else [*(s for s in IMAGE_SIZES if s < default), default])


def _transformers_names():
    from framelift.zoo.suite_transformers import names

    return names()


def _transformers(name):
    from framelift.zoo.suite_transformers import build

    return build(name)
