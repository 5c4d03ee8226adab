"""Numbers that numpy computes from the program's own are constants; what else numpy does is unknown code."""

import numpy as np
import pytest
import torch

import framelift


class Width:
    value = 7
    scale = np.float32(3)


def divided(x):
    return x * np.sqrt(Width.value) / np.log(2.0)


def from_the_left(x):
    return np.sqrt(Width.value) * x


def in_place(x):
    y = x + 1
    y *= np.sqrt(Width.value)
    return y + np.maximum(2, 3.5) ** 2


def padded(x):
    multiple = np.lcm(6, 4)
    if x.shape[0] % multiple != 0:
        x = torch.nn.functional.pad(x, (0, 0, 0, int(multiple - x.shape[0] % multiple)))
    return x.view(multiple, -1) * Width.scale * np.exp(Width.value / 9)


def given_back(x):
    return x * 2, np.sqrt(Width.value)


@pytest.mark.parametrize("function", [divided, from_the_left, in_place, padded, given_back])
def test_numbers(function, monkeypatch):
    fast = framelift.compile(function)

    def check():
        x = torch.randn(3, 4)
        got, want = fast(x), function(x)
        torch.testing.assert_close(got, want)
        assert [type(v) for v in got] == [type(v) for v in want]

    with torch.inference_mode():
        for _ in range(3):
            check()
        explanation = framelift.explain(fast)
        assert explanation.segments == 1 and explanation.replayed == 2
        assert not explanation.breaks and not explanation.native_reason
        monkeypatch.setattr(Width, "value", 11)
        for _ in range(2):
            check()
    assert framelift.explain(fast).recorded == 2


def of_an_array(x):
    return x * float(np.sqrt(np.arange(Width.value)).sum())


def of_a_tensor(x):
    return x + torch.as_tensor(np.sqrt(x.numpy().clip(0)))


def of_a_function(x):
    seen.append(1)
    return x * float(np.frompyfunc(lambda v: v + len(seen), 1, 1)(2))


def with_a_warning(x):
    return x * np.log(Width.value - 7)


seen = []


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("function", [of_an_array, of_a_tensor, of_a_function, with_a_warning])
def test_all_else_is_unknown_code(function):
    fast = framelift.compile(function)
    with torch.no_grad():
        for _ in range(3):
            x = torch.randn(3, 4)
            del seen[:]
            want = function(x)
            del seen[:]
            torch.testing.assert_close(fast(x), want)
    explanation = framelift.explain(fast)
    assert explanation.breaks or explanation.native_reason


class DropsByNumpy(torch.nn.Module):
    def forward(self, x):
        y = x + 1
        probability = np.random.uniform(0, 1)  # a method in C of an object of numpy's
        return y * 2 if not (self.training and probability < 0.5) else y


def test_a_bound_method_of_c_code_is_a_break():
    net = DropsByNumpy().eval()
    fast = framelift.compile(net)
    with torch.inference_mode():
        for i in range(4):
            x = torch.randn(3, 4)
            np.random.seed(i)
            want, state = net(x), np.random.get_state()[2]
            np.random.seed(i)
            assert torch.equal(fast(x), want) and np.random.get_state()[2] == state
    explanation = framelift.explain(fast)
    assert len(explanation.breaks) == 1 and explanation.replayed == 3
