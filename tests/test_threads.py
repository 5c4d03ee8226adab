"""Many threads call one compiled model: every answer is right."""

import threading

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
