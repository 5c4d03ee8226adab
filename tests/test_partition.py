"""A model with an operator in its middle that no engine has: engine, eager, engine, and the reason with its line."""

import inspect

import pytest
import torch

import framelift


class Middle(torch.nn.Module):
    """Layers before and after `middle`, which stays with PyTorch."""

    def __init__(self):
        super().__init__()
        self.before = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16))
        self.after = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.GELU(), torch.nn.Linear(16, 4))

    def forward(self, x):
        return self.after(self.middle(self.before(x)))


class Svd(Middle):
    op = "svd"

    def middle(self, x):
        u, s, v = torch.linalg.svd(x, full_matrices=False)
        return (u * s) @ v


class Cholesky(Middle):
    op = "cholesky"

    def middle(self, x):
        gram = x @ x.transpose(-1, -2) + torch.eye(8)
        return torch.linalg.cholesky(gram) @ x


@pytest.mark.parametrize("kind", [Svd, Cholesky])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_island_between_two_engines(watch, kind, mode):
    model = kind().eval()
    watched = watch(model)
    x = torch.randn(8, 16)
    with mode():
        assert [watched(x), watched(x), watched(torch.randn(8, 16))] == ["recorded", "replayed", "replayed"]
    e = framelift.explain(watched.fast)
    assert e.segments == 1 and not e.breaks
    assert [p.kind for p in e.partitions] == ["engine", "eager", "engine"]
    assert 0 < e.coverage < 1
    (left,) = [o for o in e.eager if kind.op in o.op]
    lines, start = inspect.getsourcelines(kind.middle)
    assert left.file == inspect.getsourcefile(kind)
    assert start <= left.line < start + len(lines) and f"linalg.{kind.op}" in lines[left.line - start]
    assert left.reason and left.count == 1
    assert left.place in str(e) and left.reason in str(e)


def test_every_operator_left_to_pytorch_has_a_reason(watch):
    def model(x):
        values, order = torch.sort(x * 2, dim=-1, descending=True)
        return values + 1, order, torch.cumprod(x.relu(), dim=0)

    watched = watch(model)
    watched(torch.randn(5, 7))
    watched(torch.randn(5, 7))
    e = framelift.explain(watched.fast)
    left = sum(o.count for o in e.eager)
    assert left == e.operators - e.lowered - e.dead
    assert all(o.reason and o.file == __file__ and o.line for o in e.eager)


def test_a_model_with_nothing_to_lower(watch):
    watched = watch(lambda x: torch.linalg.svdvals(x))
    x = torch.randn(4, 4)
    watched(x)
    watched(x)
    e = framelift.explain(watched.fast)
    assert e.engines == 0 and e.lowered == 0 and e.coverage == 0.0
