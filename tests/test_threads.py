"""Many threads call one compiled model: every answer is right."""

import os
import threading
import time

import pytest
import torch

import framelift
from conftest import assert_close

THREADS = 4


def run_in_threads(function):
    """Calls function(i) in THREADS threads that start together; raises the first error of any."""
    errors = []
    start = threading.Barrier(THREADS)

    def body(i):
        try:
            start.wait()
            function(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=body, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if errors:
        raise errors[0]


@pytest.fixture
def model():
    layers = [torch.nn.Linear(32, 64), torch.nn.GELU(), torch.nn.LayerNorm(64), torch.nn.Linear(64, 8)]
    return torch.nn.Sequential(*layers).eval()


@pytest.mark.parametrize("warm", [True, False], ids=["after the first call", "from the first call on"])
def test_concurrent_calls(model, warm):
    fast = framelift.compile(model)
    with torch.no_grad():
        inputs = [torch.randn(5, 32) for _ in range(THREADS)]
        references = [model(x) for x in inputs]
        if warm:
            fast(inputs[0])

    def calls(i):
        with torch.no_grad():
            for _ in range(50):
                assert_close(fast(inputs[i]), references[i])

    run_in_threads(calls)
    e = framelift.explain(fast)
    assert e.calls == e.recorded + e.replayed + e.native == 50 * THREADS + warm
    assert e.replayed >= 50 * (THREADS - 1)


def test_concurrent_calls_with_different_shapes(model):
    fast = framelift.compile(model)

    def calls(i):
        with torch.no_grad():
            for _ in range(30):
                x = torch.randn(i + 1, 32)
                assert_close(fast(x), model(x))

    run_in_threads(calls)


def test_weights_change_between_rounds_of_threads(model):
    fast = framelift.compile(model)
    x = torch.randn(3, 32)
    for _ in range(5):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
            reference = model(x)

        def calls(i, reference=reference):
            with torch.no_grad():
                for _ in range(5):
                    assert_close(fast(x), reference)

        run_in_threads(calls)


def test_modes_of_other_threads_do_not_matter(model):
    """One thread is under inference_mode, one under no_grad, one with grad."""
    fast = framelift.compile(model)
    x = torch.randn(3, 32)

    def calls(i):
        with [torch.no_grad, torch.inference_mode, torch.enable_grad][i % 3]():
            for _ in range(20):
                answer = fast(x)
                assert_close(answer.detach(), model(x).detach())
                assert answer.is_inference() == (i % 3 == 1)

    run_in_threads(calls)


class Stateful(torch.nn.Module):
    """Layers, a decision on data, an effect, an operator that no engine has."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.BatchNorm1d(16), torch.nn.GELU())
        self.last = None

    def forward(self, x):
        y = self.layers(x)
        if y.sum().item() > 1e9:
            y = y + 1
        z = torch.sort(y, dim=0)[0] + torch.linalg.svdvals(x)[0]
        self.last = z.shape[0]
        return {"y": y, "z": z}


SECONDS = float(os.environ.get("FRAMELIFT_STRESS_SECONDS", "3"))  # `make stress` takes longer


def keep_weights_the_same(model):
    """In every way that counts as a change and changes no number."""
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.0)
        for b in model.buffers():
            if b.is_floating_point():
                b.add_(0.0)
        model.load_state_dict(model.state_dict())
        first = model.layers[0]
        first.weight = torch.nn.Parameter(first.weight.detach().clone())


@pytest.mark.parametrize("make", [Stateful, lambda: torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Tanh())])
def test_stress(make):
    """Threads call one callable, for the first time too, while others change weights, reset, refresh and explain."""
    torch.manual_seed(0)
    model = make().eval()
    fast = framelift.compile(model)
    inputs = [torch.randn(n, 16) for n in range(1, 6)]
    with torch.no_grad():
        wanted = [model(x) for x in inputs]
    end, counts = time.monotonic() + SECONDS, [0] * 8

    def check(i):
        with [torch.no_grad, torch.inference_mode][i % 2]():
            got, want = fast(inputs[i % 5]), wanted[i % 5]
        for k in want if isinstance(want, dict) else [None]:
            assert_close(got if k is None else got[k], want if k is None else want[k])

    def caller(who):
        while time.monotonic() < end:
            check(counts[who] + who)
            counts[who] += 1

    def changer(who):
        while time.monotonic() < end:
            if isinstance(model, Stateful):
                keep_weights_the_same(model)
            for act in (framelift.refresh, framelift.explain, framelift.reset):
                act(fast)
                time.sleep(0.003)
            counts[who] += 1

    def newcomer(who):
        """A callable of its own on the same model, called once or twice and dropped."""
        while time.monotonic() < end:
            mine = framelift.compile(model)
            with torch.no_grad():
                mine(inputs[0]), mine(inputs[1])
            counts[who] += 1

    bodies = [caller, caller, changer, newcomer]
    run_in_threads(lambda i: bodies[i](i))
    assert all(counts[i] > 0 for i in range(THREADS)), counts
    check(0), check(0)
    e = framelift.explain(fast)
    assert e.replayed or e.give_ups
