"""Small configurations of transformers' architectures, by the names of their fields.

Some architectures tie dimensions to each other in ways that no rule knows. So there are several ways to shrink,
smallest first: every dimension to a number of its own, or all of them by the factor that leaves two heads, or layers
and vocabulary alone; each in a configuration made from the smaller numbers, or in the default one, changed in place,
which keeps what belongs to each layer. Fields that a default configuration leaves open are filled in.
"""

import contextlib
import re

VOCABULARY = 512
_LAYERS = (
    r"(num_|n_|encoder_|decoder_|num_encoder_|num_decoder_|num_hidden_)?(hidden_)?(layers?|blocks)|.*_layers|depth|"
    r"num_self_attends_per_block"
)
_NOT_LAYERS = r"num_feat_extract_layers|.*feature_layers?|.*_skip_layers"
_HIDDEN = (
    r"hidden_size|hidden_dim|d_model|n_embd|dim|embed_dim|embedding_size|emb_dim|(text|vision)_embed_dim|"
    r"projection_dim|.*_hidden_size|out_hidden_size|d_latents"
)
_INNER = r"(moe_|shared_expert_|dense_|ffn_)?intermediate_size|.*ffn_dim|d_ff|n_inner|mlp_dim|intermediate_dim"
_HEADS = r"(num_|n_)?(encoder_|decoder_)?(attention_)?heads?|n_head|num_attention_heads|.*_attention_heads"
_KV_HEADS = r"num_key_value_heads|num_kv_heads|n_kv_heads"
_TIED = r".*_(groups|dim|size|channels|width)"  # the same as the hidden size where it is the same number
# field name (whole, as a pattern) -> its small value; the first row that fits counts, None leaves the field alone
_FEW = [
    (_NOT_LAYERS, None),
    (r"num_kv_shared_layers", 0),
    (_LAYERS, 2),
    (r"vocab_size|.*_vocab_size", VOCABULARY),
    (r"max_(source_|target_)?position.*|n_positions", 128),
    (r"num_(local_|routed_)?experts|n_routed_experts", 4),
    (r"num_experts_per_tok(en)?|top_k_experts|moe_top_?k|moe_k", 2),
    (r"n_group|num_expert_groups?|topk_group", 1),
    (r"latent_query_num", 4),
    (r"num_filters", 8),
    (r"max_img_size", 64),
    (r"visual_prompt_size", 8),
]
_OWN = [
    *_FEW,
    (_HIDDEN, 64),
    (_INNER, 128),
    (_KV_HEADS, 2),
    (_HEADS, 4),
    (r"head_dim|d_kv|attention_head_dim", 16),
    (r"rotary_dim", 8),
    (r"image_size", 64),
]
# heads of a size that is written into an architecture's code
_WIDE = [[(_HIDDEN, 256), (_KV_HEADS, 2), (_HEADS, 256 // size), (r"head_dim", size), *_OWN] for size in (64, 128)]


def small_configs(config_class):
    """Calls that each make a configuration; any may raise what the architecture says about it."""
    for rules, scale in (
        (_OWN, False),
        *((wide, False) for wide in _WIDE),
        (_FEW, True),
        (_FEW, False),
    ):
        for in_place in (False, True):
            yield lambda rules=rules, scale=scale, in_place=in_place: _made(config_class, rules, scale, in_place)


def _made(config_class, rules, scale, in_place):
    if in_place:
        config = config_class()
        _change(config, rules, scale)
    else:
        fields = config_class().to_dict()
        maps = "backbone_feature_sizes" in repr(fields)
        if maps:  # they follow from the size of the image
            rules = [("image_size", None), *rules]
        small = _smaller(fields, rules, scale)
        config = config_class(**(_smaller_maps(fields | small) if maps else small))
    _fill(config)
    with contextlib.suppress(AttributeError, NotImplementedError):
        config.use_cache = False
    return config


def _limits(fields, rules, scale):
    """{key: small value} of the numbers among some fields."""
    small = {}
    factor = _factor(fields) if scale else 1
    stages = _stages(fields)
    lengths = [len(v) for k, v in fields.items() if k.endswith("depths") and isinstance(v, (list, tuple))]
    for key, value in fields.items():
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        limit = next((limit for pattern, limit in rules if re.fullmatch(pattern, key)), None)
        if re.fullmatch(_LAYERS, key):
            limit = value if value in lengths else stages or limit
        if limit is not None and value > limit:
            small[key] = limit
        elif re.fullmatch(f"{_HIDDEN}|{_INNER}|{_HEADS}|{_KV_HEADS}", key) and factor > 1:
            small[key] = value // factor if value % factor == 0 else 1 if value < factor else value
    width = next((k for k in small if re.fullmatch(_HIDDEN, k)), None)
    for key, value in fields.items():
        if width and key not in small and re.fullmatch(_TIED, key) and value == fields[width]:
            small[key] = small[width]
    if {"expand", "num_heads", "head_dim", "hidden_size"} <= fields.keys():  # a state space model's heads
        now = fields | small
        small["num_heads"] = int(now["expand"] * now["hidden_size"]) // now["head_dim"]
    return small


def _stages(fields):
    """How many layers a backbone needs that gives out one stage for each layer, or 0."""
    names = fields.get("out_features") or ()
    numbers = [n for n in names if re.fullmatch(r"stage\d+", str(n))]
    return len(numbers) if "depths" not in fields and numbers and len(numbers) == len(names) else 0


def _factor(fields):
    """By what all widths of a model can be divided so that two heads are left."""
    heads = next((v for k, v in fields.items() if re.fullmatch(_HEADS, k) and isinstance(v, int)), 0)
    width = next((v for k, v in fields.items() if re.fullmatch(_HIDDEN, k) and isinstance(v, int)), 0)
    return next((f for f in range(heads // 2, 1, -1) if heads % f == 0 and width % f == 0), 1)


def _smaller(fields, rules, scale):
    small = _limits(fields, rules, scale)
    small |= _of_layers(fields, small)
    taken = VOCABULARY
    for key, value in fields.items():
        if isinstance(value, dict) and key.endswith("config") and "model_type" in value:
            small[key] = value | _smaller(value, rules, scale)
        elif key.endswith("token_id") or key.endswith("token_index"):
            if isinstance(value, int) and value >= VOCABULARY:
                taken -= 1
                small[key] = taken
            elif isinstance(value, list) and any(isinstance(v, int) and v >= VOCABULARY for v in value):
                taken -= 1
                small[key] = [taken]
        elif key.endswith("depths") and isinstance(value, (list, tuple)):
            small[key] = [min(depth, 2) if isinstance(depth, int) else depth for depth in value]
        elif key == "use_cache":
            small[key] = False
    return small


def _smaller_maps(fields):
    """Fields with images and the feature maps made of them an eighth as large."""

    def eighth(value):
        return [eighth(v) for v in value] if isinstance(value, (list, tuple)) else value // 8

    small = {}
    for key, value in fields.items():
        if isinstance(value, dict):
            small[key] = _smaller_maps(value)
        else:
            small[key] = eighth(value) if key in ("image_size", "backbone_feature_sizes") and value else value
    return small


def _of_layers(fields, small):
    """What has an entry for each layer, for the layers that are left: those that differ, in their order."""
    found = {}
    for key in (k for k in small if re.fullmatch(_LAYERS, k)):
        before, after = fields[key], small[key]
        lists = {k: v for k, v in fields.items() if isinstance(v, (list, tuple)) and len(v) == before > 2}
        own = fields.get("per_layer_config") or {}
        own = {int(k): v for k, v in own.items() if str(k).isdigit() and int(k) < before}
        kinds = {}
        for layer in range(before):
            kinds.setdefault(repr([*(v[layer] for v in lists.values()), own.get(layer)]), layer)
        kept = sorted([*kinds.values(), *(i for i in range(before) if i not in kinds.values())][:after])
        found |= {k: [v[i] for i in kept] for k, v in lists.items()}
        if own:
            found["per_layer_config"] = {i: own[layer] for i, layer in enumerate(kept) if layer in own}
    if _stages(fields):
        names = [f"stage{i + 1}" for i in range(_stages(fields))]
        found |= {"out_features": names, "stage_names": ["stem", *names], "out_indices": [*range(1, len(names) + 1)]}
    return found


def _change(config, rules, scale):
    fields = {k: v for k, v in vars(config).items() if not k.startswith("_")}
    small = _smaller({k: v for k, v in fields.items() if not hasattr(v, "to_dict")}, rules, scale)
    for key, value in small.items():
        with contextlib.suppress(AttributeError):  # a property
            setattr(config, key, value)
    for value in fields.values():
        if hasattr(value, "to_dict"):
            _change(value, rules, scale)


def value_of(config, key):
    """A field of a configuration or a dictionary; None where there is none, or where it differs between layers."""
    try:
        return config.get(key) if isinstance(config, dict) else getattr(config, key, None)
    except Exception:  # a configuration with layers of their own refuses to say it for all of them
        return None


def _fill(config):
    """What a default configuration leaves open, as a checkpoint's would have it, and what follows from other fields."""

    fields = {name: value_of(config, name) for name in vars(config)}

    def number(*names):
        found = (value_of(config, name) for name in names)
        return next((v for v in found if isinstance(v, int) and not isinstance(v, bool)), None)

    layers = number("num_hidden_layers", "num_layers", "n_layers", "depth") or 2
    heads, width = number("num_attention_heads", "n_heads", "n_head"), number("hidden_size", "d_model", "n_embd")
    named = fields.get("architecture")  # of timm
    values = {
        "vocab_size": VOCABULARY,
        "head_dim": width // heads if width and heads else None,
        "num_key_value_heads": heads,
        "layer_types": ["full_attention"] * layers,
        "mlp_layer_types": ["dense"] + ["sparse"] * (layers - 1),
        "n_routed_experts": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "top_k_experts": 2,
        "moe_intermediate_size": 128,
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "pad_token_id": 1,
        "image_token_index": 5,
        "image_token_id": 5,
        "prediction_length": 8,
        "context_length": 16,
        "vocabulary_map": {"<image>": 5},
        "model_args": {"depth": 2, "embed_dim": 64, "num_heads": 4} if "_vit_" in f"_{named}" else None,
        "default_language": next(iter(getattr(config, "languages", None) or ()), None),
    }
    for name, value in values.items():
        if name in fields and fields[name] is None and value is not None:
            with contextlib.suppress(Exception):  # a configuration may check what it is given
                setattr(config, name, value)
    rotated = number("qk_rope_head_dim")
    if rotated and fields.get("head_dim"):
        found = value_of(config, "rope_parameters") or {}
        found = [found, *(v for v in found.values() if isinstance(v, dict))]  # of all layers, or of each kind
        part = next((v["partial_rotary_factor"] for v in found if v.get("partial_rotary_factor")), None)
        config.head_dim = int(rotated / part) if isinstance(part, float) and part > 0 else rotated
    _fit_rotations(config, number("head_dim") or (width // heads if width and heads else 0))
    for value in list(vars(config).values()):
        if hasattr(value, "to_dict") and value is not config:
            _fill(value)


def _fit_rotations(config, head):
    """Sections of a head that are rotated by several positions, scaled to the head's size."""
    for name in ("rope_parameters", "rope_scaling"):
        fields = value_of(config, name)
        for section in ("mrope_section", "xdrope_section"):
            parts = fields.get(section) if isinstance(fields, dict) else None
            pairs = int(head * (fields.get("partial_rotary_factor") or 1)) // 2 if parts else 0
            if pairs and sum(parts) != pairs:
                small = [max(part * pairs // sum(parts), 1) for part in parts]
                small[0] += pairs - sum(small)
                fields[section] = small
