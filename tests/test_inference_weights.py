"""Weights that are inference tensors have no version counter: their changes are seen all the same."""

import pytest
import torch

import framelift
from conftest import assert_close


class Tables(torch.nn.Module):
    """Parameters made under inference_mode, buffers small and large, one of them an index."""

    def __init__(self, size):
        super().__init__()
        with torch.inference_mode():
            self.lin = torch.nn.Linear(size, size)
            self.register_buffer("scale", torch.rand(size) + 0.5)
            self.register_buffer("index", torch.arange(size).flip(0))
            self.register_buffer("table", torch.randn(size, size))
            self.norm = torch.nn.BatchNorm1d(size)

    def forward(self, x):
        y = torch.relu(self.norm(self.lin(x))) * self.scale
        return y @ self.table[self.index] + self.scale.sum()


CHANGES = [
    lambda m: m.lin.weight.mul_(0.5),
    lambda m: m.lin.bias.add_(1),
    lambda m: m.scale.add_(1),
    lambda m: m.index.copy_(m.index.flip(0).clone()),
    lambda m: m.table[3].zero_(),
    lambda m: m.norm.running_mean.add_(0.25),
    lambda m: m.norm.train()(torch.randn(9, m.scale.numel())) is m.norm.eval(),
    lambda m: setattr(m, "table", torch.randn_like(m.table)),
    lambda m: m.load_state_dict({k: v * 2 if v.is_floating_point() else v for k, v in m.state_dict().items()}),
]


@pytest.mark.parametrize("size", [8, 160])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_changes_of_inference_tensors_are_seen(size, mode):
    m = Tables(size).eval()
    fast, x = framelift.compile(m), torch.randn(5, size)
    with mode():
        for _ in range(3):
            assert_close(fast(x), m(x))
    e = framelift.explain(fast)
    assert e.replayed == 2 and not e.give_ups and len(e.traces) == 1 and not e.eager
    for change in CHANGES:
        with torch.inference_mode():
            change(m)
        with mode():
            for _ in range(2):
                assert_close(fast(x), m(x))
    assert not framelift.explain(fast).give_ups


def test_an_index_out_of_range_in_an_inference_tensor():
    with torch.inference_mode():
        index, table = torch.arange(4), torch.randn(4, 3)
        fast = framelift.compile(lambda x: x + table[index].sum())
        x = torch.ones(2)
        assert_close(fast(x), fast.__wrapped__(x))
        index[2] = 4
        with pytest.raises(IndexError):
            fast(x)
        index[2] = 0
        assert_close(fast(x), fast.__wrapped__(x))
        assert framelift.explain(fast).replayed == 1


def test_a_decision_on_an_inference_tensor():
    with torch.inference_mode():
        flag = torch.tensor([1.0])
        fast = framelift.compile(lambda x: x * 2 if flag > 0 else x * 3)
        x = torch.ones(2)
        assert [fast(x)[0].item(), fast(x)[0].item()] == [2, 2]
        flag.neg_()
        assert [fast(x)[0].item(), fast(x)[0].item()] == [3, 3]
        flag.neg_()
        assert [fast(x)[0].item(), fast(x)[0].item()] == [2, 2]


def test_a_cache_made_in_the_first_call():
    """As rotary embeddings and masks are kept: made under inference_mode, read by later calls."""

    class Cached(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = torch.nn.Linear(64, 64)
            self.mask = None

        def forward(self, x):
            if self.mask is None:
                self.mask = torch.full((x.shape[0], x.shape[0]), -1.0).triu(1)
            return torch.softmax(x @ x.t() + self.mask, -1) @ self.lin(x)

    m = Cached().eval()
    x = torch.randn(70, 64)
    with torch.inference_mode():
        m(x)
        fast = framelift.compile(m)
        for _ in range(3):
            assert_close(fast(x), m(x))
        m.mask.mul_(2)
        assert_close(fast(x), m(x))
    e = framelift.explain(fast)
    assert e.replayed == 3 and not e.give_ups
