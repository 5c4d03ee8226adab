"""How close an answer is to the reference answer."""

import math

import torch
from torch.utils import _pytree


def tensors(answer):
    """The tensors in an answer, in order: of a tensor, tuple, dict, dataclass-like model output."""
    return [leaf for leaf in _pytree.tree_leaves(answer) if isinstance(leaf, torch.Tensor)]


def nonfinite(answer):
    """How many elements of an answer are infinite or NaN."""
    return sum(int((~t.isfinite()).sum()) for t in tensors(answer) if t.is_floating_point())


def compare(answer, reference, *, same_dtype=True):
    """(cosine, max_rel_err) over all floating-point tensors of two answers, computed in fp64.

    max_rel_err is the largest difference in a tensor over the largest magnitude in its reference. Other tensors must
    be equal. ValueError if the answers differ in structure, shape or, with same_dtype, dtype, or in where they are not
    finite.
    """
    ours, theirs = tensors(answer), tensors(reference)
    if len(ours) != len(theirs):
        raise ValueError(f"the answer has {len(ours)} tensors, the reference {len(theirs)}")
    dot = norm_ours = norm_theirs = worst = 0.0
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a.shape != b.shape or (same_dtype and a.dtype != b.dtype):
            raise ValueError(f"tensor {i} is {_described(a)}, the reference {_described(b)}")
        if not (a.is_floating_point() or a.is_complex()):
            if not torch.equal(a, b):
                raise ValueError(f"tensor {i}, {_described(a)}, is not equal to the reference")
            continue
        a, b = _flat(a), _flat(b)
        finite = b.isfinite()
        if not a[finite].isfinite().all() or not torch.equal(_special(a[~finite]), _special(b[~finite])):
            raise ValueError(f"tensor {i} is not finite in other places than the reference")
        a, b = a[finite], b[finite]
        dot += float(a @ b)
        norm_ours += float(a @ a)
        norm_theirs += float(b @ b)
        if b.numel():
            difference = float((a - b).abs().max())
            scale = float(b.abs().max())
            worst = max(worst, difference / scale if scale else (math.inf if difference else 0.0))
    if norm_theirs == 0.0:
        return (1.0 if norm_ours == 0.0 else 0.0), worst
    return dot / math.sqrt(norm_ours * norm_theirs) if norm_ours else 0.0, worst


def _flat(tensor):
    tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return tensor.detach().reshape(-1).double()


def _special(tensor):
    return tensor.nan_to_num(nan=0.5, posinf=1.0, neginf=-1.0)


def _described(tensor):
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
