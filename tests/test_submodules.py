"""Compiled modules as parts of other modules, and compiled callables that call compiled ones."""

import copy
import io

import pytest
import torch

import framelift
from conftest import assert_close


def mlp():
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 4))


class Top(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = mlp()
        self.blocks = torch.nn.ModuleList([mlp(), mlp()])
        self.register_buffer("shift", torch.ones(4))

    def forward(self, x):
        y = self.encoder(x)
        for block in self.blocks:
            if isinstance(block, torch.nn.Sequential) and not block.training:
                y = y + block(y)
        return y + self.shift


@pytest.fixture
def pair():
    plain = Top().eval()
    part = copy.deepcopy(plain)
    part.encoder = framelift.compile(part.encoder)
    part.blocks[1] = framelift.compile(part.blocks[1])
    return plain, part


def x(seed=0):
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))


def names(module):
    return [[n for n, _ in each()] for each in (module.named_modules, module.named_parameters, module.named_buffers)]


def load(module):
    module.load_state_dict({k: v * 0.5 for k, v in module.state_dict().items()})


CHANGES = [
    load,
    torch.nn.Module.double,
    torch.nn.Module.float,
    lambda m: m.apply(lambda child: child.requires_grad_(False)),
    lambda m: m.encoder.register_forward_hook(lambda module, args, answer: answer * 2),
    lambda m: m.blocks[1].add_module("more", torch.nn.Tanh()),
    torch.nn.Module.train,
    torch.nn.Module.eval,
]


def follows(function, pair):
    """Answers as the plain one of the pair, whatever is done to both."""
    plain, _ = pair
    with torch.no_grad():
        for change in [None, None, *CHANGES]:
            for module in pair if change else ():
                change(module)
            for seed in range(2):
                t = x(seed).to(plain.shift.dtype)
                assert_close(function(t), plain(t))


def test_a_compiled_module_is_a_submodule(pair):
    plain, part = pair
    assert isinstance(part.encoder, torch.nn.Sequential) and names(part) == names(plain)
    assert list(part.state_dict()) == list(plain.state_dict())
    follows(part, pair)
    assert framelift.explain(part.encoder).replayed >= 8


@pytest.mark.parametrize("copied", ["deepcopy", "save"])
def test_copies_have_compiled_submodules_of_their_own(pair, copied):
    plain, part = pair
    if copied == "save":
        file = io.BytesIO()
        torch.save(part, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = copy.deepcopy(part)
    with torch.no_grad():
        part.encoder.get_parameter("0.weight").zero_()
        assert_close(other(x()), plain(x()))
    assert framelift.explain(other.encoder).calls == 1


def test_a_compiled_module_within_another_is_part_of_its_graph(pair):
    _, part = pair
    fast = framelift.compile(part)
    follows(fast, pair)
    e = framelift.explain(fast)
    assert e.native == 0 and not e.breaks and framelift.explain(part.encoder).calls == 0


def test_compiled_functions_within_another():
    inner = framelift.compile(lambda t: t.relu() + 1)
    other = framelift.compile(lambda t: t * 2, backend="eager")

    class Method:
        scale = 3

        @framelift.compile
        def apply(self, t):
            return t * self.scale

    method = Method()
    fast = framelift.compile(lambda t: method.apply(inner(t)) - 1)
    asks_more = framelift.compile(lambda t: other(t) - 1)
    with torch.no_grad():
        for k in range(4):
            method.scale = 3 + k // 2
            assert_close(fast(x(k)), (x(k).relu() + 1) * method.scale - 1)
            assert_close(asks_more(x(k)), x(k) * 2 - 1)
    e = framelift.explain(fast)
    assert e.recorded == 2 and e.native == 0 and not e.breaks
    assert framelift.explain(asks_more).breaks and framelift.explain(other).replayed


def test_a_compiled_function_called_with_grad_gives_an_answer_without():
    inner = framelift.compile(torch.nn.Linear(4, 4))

    def f(t):
        with torch.enable_grad():
            return inner(t)

    fast = framelift.compile(f)
    for _ in range(3):
        assert not fast(x()).requires_grad


def test_functions_are_not_modules():
    fast = framelift.compile(torch.relu)
    assert not isinstance(fast, torch.nn.Module)
    with pytest.raises(TypeError, match="child module"):
        Top().encoder = fast
