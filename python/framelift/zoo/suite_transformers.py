"""Every architecture of transformers, from a configuration that is shrunk by the names of its fields.

A configuration is tried shrunk in every dimension first, then in layers and vocabulary alone, since some architectures
tie dimensions to each other in ways that no rule knows. Arguments follow from the signature of forward(): those for
what its model's main input is, and variants of them, until eager accepts one.
"""

import contextlib
import inspect
import re

import torch

from framelift.zoo.suites import NotBuilt, accepted, first_line
from framelift.zoo.text import _transformers

LENGTH = 16
VOCABULARY = 512
MAX_PARAMETERS = 200_000_000
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
# field name (whole, as a pattern) -> its small value; the first row that fits counts
_LAYERS = (
    r"(num_|n_|encoder_|decoder_|num_encoder_|num_decoder_|num_hidden_)?(hidden_)?(layers?|blocks)|.*_layers|depth"
)
_FEW = [(_LAYERS, 2), (r"vocab_size|.*_vocab_size", VOCABULARY), (r"max_(source_|target_)?position.*|n_positions", 128)]
_SMALL = [
    *_FEW,
    (
        r"hidden_size|hidden_dim|d_model|n_embd|dim|embed_dim|embedding_size|emb_dim|(text|vision)_embed_dim|projection_dim",
        64,
    ),
    (r"(moe_|shared_expert_|dense_|ffn_)?intermediate_size|.*ffn_dim|d_ff|n_inner|mlp_dim|intermediate_dim", 128),
    (r"num_key_value_heads|num_kv_heads|n_kv_heads", 2),
    (r"(num_|n_)?(encoder_|decoder_)?(attention_)?heads?|n_head|num_attention_heads|.*_attention_heads", 4),
    (r"head_dim|d_kv|attention_head_dim", 16),
    (r"num_(local_|routed_)?experts|n_routed_experts", 4),
    (r"num_experts_per_tok|top_k_experts", 2),
    (r"image_size", 64),
]


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
    reasons = []
    for rules in (_SMALL, _FEW):
        try:
            config = shrunk(config_class, rules)
            with torch.device("meta"):
                parameters = sum(p.numel() for p in model_class(config).parameters())
            if parameters > MAX_PARAMETERS:
                raise NotBuilt(f"{parameters / 1e6:.0f} million parameters at its smallest")
            model = model_class(config).eval()
            args, kwargs = accepted(model, candidates(model, config))
            return model, args, kwargs
        except Exception as error:  # whatever the architecture says about its configuration
            reasons.append(str(error) if isinstance(error, NotBuilt) else first_line(error))
    raise NotBuilt(reasons[0])


def shrunk(config_class, rules):
    """A configuration whose fields, and those of the configurations in it, are at most what `rules` say."""
    config = config_class(**_smaller(config_class().to_dict(), rules))
    with contextlib.suppress(AttributeError, NotImplementedError):
        config.use_cache = False
    return config


def _smaller(fields, rules):
    small = {}
    taken = VOCABULARY
    for key, value in fields.items():
        if isinstance(value, dict) and key.endswith("config") and "model_type" in value:
            # a list of one entry for each layer no longer fits; the sub-configuration makes it again
            rest = {k: v for k, v in value.items() if not k.endswith("layer_types")}
            small[key] = rest | _smaller(rest, rules)
        elif key.endswith("token_id") or key.endswith("token_index"):
            if isinstance(value, int) and value >= VOCABULARY:
                taken -= 1
                small[key] = taken
            elif isinstance(value, list) and any(isinstance(v, int) and v >= VOCABULARY for v in value):
                taken -= 1
                small[key] = [taken]
        elif key == "depths" and isinstance(value, (list, tuple)):
            small[key] = [min(depth, 2) if isinstance(depth, int) else depth for depth in value]
        elif key == "use_cache":
            small[key] = False
        elif isinstance(value, int) and not isinstance(value, bool):
            limit = next((limit for pattern, limit in rules if re.fullmatch(pattern, key)), None)
            if limit is not None and value > limit:
                small[key] = limit
    return small


def candidates(model, config):
    """(args, kwargs) to try, those with most inputs first."""
    parameters = inspect.signature(model.forward).parameters
    main = model.main_input_name
    mains = [main] if isinstance(main, str) else list(main)
    encoder_decoder = getattr(config, "is_encoder_decoder", False)
    ids = torch.randint(5, VOCABULARY - 40, (2, 1, LENGTH))
    texts = {}
    if "input_ids" in parameters:
        texts["input_ids"] = ids[0]
    decoder = {"decoder_input_ids": ids[1]} if "decoder_input_ids" in parameters and encoder_decoder else {}
    found = []
    for name in ("pixel_values", "pixel_values_videos", "input_values", "input_features"):
        if name in parameters:
            for value in _media(name, config):
                found.append({name: value, **decoder})
                if texts:
                    found.append({**texts, name: value, **decoder})
    text = [{**texts, **decoder}] if texts else []
    both = [c for c in found if "input_ids" in c]
    alone = [c for c in found if "input_ids" not in c]
    ordered = both + text + alone if "input_ids" in mains else alone + both + text
    return [((), kwargs) for kwargs in ordered]


def _media(name, config):
    """Tensors that an image, video or audio input may be."""
    parts = [
        config,
        *(getattr(config, part, None) for part in ("vision_config", "audio_config", "encoder", "backbone_config")),
    ]

    def field(*keys, default):
        for part in parts:
            for key in keys:
                value = part.get(key) if isinstance(part, dict) else getattr(part, key, None)
                if isinstance(value, (int, list, tuple)) and value:
                    return value
        return default

    if name.startswith("pixel_values"):
        size = field("image_size", "input_size", "img_size", default=64)
        height, width = (size, size) if isinstance(size, int) else (size[-2], size[-1])
        channels = field("num_channels", "in_channels", "in_chans", default=3)
        channels = channels if isinstance(channels, int) else 3
        images = [torch.randn(1, channels, h, w) for h, w in dict.fromkeys([(height, width), (64, 64), (224, 224)])]
        frames = field("num_frames", "frames_per_clip", default=4)
        videos = [torch.randn(1, frames if isinstance(frames, int) else 4, channels, height, width)]
        return videos + images if name.endswith("videos") else images + videos
    mels = field("num_mel_bins", "feature_size", "input_feat_per_channel", "num_mels", default=80)
    frames = field("max_length", "num_frames", default=64)
    positions = field("max_source_positions", default=32)
    wave, rows = torch.randn(1, 8000), torch.randn(1, 64, mels)
    if name == "input_values":
        return [wave, torch.randn(1, min(frames, 1024), mels), wave[:, None]]
    return [
        rows,
        torch.randn(1, mels, 2 * positions),
        torch.randn(1, min(frames, 1024), mels),
        torch.randn(1, mels, 64),
    ]
