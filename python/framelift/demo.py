"""python -m framelift.demo: sentences embedded by MiniLM, and resnet50, each beside eager PyTorch.

The models are transformers' and torchvision's own, unmodified; the one change is `fast = framelift.compile(model)`.
"""

import copy
import time

import torch

import framelift
from framelift import zoo
from framelift.bench import compare, interleave

ROUNDS = 8


def main():
    torch.manual_seed(0)
    print(f"framelift {framelift.__version__}, PyTorch {torch.__version__}, {torch.get_num_threads()} threads, fp32\n")
    sentences()
    print()
    images()


def sentences():
    """Embeds sentences and prints which of them mean the same."""
    from framelift.zoo.text import SENTENCES, load_minilm

    print("MiniLM sentence model (transformers)")
    tokenizer, model = load_minilm()
    batch = dict(tokenizer(list(SENTENCES), padding=True, return_tensors="pt"))
    fast = beside_eager(model, (), batch)
    with torch.inference_mode():
        vectors = embedded(fast(**batch).last_hidden_state, batch["attention_mask"])
    similarity = vectors @ vectors.T
    similarity.fill_diagonal_(-1)
    print("  nearest sentence of each, by the compiled model:")
    for i, j in enumerate(similarity.argmax(1).tolist()):
        print(f"    {similarity[i, j]:.3f}  {SENTENCES[i]}  ->  {SENTENCES[j]}")


def embedded(hidden, mask):
    """The mean of the words' vectors, at length one."""
    weights = mask.unsqueeze(-1).float()
    return torch.nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=1)


def images():
    print("resnet50 (torchvision), one image of 224x224")
    entry = zoo.load("resnet50")
    beside_eager(entry.model, entry.args, entry.kwargs)


def beside_eager(model, args, kwargs):
    """Compiles the model, prints how it compares with eager PyTorch at its best, and returns the compiled model."""
    fast = framelift.compile(model)
    with torch.inference_mode():
        start = time.perf_counter()
        fast(*args, **kwargs)
        first = time.perf_counter() - start
        cosine, max_rel_err = compare(fast(*args, **kwargs), model(*args, **kwargs))
        contenders = {"eager": lambda: model(*args, **kwargs), "framelift": lambda: fast(*args, **kwargs)}
        if any(a.dim() == 4 for a in args):
            nhwc = copy.deepcopy(model).to(memory_format=torch.channels_last)
            nhwc_args = [a.contiguous(memory_format=torch.channels_last) for a in args]
            contenders["eager channels-last"] = lambda: nhwc(*nhwc_args, **kwargs)
        best = interleave(contenders, ROUNDS)
    eager = min(seconds for name, seconds in best.items() if name.startswith("eager"))
    explanation = framelift.explain(fast)
    print(f"  eager {eager * 1e3:.2f} ms, framelift {best['framelift'] * 1e3:.2f} ms: {eager / best['framelift']:.2f}x")
    print(f"  first call {first:.2f} s; cosine {cosine:.9f}, largest relative error {max_rel_err:.1e}")
    print(
        f"  {explanation.lowered + explanation.dead} of {explanation.operators} operators lowered, "
        f"{explanation.segments} graph(s), {explanation.engines} engine(s)"
    )
    if explanation.native_reason or explanation.eager or explanation.breaks:
        print("\n".join(f"  {line}" for line in str(explanation).splitlines()))
    return fast


if __name__ == "__main__":
    main()
