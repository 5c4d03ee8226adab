"""Functions with a backward of their own: without gradients, forward() is part of the trace."""

import pytest
import torch

import framelift


class Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor=2):
        ctx.save_for_backward(x)
        ctx.factor = factor
        return x * torch.sigmoid(x) * ctx.factor

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class SumAndProduct(torch.autograd.Function):
    @staticmethod
    def forward(x, y):
        return x + y, x * y

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.shapes = [i.shape for i in inputs]
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx, a, b):
        return a, b


class Same(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, grad):
        return grad


class Needs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        return x * 2 if ctx.needs_input_grad == (False, True) else x * 3

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class Prints(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = x + 1
        print("in forward")
        return y * 2

    @staticmethod
    def backward(ctx, grad):
        return grad


def compared(fn, *args, calls=3):
    """The compiled function, called and compared with the plain one."""
    fast = framelift.compile(fn)
    with torch.no_grad():
        for _ in range(calls):
            torch.testing.assert_close(fast(*args), fn(*args))
    return fast, framelift.explain(fast)


def test_forward_is_recorded():
    _, told = compared(lambda x: torch.relu(Gated.apply(x, 3)), torch.randn(3, 4))
    assert (told.segments, told.operators, told.breaks, told.native_reason) == (1, 4, (), None)
    assert told.replayed == 2


def test_setup_context_is_called_after_forward():
    def program(x):
        a, b = SumAndProduct.apply(x, x + 1)
        return a - b

    _, told = compared(program, torch.randn(3, 4))
    assert (told.segments, told.operators, told.breaks) == (1, 4, ())


def test_a_class_attribute_that_changes_is_seen(monkeypatch):
    fast, _ = compared(lambda x: Gated.apply(x), torch.randn(5))
    monkeypatch.setattr(Gated, "forward", staticmethod(lambda ctx, x: x - 1))
    with torch.no_grad():
        assert torch.equal(fast(torch.zeros(5)), torch.full((5,), -1.0))


def test_which_arguments_need_gradients_is_told():
    weight = torch.nn.Parameter(torch.ones(1))
    fast, told = compared(lambda x: Needs.apply(x, weight), torch.randn(3))
    assert told.segments == 1 and told.replayed == 2
    weight.requires_grad_(False)
    with torch.no_grad():
        assert torch.equal(fast(torch.ones(3)), torch.full((3,), 3.0))


def test_an_argument_given_back_is_another_tensor():
    x = torch.randn(3)
    fast = framelift.compile(lambda x: (x, Same.apply(x)))
    with torch.no_grad():
        for _ in range(3):
            a, b = fast(x)
            assert a is x and b is not x and b.data_ptr() == x.data_ptr()
    assert framelift.explain(fast).replayed == 2


def test_an_argument_written_to_is_itself():
    class Doubles(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.mark_dirty(x)
            return x.mul_(2)

    x = torch.ones(3)
    fast = framelift.compile(lambda x: Doubles.apply(x))
    with torch.no_grad():
        for i in range(3):
            assert fast(x) is x and torch.equal(x, torch.full((3,), 2.0 ** (i + 1)))


def test_a_dirty_argument_must_be_given_back():
    class Keeps(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.mark_dirty(x)
            return x + 1

    fast = framelift.compile(lambda x: Keeps.apply(x))
    for _ in range(2):
        with torch.no_grad(), pytest.raises(RuntimeError, match="marked as dirty"):
            fast(torch.ones(3))


def test_a_parameter_given_out_is_detached():
    weight = torch.nn.Parameter(torch.ones(3))

    class Gives(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return weight

    fast = framelift.compile(lambda x: Gives.apply(x))
    with torch.no_grad():
        for _ in range(3):
            weight.requires_grad_()
            assert fast(torch.ones(3)) is weight and not weight.requires_grad


def test_a_break_in_forward(capsys):
    _, told = compared(lambda x: Prints.apply(x * 3) - 1, torch.randn(3), calls=4)
    assert capsys.readouterr().out == "in forward\n" * 8
    assert told.segments == 2 and len(told.breaks) == 1 and told.replayed == 2


def test_an_exception_of_forward():
    fast = framelift.compile(lambda x: Gated.apply(x, torch.ones(7)))
    for _ in range(3):
        with torch.no_grad(), pytest.raises(RuntimeError, match="must match the size"):
            fast(torch.ones(3))


def test_with_gradients_it_is_left_to_pytorch():
    """A program that turns gradients on by itself gets what autograd makes."""

    def program(x):
        with torch.enable_grad():
            y = Gated.apply(x.detach().requires_grad_(), 2)
            (grad,) = torch.autograd.grad(y.sum(), y)
        return grad + y.detach()

    compared(program, torch.randn(4))
