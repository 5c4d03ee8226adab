"""Modules and their weights, which change between calls: compiled, a program is what it is plainly (battery.py)."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import battery

CASES = battery.Cases()
case, x = CASES.add, battery.x


@case
def hooks_on_submodules(compile, call):
    net = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 4))
    fast = compile(net)
    call(fast, x())
    h = net[0][1].register_forward_hook(lambda m, a, out: out + 1)
    call(fast, x())
    k = net[0][1].register_forward_hook(lambda m, a, out: out * 3)
    call(fast, x())
    h.remove()
    call(fast, x())
    k.remove()
    call(fast, x())
    h = net[1].register_forward_pre_hook(lambda m, a, kw: ((a[0] * 2,), kw), with_kwargs=True)
    call(fast, x())
    h.remove()
    h = torch.nn.modules.module.register_module_forward_pre_hook(lambda m, a: (a[0] + 1,))
    call(fast, x())
    h.remove()
    call(fast, x())
    seen = []
    h = net[1].register_forward_hook(lambda m, a, out: seen.append(out.sum()))
    call(fast, x())
    call(fast, x())
    call.show(len(seen), *seen)
    h.remove()


@case
def parametrizations(compile, call):
    class Double(nn.Module):
        def forward(self, w):
            return w * 2

    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    fast = compile(net)
    call(fast, x())
    nn.utils.parametrize.register_parametrization(net[0], "weight", Double())
    call(fast, x())
    call(fast, x())
    net[0].parametrizations.weight.original.mul_(3)
    call(fast, x())
    with nn.utils.parametrize.cached():
        call(fast, x())
        call(fast, x())
    nn.utils.parametrizations.weight_norm(net[1])
    call(fast, x())
    net[1].parametrizations.weight.original0.mul_(2)
    call(fast, x())
    nn.utils.parametrize.remove_parametrizations(net[0], "weight")
    call(fast, x())


@case
def spectral_norm(compile, call):
    net = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
    fast = compile(net)
    for training in (False, False, True, True, False):
        net.train(training)
        call(fast, x())


@case
def weights_changed(compile, call):
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    fast = compile(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    call(fast, x())
    for _ in range(2):
        with torch.enable_grad():
            net(x()).square().sum().backward()
        optimizer.step()
        call(fast, x())
    net[0].weight.data = x(4, 4)
    call(fast, x())
    net[0].weight.data = x(4, 4).t()
    call(fast, x())
    net[2].weight = net[0].weight
    call(fast, x())
    net[0].weight.mul_(2)
    call(fast, x())
    net.load_state_dict({k: v * 2 for k, v in net.state_dict().items()}, assign=True)
    call(fast, x())
    net.load_state_dict({k: v + 1 for k, v in net.state_dict().items()})
    call(fast, x())
    nn.utils.vector_to_parameters(torch.ones(40), net.parameters())
    call(fast, x())
    net[0].bias = None
    call(fast, x())
    net[0].weight.requires_grad_(False)
    call(fast, x())
    with torch.no_grad():
        net[0].weight[1:3] = 7
    call(fast, x())
    net[0].weight.view(-1)[0] = -3
    call(fast, x())


@case
def precision_changed(compile, call):
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.LayerNorm(4))
    fast = compile(net)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float32, torch.float16, torch.float32):
        net.to(dtype)
        call(fast, x().to(dtype))
        call(fast, x().to(dtype))
    net.to("meta")
    call(fast, x())


@case
def views_of_weights(compile, call):
    m = nn.Linear(8, 4)

    def f(t):
        return t @ m.weight[:, 2:6], F.linear(t, m.weight.t()[:4]), m.weight[0] + 1, t @ m.weight.view(8, 4)[:4]

    fast = compile(f)
    for _ in range(2):
        call(fast, x())
        m.weight.mul_(2)
        call(fast, x())
        m.weight[0, 2] = 5
        call(fast, x())


@case
def weights_that_share_memory(compile, call):
    base = torch.randn(4, 8)
    a, b = base[:, :4], base[:, 4:]

    def f(t):
        return t @ a + t @ b

    fast = compile(f)
    call(fast, x())
    base.mul_(2)
    call(fast, x())
    a.add_(1)
    call(fast, x())

    def g(t):
        a.add_(1)
        return t @ base[:, :4]

    fast = compile(g)
    call(fast, x())
    call(fast, x())


@case
def batch_norm_train_and_eval(compile, call):
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.ReLU())
    fast = compile(net)
    for training in (True, True, False, True, False, False):
        net.train(training)
        call(fast, x(2, 2, 4, 4))
        call.show(*net.buffers())
    net[1].momentum = None
    net.train()
    call(fast, x(2, 2, 4, 4))
    call(fast, x(2, 2, 4, 4))
    call.show(*net.buffers())
    net[1].track_running_stats = False
    net.eval()
    call(fast, x(2, 2, 4, 4))


@case
def dropout_and_random_order(compile, call):
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.ReLU(), nn.Dropout(0.2))
    fast = compile(net)
    t = x()
    for seed in (1, 2, 1, 2):
        torch.manual_seed(seed)
        call(fast, t)
        call(fast, t)
    net.eval()
    call(fast, t)

    def f(t):
        a = torch.rand(2)
        y = t.exp().sum() * a
        b = torch.randn(3)
        c = torch.randint(0, 9, (2,))
        z = (t * 2).relu()
        d = torch.bernoulli(torch.sigmoid(t))
        return c, b, y, d + z, torch.randperm(5), torch.normal(0.0, 1.0, (2,)), torch.rand_like(t)

    fast = compile(f)
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        call(fast, t)
        call(fast, t)
    generator = torch.Generator()
    fast = compile(lambda t: t + torch.rand(4, generator=generator))
    for seed in (1, 2, 1):
        generator.manual_seed(seed)
        call(fast, t)
        call(fast, t)


@case
def an_encoder_whose_first_batch_has_no_padding(compile, call):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    fast = compile(lambda t, padding: encoder(t, src_key_padding_mask=padding))
    for padded in (0, 0, 2, 2, 1, 0):
        padding = torch.zeros(2, 5, dtype=torch.bool)
        padding[0, 5 - padded :] = True
        call(fast, x(2, 5, 8), padding)
    padding[:, 1] = True  # not at the end
    call(fast, x(2, 5, 8), padding)
    call(fast, x(2, 5, 8), None)


@pytest.mark.parametrize("program", CASES, ids=lambda program: program.__name__)
def test_as_eager(program):
    battery.check(program)
