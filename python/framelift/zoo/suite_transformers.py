"""Every architecture of transformers, from a configuration that is shrunk by the names of its fields.

The ways to shrink a configuration are tried one after the other, and for each the arguments that the signature of
forward() suggests, until eager PyTorch accepts a call.
"""

from functools import partial

import torch

from framelift.zoo.suite_arguments import candidates, repaired
from framelift.zoo.suite_configs import small_configs
from framelift.zoo.suites import NotBuilt, accepted, first_line
from framelift.zoo.text import _transformers

MAX_PARAMETERS = 420_000_000
AUTO_MAPPINGS = (
    "MODEL_MAPPING_NAMES",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES",
    "MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
)


def names():
    """ "model_type/ClassName" for every model type that an auto class builds."""
    _transformers()
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    found = {}
    for mapping in AUTO_MAPPINGS:
        for model_type, classes in getattr(modeling_auto, mapping, {}).items():
            if model_type in CONFIG_MAPPING_NAMES:
                found.setdefault(model_type, classes if isinstance(classes, str) else classes[0])
    return sorted(f"{model_type}/{name}" for model_type, name in found.items())


def build(name):
    """(model, args, kwargs) in evaluation mode; NotBuilt with the reason of the smallest configuration."""
    transformers = _transformers()
    transformers.utils.logging.set_verbosity_error()
    model_type, _, class_name = name.partition("/")
    config_class = transformers.models.auto.configuration_auto.CONFIG_MAPPING[model_type]
    model_class = getattr(transformers, class_name, None)
    if model_class is None:
        raise NotBuilt(f"transformers has no {class_name}")
    if "_forward_unimplemented" in model_class.forward.__qualname__:
        raise NotBuilt("it has no forward() of its own")
    own_class = getattr(model_class, "config_class", None)
    config_class = own_class if isinstance(own_class, type) else config_class
    reasons = []
    for make in small_configs(config_class):
        try:
            config = make()
            with torch.device("meta"):
                parameters = sum(p.numel() for p in model_class(config).parameters())
            if parameters > MAX_PARAMETERS:
                raise NotBuilt(f"{parameters / 1e6:.0f} million parameters at its smallest")
            model = model_class(config).eval()
            args, kwargs = accepted(model, candidates(model, config), partial(repaired, config))
            return model, args, kwargs
        except Exception as error:  # whatever the architecture says about its configuration
            reasons.append(str(error) if isinstance(error, NotBuilt) else first_line(error))
    raise NotBuilt(reasons[0])
