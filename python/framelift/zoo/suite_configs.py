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
    r"(num_|n_|encoder_|decoder_|num_encoder_|num_decoder_|num_hidden_)?(hidden_)?(layers?|blocks)|.*_layers|depth"
)
_NOT_LAYERS = r"num_feat_extract_layers|.*feature_layers?|num_kv_shared_layers|.*_skip_layers"
_HIDDEN = (
    r"hidden_size|hidden_dim|d_model|n_embd|dim|embed_dim|embedding_size|emb_dim|(text|vision)_embed_dim|"
    r"projection_dim|.*_hidden_size|out_hidden_size"
)
_INNER = r"(moe_|shared_expert_|dense_|ffn_)?intermediate_size|.*ffn_dim|d_ff|n_inner|mlp_dim|intermediate_dim"
_HEADS = r"(num_|n_)?(encoder_|decoder_)?(attention_)?heads?|n_head|num_attention_heads|.*_attention_heads"
_KV_HEADS = r"num_key_value_heads|num_kv_heads|n_kv_heads"
# field name (whole, as a pattern) -> its small value; the first row that fits counts, None leaves the field alone
_FEW = [
    (_NOT_LAYERS, None),
    (_LAYERS, 2),
    (r"vocab_size|.*_vocab_size", VOCABULARY),
    (r"max_(source_|target_)?position.*|n_positions", 128),
    (r"num_(local_|routed_)?experts|n_routed_experts", 4),
    (r"num_experts_per_tok|top_k_experts", 2),
]
_OWN = [
    *_FEW,
    (_HIDDEN, 64),
    (_INNER, 128),
    (_KV_HEADS, 2),
    (_HEADS, 4),
    (r"head_dim|d_kv|attention_head_dim", 16),
    (r"image_size", 64),
]


def small_configs(config_class):
    """Calls that each make a configuration; any may raise what the architecture says about it."""
    for rules, scale in ((_OWN, False), (_FEW, True), (_FEW, False)):
        for in_place in (False, True):
            yield lambda rules=rules, scale=scale, in_place=in_place: _made(config_class, rules, scale, in_place)


def _made(config_class, rules, scale, in_place):
    if in_place:
        config = config_class()
        _change(config, rules, scale)
    else:
        config = config_class(**_smaller(config_class().to_dict(), rules, scale))
    _fill(config)
    with contextlib.suppress(AttributeError, NotImplementedError):
        config.use_cache = False
    return config


def _limits(fields, rules, scale):
    """{key: small value} of the numbers among some fields."""
    small = {}
    factor = _factor(fields) if scale else 1
    for key, value in fields.items():
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        limit = next((limit for pattern, limit in rules if re.fullmatch(pattern, key)), None)
        if limit is not None and value > limit:
            small[key] = limit
        elif re.fullmatch(f"{_HIDDEN}|{_INNER}|{_HEADS}|{_KV_HEADS}", key) and factor > 1:
            small[key] = value // factor if value % factor == 0 else 1 if value < factor else value
    return small


def _factor(fields):
    """By what all widths of a model can be divided so that two heads are left."""
    heads = next((v for k, v in fields.items() if re.fullmatch(_HEADS, k) and isinstance(v, int)), 0)
    width = next((v for k, v in fields.items() if re.fullmatch(_HIDDEN, k) and isinstance(v, int)), 0)
    return next((f for f in range(heads // 2, 1, -1) if heads % f == 0 and width % f == 0), 1)


def _smaller(fields, rules, scale):
    small = _limits(fields, rules, scale)
    taken = VOCABULARY
    for key, value in fields.items():
        if isinstance(value, dict) and key.endswith("config") and "model_type" in value:
            # a list of one entry for each layer no longer fits; the sub-configuration makes it again
            rest = {k: v for k, v in value.items() if not k.endswith("layer_types")}
            small[key] = rest | _smaller(rest, rules, scale)
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
    return small


def _change(config, rules, scale):
    fields = {k: v for k, v in vars(config).items() if not k.startswith("_")}
    small = _smaller({k: v for k, v in fields.items() if not hasattr(v, "to_dict")}, rules, scale)
    before = [fields[k] for k in small if re.fullmatch(_LAYERS, k)]
    for key, value in small.items():
        setattr(config, key, value)
    for key, value in fields.items():
        if hasattr(value, "to_dict"):
            _change(value, rules, scale)
        elif isinstance(value, list) and key not in small and len(value) in before and len(value) > 2:
            setattr(config, key, value[:2])


def _fill(config):
    """What a default configuration leaves open, as a checkpoint's would have it."""

    def number(*names):
        found = (getattr(config, name, None) for name in names)
        return next((v for v in found if isinstance(v, int) and not isinstance(v, bool)), None)

    layers = number("num_hidden_layers", "num_layers", "n_layers", "depth") or 2
    heads, width = number("num_attention_heads", "n_heads", "n_head"), number("hidden_size", "d_model", "n_embd")
    values = {
        "vocab_size": VOCABULARY,
        "head_dim": width // heads if width and heads else None,
        "layer_types": ["full_attention"] * layers,
        "mlp_layer_types": ["dense"] + ["sparse"] * (layers - 1),
        "n_routed_experts": 4,
        "num_experts": 4,
        "n_shared_experts": 1,
        "pad_token_id": 1,
    }
    for name, value in values.items():
        if name in vars(config) and getattr(config, name) is None and value is not None:
            with contextlib.suppress(Exception):  # a configuration may check what it is given
                setattr(config, name, value)
    for value in list(vars(config).values()):
        if hasattr(value, "to_dict") and value is not config:
            _fill(value)
