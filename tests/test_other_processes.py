"""Weights in memory that other processes, or other mappings of a file, write to, which counts no version."""

import ctypes
import os

import pytest
import torch

import framelift
from conftest import assert_close


def elsewhere(tensor, value, at=0):
    """Another process writes one element."""
    pid = os.fork()
    if not pid:
        (ctypes.c_float * tensor.numel()).from_address(tensor.data_ptr())[at] = value
        os._exit(0)
    os.waitpid(pid, 0)


def module(size):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(size, size), torch.nn.BatchNorm1d(size), torch.nn.Linear(size, 4)).eval()


@pytest.mark.parametrize("size", [8, 160])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("told", ["before", "between"])
def test_a_module_that_another_process_trains(size, mode, told):
    m, x = module(size), torch.randn(3, size)
    if told == "before":
        m.share_memory()
    fast = framelift.compile(m)
    with mode():
        for _ in range(2):
            assert_close(fast(x), m(x))
        m.share_memory()
        for k, name in enumerate(["0.weight", "0.bias", "1.running_mean", "2.weight", "0.weight"]):
            tensor = m.state_dict()[name]
            elsewhere(tensor, 3.0 + k, at=tensor.numel() // 3)
            for _ in range(2):
                assert_close(fast(x), m(x))
    e = framelift.explain(fast)
    assert not e.native and e.recorded == (1 if told == "before" else 2)


def test_two_mappings_of_one_file(tmp_path):
    path = str(tmp_path / "weights")
    torch.ones(160, 160).numpy().tofile(path)
    here, there = (torch.from_file(path, shared=True, size=160 * 160).view(160, 160) for _ in range(2))
    fast, x = framelift.compile(lambda x: x @ here + here[0]), torch.randn(3, 160)
    with torch.no_grad():
        for k in range(4):
            assert_close(fast(x), fast.__wrapped__(x))
            there[0].add_(k)
    assert framelift.explain(fast).replayed == 3


def test_a_decision_on_shared_memory():
    flag = torch.ones(1).share_memory_()
    fast, x = framelift.compile(lambda x: x * 2 if flag > 0 else x * 3), torch.ones(2)
    with torch.no_grad():
        for value in (1.0, -1.0, -2.0, 1.0):
            elsewhere(flag, value)
            assert fast(x)[0] == (2 if value > 0 else 3)


def test_a_shared_weight_takes_the_place_of_one_that_was_not():
    m, x = torch.nn.Linear(160, 4).eval(), torch.randn(3, 160)
    fast = framelift.compile(m)
    with torch.no_grad():
        for _ in range(2):
            assert_close(fast(x), m(x))
        m.weight = torch.nn.Parameter(torch.randn(4, 160).share_memory_())
        for k in range(3):
            assert_close(fast(x), m(x))
            elsewhere(m.weight, 5.0 + k)


def test_a_file_mapped_by_this_process_alone_is_packed(tmp_path):
    path = str(tmp_path / "weights")
    torch.randn(160, 160).numpy().tofile(path)
    mapped = torch.from_file(path, shared=False, size=160 * 160).view(160, 160)
    assert mapped.is_shared()  # says PyTorch
    x, constants = torch.randn(3, 160), []
    for weight in (mapped, mapped.clone(), mapped.clone().share_memory_()):
        fast = framelift.compile(lambda x, weight=weight: torch.relu(x @ weight))
        with torch.no_grad():
            fast(x), fast(x)
        (part,) = framelift.explain(fast).partitions
        constants.append(part.const_bytes)
    assert constants[0] == constants[1] > constants[2]


def test_a_file_that_the_program_maps(tmp_path):
    path, op = str(tmp_path / "state"), torch.ops.aten.from_file.default
    torch.zeros(4).numpy().tofile(path)

    def f(x):
        op(path, True, 4, dtype=torch.float32).add_(x[0])
        return op(path, True, 4, dtype=torch.float32) * 2

    fast, want = framelift.compile(f), torch.zeros(4)
    with torch.no_grad():
        for _ in range(4):
            x = torch.randn(3, 4)
            want += x[0]
            assert_close(fast(x), want * 2)
    assert "aten.from_file" in framelift.explain(fast).native_reason
