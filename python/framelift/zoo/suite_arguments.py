"""Arguments for a model of transformers, guessed from the names of forward()'s parameters and its configuration."""

import inspect
import re

import torch

from framelift.zoo.suite_configs import VOCABULARY, value_of

LENGTH = 16
FRAMES = 64
GRID = 4  # patches each way of an image given as patches
_PARTS = (
    "text_config",
    "vision_config",
    "audio_config",
    "encoder",
    "encoder_config",
    "decoder",
    "backbone_config",
    "prompt_encoder_config",
)
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_IMAGES = ("pixel_values", "pixel_values_videos", "input_values", "input_features")


def candidates(model, config):
    """(args, kwargs) to try, those with most inputs first; each has what the signature asks for and is known."""
    parameters = inspect.signature(model.forward).parameters
    main = model.main_input_name
    mains = [main] if isinstance(main, str) else list(main)
    texts, decoder = _texts(parameters, config)
    found = []
    for name in _IMAGES:
        for value in _media(name, config) if name in parameters else ():
            found.append({name: value, **decoder})
            if texts:
                found.append({**texts, name: value, **decoder})
    media = {name: _media(name, config)[0] for name in _IMAGES if name in parameters}
    if len(media) > 1:
        found.append({**texts, **media, **decoder})
    text = [{**texts, **decoder}] if texts else []
    both = [c for c in found if "input_ids" in c]
    alone = [c for c in found if "input_ids" not in c]
    ordered = both + text + alone if "input_ids" in mains else alone + both + text
    rest = [{**c, **extra} for c in [*text, *both, *alone, decoder] for extra in _others(parameters, config, c)]
    rest += _with_patches(parameters, config, texts | decoder)
    rest += [c | {"input_ids": _with_image_tokens(c["input_ids"], config, 1)} for c in both]
    needed = {n: _guess(n, config) for n, p in parameters.items() if p.default is p.empty and p.kind in _NAMED}
    needed = {n: value for n, value in needed.items() if value is not None}
    full = [needed | kwargs for kwargs in ordered + rest] if needed else []
    return [((), kwargs) for kwargs in full + ordered + rest if kwargs]


def repaired(config, kwargs, error):
    """The same arguments with what an error message asks for, or None."""
    text = str(error)
    audio = next((n for n in ("input_features", "input_values") if n in kwargs), None)
    widths = re.search(r"cannot be multiplied \(\d+x\d+ and (\d+)x\d+\)|normalized_shape=\[(\d+)\]", text)
    if widths and audio:
        width = int(widths[1] or widths[2])
        if width <= 1024 and kwargs[audio].shape[-1] != width:
            return {**kwargs, audio: torch.randn(1, FRAMES, width)}
    images = kwargs.get("pixel_values")
    if widths and images is not None and images.shape[-1] != int(widths[1] or widths[2]):
        batch = (1,) if images.ndim > 2 else ()
        return {**kwargs, "pixel_values": torch.randn(*batch, GRID * GRID, int(widths[1] or widths[2]))}
    if widths and "flattened_patches" in kwargs:
        return {**kwargs, "flattened_patches": _flattened_patches(config, int(widths[1] or widths[2]))}
    series = kwargs.get("past_values")
    if "too many values to unpack (expected 2)" in text and series is not None and series.ndim == 3:
        return {**kwargs, "past_values": series[..., 0]}
    channels = re.search(r"expected input\[[\d, ]+\] to have (\d+) channels", text)
    row = audio or next((k for k, v in kwargs.items() if v.ndim == 3 and v.is_floating_point()), None)
    if channels and row and kwargs[row].ndim == 3 and kwargs[row].shape[1] != int(channels[1]):
        return {**kwargs, row: torch.randn(1, int(channels[1]), 2 * FRAMES if int(channels[1]) > 1 else 8000)}
    size = re.search(r"doesn't match model \((\d+)(?:\*(\d+))?\)", text)
    image = next((v for k, v in kwargs.items() if k.startswith("pixel_values") and v.ndim > 3), None)
    if size and image is not None and image.shape[-2:] != (int(size[1]), int(size[2] or size[1])):
        shape = (int(size[1]), int(size[2] or size[1]))
        return {k: torch.randn(*v.shape[:-2], *shape) if "pixel_values" in k else v for k, v in kwargs.items()}
    if "expected to be in range of [-3, 2], but got 3" in text and audio and kwargs[audio].ndim == 3:
        return {**kwargs, audio: kwargs[audio][:, None]}
    tokens = re.search(r"tokens: (\d+),? features:? (\d+)", text)
    if tokens and "input_ids" in kwargs and int(tokens[1]) > 0 and int(tokens[2]) <= 1024:
        return {**kwargs, "input_ids": _with_image_tokens(kwargs["input_ids"], config, int(tokens[2]))}
    if "index out of range" in text and "input_ids" in kwargs and kwargs["input_ids"].max() > 8:
        return {k: v % 7 + 1 if k.endswith("input_ids") else v for k, v in kwargs.items()}
    return _reshaped(config, kwargs, text)


def _reshaped(config, kwargs, text):
    """What an error says of the shape that a sound should have, or None."""
    audio = next((n for n in ("input_features", "input_values") if n in kwargs), None)
    size = re.search(r"size of tensor a \((\d+)\) must match the size of tensor b \((\d+)\)", text)
    if size and audio and kwargs[audio].ndim == 3 and kwargs[audio].shape[-1] == int(size[1]) < int(size[2]) <= 1024:
        return {**kwargs, audio: torch.randn(1, FRAMES, int(size[2]))}
    length = re.search(r"multiple of [^(]*\((\d+)\), but got", text)
    if length and audio and kwargs[audio].shape[-1] != int(length[1]):
        masks = {k: torch.ones(1, int(length[1]), dtype=torch.long) for k in kwargs if k.endswith("_mask")}
        bins = _field(config, "num_mel_bins", "feature_size", default=128)
        return {**kwargs, **masks, audio: torch.randn(1, bins, int(length[1]))}
    return None


def _with_image_tokens(ids, config, count):
    """Token numbers with as many places of an image among them."""
    token = _field(config, "image_token_id", "image_token_index", "media_placeholder_token_id", default=5)
    text = ids[:, :LENGTH].clone()
    text[text == token] = token - 1
    return torch.cat([text, torch.full((1, count), token)], 1)


def _with_patches(parameters, config, texts):
    """An image given as patches and a grid, with and without the texts."""
    grid = next((n for n in parameters if n.endswith("grid_thw")), None)
    name = next((n for n in ("pixel_values", "hidden_states") if n in parameters), None)
    if not grid or not name:
        return []
    given = {name: _patches(config), grid: _KNOWN["grid_thw"](config)}
    if "input_ids" not in texts:
        patch = _field(config, "patch_size", default=16)
        images = torch.randn(GRID * GRID, _field(config, "in_channels", "num_channels", default=3), patch, patch)
        return [texts | given, texts | given | {name: images}]
    return [texts | given | {"input_ids": _with_image_tokens(texts["input_ids"], config, 1)}]


def _guess(name, config):
    """What a required parameter may be, by its name, or None."""
    if name in _KNOWN:
        return _KNOWN[name](config)
    for pattern, make in _BY_ENDING.items():
        if re.fullmatch(pattern, name):
            return make(config)
    return None


def _texts(parameters, config):
    size = config.get_text_config().vocab_size if hasattr(config.get_text_config(), "vocab_size") else VOCABULARY
    size = min(size, VOCABULARY - 40) if isinstance(size, int) and size > 6 else VOCABULARY - 40
    ids = torch.randint(min(5, size - 2), size, (2, 1, LENGTH))
    codes = value_of(value_of(config, "decoder_config"), "num_channels")
    given = ids[1][..., None].expand(1, LENGTH, codes) if isinstance(codes, int) else ids[1]
    decoder = "decoder_input_ids" in parameters and (
        getattr(config, "is_encoder_decoder", False) or "input_ids" not in parameters
    )
    return {"input_ids": ids[0]} if "input_ids" in parameters else {}, {"decoder_input_ids": given} if decoder else {}


def _field(config, *keys, default, kind=(int,)):
    """The first of these fields that is set, in the configuration or in a part of it."""
    parts = [config, *(value_of(config, part) for part in _PARTS)]
    for part in [*parts, *(value_of(part, "backbone_config") for part in parts[1:])]:
        for key in keys:
            value = value_of(part, key)
            if isinstance(value, kind) and not isinstance(value, bool) and value:
                return value
    return default


def _others(parameters, config, given):
    """Further arguments: all that are required and known, then with masks, then with the other optional ones."""
    required = {n for n, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    known = {n: make for n, make in _KNOWN.items() if n in parameters and n not in given}
    made = {n: make(config) for n, make in known.items()}
    needed = {n: made[n] for n in required if n in made}
    if not required <= {*needed, *given} and required != {"kwargs"}:
        return []
    masks = {n: v for n, v in made.items() if "mask" in n or "types" in n or n.endswith("type_ids")}
    patches = _patches(config)
    found = [needed, needed | masks, needed | made]
    if "grid_thw" in required:
        tokens = {"hidden_states": patches} if "hidden_states" in parameters else {"pixel_values": patches}
        found.insert(0, needed | tokens)
    if "spatial_shapes" in parameters:
        mask = torch.ones(1, GRID * GRID, dtype=torch.long)
        shapes = _KNOWN["spatial_shapes"](config)
        given = {"pixel_values": patches[None], "pixel_attention_mask": mask, "spatial_shapes": shapes}
        found.insert(0, needed | given)
    return found


def _patches(config):
    patch = _field(config, "patch_size", default=16)
    temporal = _field(config, "temporal_patch_size", default=1)
    channels = _field(config, "in_channels", "num_channels", "in_chans", default=3)
    return torch.randn(GRID * GRID, channels * temporal * patch * patch)


def _flattened_patches(config, width=None):
    width = width or 3 * _field(config, "patch_size", default=16) ** 2
    places = torch.stack(torch.meshgrid(*[torch.arange(1.0, GRID + 1)] * 2, indexing="ij"), -1).view(1, -1, 2)
    return torch.cat([places, torch.randn(1, GRID * GRID, width)], 2)


def _hidden(config, length=8):
    return torch.randn(1, length, _field(config, "hidden_size", "d_model", default=64))


def _series(config):
    length = _field(config, "context_length", default=32)
    lags = _field(config, "lags_sequence", default=[0], kind=(list, tuple))
    channels = _field(config, "num_input_channels", "input_size", default=1)
    values = torch.randn(1, length + max(lags), channels)
    return values[..., 0] if hasattr(config, "lags_sequence") and channels == 1 else values


def _time(length):
    def make(config):
        steps = length(config)
        return torch.randn(1, steps, value_of(config, "num_time_features") or 0)

    return make


_KNOWN = {
    "attention_mask": lambda c: torch.ones(1, LENGTH, dtype=torch.long),
    "decoder_attention_mask": lambda c: torch.ones(1, LENGTH, dtype=torch.long),
    "mm_token_type_ids": lambda c: torch.zeros(1, LENGTH, dtype=torch.int),
    "token_type_ids": lambda c: torch.zeros(1, LENGTH, dtype=torch.long),
    "input_features_mask": lambda c: torch.ones(1, FRAMES, dtype=torch.long),
    "grid_thw": lambda c: torch.tensor([[1, GRID, GRID]]),
    "spatial_shapes": lambda c: torch.tensor([[GRID, GRID]]),
    "visual_feats": lambda c: torch.randn(1, 8, _field(c, "visual_feat_dim", default=64)),
    "visual_pos": lambda c: torch.rand(1, 8, _field(c, "visual_pos_dim", default=4)),
    "query_embeds": _hidden,
    "noise_embeds": _hidden,
    "context_hidden_states": _hidden,
    "encoder_hidden_states": _hidden,
    "hidden_states": lambda c: _hidden(c, LENGTH),
    "latents": lambda c: _hidden(c, LENGTH),
    "decoder_input_values": lambda c: _hidden(c, LENGTH),
    "action_embeds": _hidden,
    "merge_sizes": lambda c: torch.ones(1, dtype=torch.long),
    "target_sizes": lambda c: torch.tensor([[GRID, GRID]], dtype=torch.int32),
    "inputs_embeds": lambda c: _hidden(c, LENGTH),
    "past_values": _series,
    "past_observed_mask": lambda c: torch.ones_like(_series(c)),
    "past_time_features": _time(lambda c: _series(c).shape[1]),
    "future_time_features": _time(lambda c: _field(c, "prediction_length", default=1)),
    "future_values": lambda c: torch.randn(1, _field(c, "prediction_length", default=1)),
    "inputs": lambda c: _hidden(c, LENGTH),
    "image_embeds_position_mask": lambda c: (torch.arange(LENGTH) < _field(c, "latent_query_num", default=4))[None],
    "image_attention_mask": lambda c: torch.ones(1, LENGTH, 1, dtype=torch.long),
    "input": lambda c: torch.randn(1, 3, 64, 64),
    "input_points": lambda c: torch.tensor([[[[20.0, 30.0]]]]),
    "bbox": lambda c: torch.zeros(1, LENGTH, 4, dtype=torch.long),
    "states": lambda c: torch.randn(1, LENGTH, _field(c, "state_dim", default=17)),
    "actions": lambda c: torch.randn(1, LENGTH, _field(c, "act_dim", default=4)),
    "rewards": lambda c: torch.randn(1, LENGTH, 1),
    "returns_to_go": lambda c: torch.randn(1, LENGTH, 1),
    "timesteps": lambda c: torch.arange(LENGTH)[None],
    "flattened_patches": _flattened_patches,
    "past_values_padding": lambda c: torch.zeros(1, _field(c, "context_length", default=32), dtype=torch.long),
    "freq": lambda c: torch.zeros(1, 1, dtype=torch.long),
    "audio_mel": lambda c: torch.randn(1, FRAMES, _field(c, "input_feat_size", default=128)),
    "audio_mel_mask": lambda c: torch.zeros(1, FRAMES, dtype=torch.bool),
    "task_inputs": lambda c: torch.randint(5, 100, (1, _field(c, "task_seq_len", default=LENGTH))),
    "classes_structure": lambda c: torch.ones(1, dtype=torch.long),
    "prompt_masks": lambda c: _media("pixel_values", c)[0],
    "pixel_position_ids": lambda c: torch.stack(torch.meshgrid(*[torch.arange(GRID)] * 2, indexing="ij"), -1).view(
        1, -1, 2
    ),
    "audio_codes": lambda c: torch.zeros(1, 8, LENGTH, dtype=torch.long),
}

_BY_ENDING = {
    r".*input_ids": lambda c: torch.randint(5, 100, (1, LENGTH)),
    r".*grid_thw": _KNOWN["grid_thw"],
    r"pixel_attention_mask": lambda c: torch.ones(1, GRID * GRID, dtype=torch.long),
    r".*attention_mask": _KNOWN["attention_mask"],
    r"input_features": lambda c: _media("input_features", c)[0],
    r"(.*_)?pixel_values": lambda c: _media("pixel_values", c)[0],
}


def _media(name, config):
    """Tensors that an image, video or audio input may be."""
    if name.startswith("pixel_values"):
        kinds = (int, list, tuple)
        size = _field(config, "image_size", "input_size", "img_size", "max_img_size", default=64, kind=kinds)
        height, width = (size, size) if isinstance(size, int) else (size[-2], size[-1])
        channels = _field(config, "num_channels", "in_channels", "in_chans", default=3)
        sizes = dict.fromkeys([(height, width), (64, 64), (224, 224)])
        images = [torch.randn(1, channels, h, w) for h, w in sizes]
        frames = _field(config, "num_frames", "frames_per_clip", default=4)
        videos = [torch.randn(1, n, channels, height, width) for n in dict.fromkeys([frames, 2, 1])]
        return videos + images if name.endswith("videos") else images + videos
    keys = ("num_mel_bins", "feature_size", "input_feat_per_channel", "num_mels", "feature_projection_input_dim")
    mels = _field(config, *keys, default=80)
    frames = min(_field(config, "max_length", "num_frames", default=FRAMES), 1024)
    positions = _field(config, "max_source_positions", default=32)
    wave = torch.randn(1, 8000)
    if name == "input_values":
        return [wave, torch.randn(1, frames, mels), wave[:, None]]
    bins = dict.fromkeys([mels, 128, 80, 160, 64])
    rows = [torch.randn(1, length, m) for m in bins for length in dict.fromkeys([FRAMES, frames])]
    return [rows[0], torch.randn(1, mels, 2 * positions), *rows[1:], *(torch.randn(1, m, FRAMES) for m in bins)]
