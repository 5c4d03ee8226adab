"""Models on a CUDA device: engines compute there, on the caller's stream, and follow what changes."""

import pytest
import torch
from torch import nn

import framelift
from framelift import _C

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

HALF = {"device": "cuda", "dtype": torch.float16}


class Block(nn.Module):
    def __init__(self, channels=16):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)) + x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def close(got, want, tolerance=2e-2):
    assert got.dtype == want.dtype and got.device == want.device and got.stride() == want.stride()
    assert (got.double() - want.double()).abs().max() <= tolerance * want.double().abs().max()


def whole(fast):
    """One segment, one engine, nothing eager."""
    e = framelift.explain(fast)
    assert (e.segments, len(e.breaks), e.engines, len(e.partitions)) == (1, 0, 1, 1), str(e)
    assert not e.native_reason and not e.eager, str(e)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_convolutional_net(dtype, mode):
    model = Net().eval().to("cuda", dtype)
    fast = framelift.compile(model)
    with mode():
        for _ in range(4):
            x = torch.randn(4, 3, 32, 32, device="cuda", dtype=dtype)
            close(fast(x), model(x))
    whole(fast)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_transformer_layer(dtype):
    model = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, activation="gelu").eval().to("cuda", dtype)
    fast = framelift.compile(model)
    with torch.no_grad():
        for _ in range(3):
            x = torch.randn(2, 33, 64, device="cuda", dtype=dtype)
            close(fast(x), model(x))


def test_weights_are_live():
    model = Net().eval().to(**HALF)
    fast = framelift.compile(model)
    x = torch.randn(4, 3, 32, 32, **HALF)
    with torch.inference_mode():
        close(fast(x), model(x))
    with torch.no_grad():
        model.head.weight.mul_(2)
        model.blocks[0].norm.running_mean.add_(1)
    with torch.inference_mode():
        close(fast(x), model(x))
        model.load_state_dict(Net().to(**HALF).state_dict())
        close(fast(x), model(x))
    assert framelift.explain(fast).recorded == 1


def test_the_callers_stream():
    model = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512)).to(**HALF)
    fast = framelift.compile(model)
    with torch.inference_mode():
        fast(torch.randn(8, 512, **HALF))
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            x = torch.zeros(8, 512, **HALF)
            torch.cuda._sleep(20_000_000)
            x.add_(torch.randn(8, 512, **HALF))  # runs late: the engine must wait for it
            y = fast(x)
        stream.synchronize()
        close(y, model(x))


def test_outputs_belong_to_the_caller():
    model = nn.Linear(64, 64).to(**HALF)
    fast = framelift.compile(model)
    with torch.inference_mode():
        xs = [torch.randn(8, 64, **HALF) for _ in range(6)]
        ys = [fast(x) for x in xs]
        for x, y in zip(xs, ys, strict=True):
            close(y, model(x))


def test_inside_the_callers_cuda_graph():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU()).to(**HALF)
    fast = framelift.compile(model)
    x = torch.randn(8, 64, **HALF)
    with torch.inference_mode():
        fast(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = fast(x)
        x.copy_(torch.randn(8, 64, **HALF))
        graph.replay()
        close(y, model(x))
        fresh = framelift.compile(model)
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            fresh(x)
        assert "captured" in framelift.explain(fresh).native_reason


def test_operators_without_a_kernel_stay_with_pytorch():
    def f(x):
        return torch.linalg.svdvals(torch.relu(x @ x) + 1).sum() + torch.tanh(x @ x).sum()

    fast = framelift.compile(f)
    with torch.inference_mode():
        for _ in range(3):
            x = torch.randn(64, 64, device="cuda")
            close(fast(x), f(x), 1e-3)


def test_tensors_on_both_devices():
    def f(x, i):
        return (x * 2 + 1).cpu() + i.to("cuda").cpu()

    fast = framelift.compile(f)
    with torch.inference_mode():
        for _ in range(3):
            x, i = torch.randn(4, 4, device="cuda"), torch.randn(4, 4)
            assert torch.allclose(fast(x, i), f(x, i))


def test_numbers_out_of_tensors():
    def f(x):
        return x * 2 if x.sum().item() > 0 else x - 1

    fast = framelift.compile(f)
    with torch.inference_mode():
        for sign in (1, -1, 1, -1):
            x = torch.ones(4, device="cuda") * sign
            assert torch.equal(fast(x), f(x))


def test_dropout_in_training_mode_is_random_and_seeded():
    model = nn.Dropout(0.5)
    fast = framelift.compile(model)
    x = torch.ones(1000, device="cuda")
    with torch.inference_mode():
        torch.manual_seed(3)
        want = [model(x) for _ in range(3)]
        torch.manual_seed(3)
        got = [fast(x) for _ in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_an_index_out_of_range_is_told():
    table = nn.Embedding(10, 4).cuda()
    fast = framelift.compile(table)
    with torch.inference_mode():
        fast(torch.tensor([1, 2], device="cuda"))
        fast(torch.tensor([1, 10], device="cuda"))
        torch.cuda.synchronize()
        with pytest.raises(framelift.EngineError, match="out of range.*earlier call"):
            fast(torch.tensor([1, 2], device="cuda"))
        close(fast(torch.tensor([1, 2], device="cuda")), table.weight[1:3])


def test_constants_made_from_numbers_in_inference_mode():
    def f(x):
        return torch.cat(
            [torch.tensor([], dtype=x.dtype, device=x.device), x * torch.tensor([2.0, 3.0], device="cuda")]
        )

    fast = framelift.compile(f)
    with torch.inference_mode():
        for _ in range(3):
            x = torch.randn(2, device="cuda")
            close(fast(x), f(x), 1e-6)
    whole(fast)


def test_data_where_the_data_before_was():
    model = nn.Linear(64, 64).to(**HALF)
    fast = framelift.compile(model)
    x, again = torch.randn(8, 64, **HALF), 0
    with torch.inference_mode():
        fast(x)
        for _ in range(5):
            before = model.weight.data_ptr()
            model.weight.data = torch.empty(0, **HALF)
            model.weight.data = torch.randn(64, 64, **HALF)
            again += model.weight.data_ptr() == before
            close(fast(x), model(x))
    assert again, "the allocator never gave the same memory"
    assert framelift.explain(fast).recorded == 1


def test_operands_at_any_address():
    """Slices that begin at no multiple of 16 bytes: of a bias, of weights, of an input."""

    class Slices(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias, self.weight = nn.Parameter(torch.randn(131)), nn.Parameter(torch.randn(64 * 64 + 1))

        def forward(self, x):
            y = nn.functional.linear(x, self.weight[1:].view(64, 64), self.bias[3:67])
            return nn.functional.layer_norm(y, (64,), self.bias[67:], self.bias[1:65]).relu()

    model = Slices().to(**HALF)
    fast = framelift.compile(model)
    with torch.inference_mode():
        for first in (0, 1, 2, 5, 8):
            x = torch.randn(8 * 64 + 16, **HALF)[first : first + 8 * 64].view(8, 64)
            for _ in range(3):
                close(fast(x), model(x))


def test_an_engine_that_goes_while_a_graph_is_captured():
    model = Net().eval().to(**HALF)
    fast = framelift.compile(model)
    x = torch.randn(2, 3, 32, 32, **HALF)
    with torch.inference_mode():
        want = fast(x)
        y, graph = torch.ones(4, device="cuda"), torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            z = y * 2
            framelift.reset(fast)
        graph.replay()
        assert torch.equal(z, torch.full_like(z, 2))
        close(fast(x), want)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one device")
def test_cuda_without_a_number_is_the_current_device():
    fast = framelift.compile(lambda: torch.ones(4, device="cuda") * 2)
    with torch.inference_mode():
        for i in (0, 1, 0, 1):
            with torch.cuda.device(i):
                assert fast().device.index == i


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one device")
def test_several_devices():
    with torch.inference_mode():
        for i in range(2):
            model = Net().eval().to(f"cuda:{i}", torch.float16)
            fast = framelift.compile(model)
            for _ in range(3):
                x = torch.randn(4, 3, 32, 32, device=f"cuda:{i}", dtype=torch.float16)
                close(fast(x), model(x))
            whole(fast)


def test_tf32_as_the_program_allows():
    model = nn.Linear(512, 512, bias=False).cuda()
    fast = framelift.compile(model)
    x = torch.randn(64, 512, device="cuda")
    want = x.double() @ model.weight.double().t()

    def error():
        return ((fast(x).double() - want).abs().max() / want.abs().max()).item()

    with torch.inference_mode():
        error()
        assert error() < 2e-6
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            error()
            assert 1e-5 < error() < 5e-3
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False
        assert error() < 2e-6
    assert framelift.explain(fast).recorded == 2


def test_memory_is_pytorchs_and_goes_back():
    import gc

    def once():
        model = Net().eval().to(**HALF)
        fast = framelift.compile(model)
        with torch.inference_mode():
            x = torch.randn(64, 3, 64, 64, **HALF)
            fast(x)
            used = torch.cuda.memory_allocated()
            fast(x)
        (part,) = framelift.explain(fast).partitions
        return used, part.arena_bytes + part.const_bytes

    once()
    gc.collect()
    before = torch.cuda.memory_allocated()
    used, planned = once()
    assert used - before >= planned
    gc.collect()
    assert torch.cuda.memory_allocated() == before


def test_memory_is_told():
    model = Net().eval().to(**HALF)
    fast = framelift.compile(model)
    x = torch.randn(64, 3, 64, 64, **HALF)
    with torch.inference_mode():
        for _ in range(8):
            fast(x)  # each answer lies where the one before it did
    explanation = framelift.explain(fast)
    (part,) = explanation.partitions
    held = explanation.memory
    assert held["arena"] == part.arena_bytes
    assert held["stages"] == 0
    assert part.memory["programs"] >= 1
    made = ("computed", "literals", "joined", "copied", "packed")
    assert sum(held[kind] for kind in made) == part.const_bytes


def test_sizes_share_what_is_made_of_weights():
    import gc

    gc.collect()
    before, model = _C.constants(), Block(64).eval().to(**HALF)
    fast = framelift.compile(model)

    def call(fast, order, times=2):
        with torch.inference_mode():
            for size in order:
                x = torch.randn(2, 64, size, size, **HALF)
                for _ in range(times):
                    close(fast(x), model(x))

    call(fast, [16], 4)
    one = _C.constants()
    assert one > before
    call(fast, [24, 32])
    assert _C.constants() == one
    recorded = framelift.explain(fast).recorded
    for i in range(6):
        with torch.no_grad():
            if i % 3 == 0:
                model.conv.weight.mul_(1.5)
            elif i % 3 == 1:
                model.conv.weight.data = model.conv.weight.detach() * 0.5
            else:
                model.norm.weight.data.add_(0.5)
                framelift.refresh(fast)
        call(fast, [(16, 24, 32), (24, 16, 32), (32, 24, 16)][i % 3])
        assert _C.constants() == one
    explanation = framelift.explain(fast)
    assert explanation.recorded == recorded and len(explanation.traces) == 3
    assert sum(p.memory["shared"] > 0 for p in explanation.partitions) == 2
    del fast, explanation
    gc.collect()
    assert _C.constants() == before


def test_what_eager_left_is_not_kept():
    def outer(x):
        return ((x[:, None] * x[None]).float().relu() + x).half().sum(-1)  # eager makes 256 and 512 MiB several times

    x = torch.randn(512, 512, **HALF)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    fast = framelift.compile(outer)
    with torch.inference_mode():
        for _ in range(8):
            answer = fast(x)
    torch.cuda.empty_cache()
    kept = torch.cuda.memory_reserved() - before
    held = sum(n for kind, n in framelift.explain(fast).memory.items() if kind != "graphs")
    assert kept <= held + (64 << 20), (kept, held)
    close(answer, outer(x))


def test_statistics_that_training_wrote():
    model = Net().eval().to(**HALF)
    fast = framelift.compile(model)
    x = torch.randn(4, 3, 32, 32, **HALF)
    with torch.inference_mode():
        fast(x)
    with torch.no_grad():
        model.train()
        model(x * 3 + 1)  # writes running statistics, which count no version
        model.eval()
    with torch.inference_mode():
        for _ in range(2):
            close(fast(x), model(x))
    assert not framelift.explain(fast).native


def test_what_waits_for_a_decision():
    """Only operators whose integers may be no index, or a divisor of zero, are held back until it is certain."""
    table, x = torch.randn(10, 4, device="cuda"), torch.randn(3, 4, device="cuda")
    mask, ids = torch.ones(3, dtype=torch.bool, device="cuda"), torch.tensor([1, 2, 3], device="cuda")

    def decided(x, mask):
        return x + 1 if mask.all() else x - 1

    def arithmetic(x, mask, ids):
        y = decided(x, mask)
        return y * mask.to(torch.int64)[:, None].expand(3, 4).float(), (ids + 1) * 2

    def known_indexes(x, mask, ids):
        y, rows = decided(x, mask), torch.arange(3, device="cuda")
        return y[rows.flip(0)]

    def indexes(x, mask, ids):
        return decided(x, mask) + table[ids]

    def divisors(x, mask, ids):
        return decided(x, mask) + (12 // ids)[:, None]

    for f, segments in ((arithmetic, 1), (known_indexes, 1), (indexes, 2), (divisors, 2)):
        fast = framelift.compile(f)
        with torch.inference_mode():
            for m in (mask, mask, ~mask, mask):
                torch.testing.assert_close(fast(x, m, ids), f(x, m, ids))
        assert [len(trace.segments) for trace in framelift.explain(fast).traces] == [segments] * 2, f.__name__
