"""Operators and C types that whole suites of models were found to need: one segment, nothing eager, eager's answer."""

import pytest
import torch
import torch.nn.functional as F

import framelift
from framelift.bench import compare


def named_members(x):
    largest = x.max(dim=1)
    order = x.sum(0).max(dim=0)
    return largest.values + x[:, 0], order.values


def differences(x):
    ids = (x * 8).long()
    return x.diff(), ids.diff(dim=0, prepend=ids[:1] - 1), x.diff(n=2, dim=0, append=x[:1])


def attention_in_windows(x):
    q = x.reshape(2, 3, 2, 4, 4)
    mask = (x.reshape(2, 3, 2, 4, 4) @ q.transpose(-1, -2))[:, :, :1]
    return F.scaled_dot_product_attention(q, q, q), F.scaled_dot_product_attention(q, q, q + 1, attn_mask=mask)


def norms(x):
    return x / torch.linalg.norm(x, dim=-1, keepdim=True), torch.linalg.norm(x), torch.linalg.norm(x, 3, dim=0)


@pytest.mark.parametrize("function", [named_members, differences, attention_in_windows, norms])
def test_whole(function):
    torch.manual_seed(0)
    fast = framelift.compile(function)
    with torch.inference_mode():
        for _ in range(3):
            x = torch.randn(12, 16)
            cosine, worst = compare(fast(x), function(x))
            assert cosine > 0.999999 and worst < 1e-5
    explanation = framelift.explain(fast)
    assert explanation.segments == 1 and not explanation.breaks and not explanation.give_ups
    assert explanation.replayed == 2 and not explanation.eager
