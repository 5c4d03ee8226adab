"""Shapes that depend on what tensors hold, where no tag of the operator says so."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import framelift


@torch.library.custom_op("framelift_test::positive", mutates_args=())
def positive(x: torch.Tensor) -> torch.Tensor:
    return x[x > 0].clone()


def sized(y):
    """Tells a shape in the values too."""
    return y * y.shape[0]


def packed(x):
    lengths = (x > 0).long() + 1
    both = pack_padded_sequence(torch.arange(24.0).view(6, 2, 2), lengths, batch_first=True, enforce_sorted=False)
    return sized(both.data), sized(pad_packed_sequence(both, batch_first=True)[0].transpose(0, 1))


PROGRAMS = {
    "where": lambda x: sized(torch.where(x > 0)[0]),
    "nonzero": lambda x: sized(torch.nonzero(x > 0, as_tuple=True)[0]),
    "repeat_interleave": lambda x: sized(torch.repeat_interleave(x, (x > 0).long())),
    "tensor_split": lambda x: sized(torch.tensor_split(torch.arange(10.0), (x > 0).sum()[None])[0]),
    "tensor_split method": lambda x: sized(torch.arange(10.0).tensor_split((x > 0).sum()[None])[0]),
    "tensor_split in many": lambda x: len(torch.tensor_split(torch.arange(10.0), (x > 0).sum() + 1)) * x,
    "pack and pad": packed,
    "an operator of another library": lambda x: sized(torch.ops.framelift_test.positive(x)),
}
X = [
    torch.tensor(v)
    for v in (
        [1.0, -1, 2, -3, -4, 0.5],
        [1.0, -1, 2, -3, -4, 0.5],
        [-1.0, -1, 2, -3, -4, -0.5],
        [1.0, 2, 3, 4, 5, 6],
        [-1.0, -2, -3, -4, -5, -6],
    )
]


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("name", PROGRAMS)
def test_another_shape_is_another_answer(name, mode):
    program = PROGRAMS[name]
    fast = framelift.compile(program)
    with mode():
        for x in X + X[::-1]:
            torch.testing.assert_close(fast(x), program(x))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("kind", [torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN])
def test_batch_sizes_decide_what_a_recurrent_layer_does(kind, mode):
    """Lengths of the same number and sum, and the same longest: all shapes are the same."""
    layer = kind(2, 3).eval()
    x = torch.randn(4, 3, 2)

    def program(x, lengths):
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        return pad_packed_sequence(layer(packed)[0])[0]

    fast = framelift.compile(program)
    with mode():
        for lengths in ([4, 3, 1], [4, 3, 1], [4, 2, 2], [4, 3, 1], [2, 2, 4]):
            torch.testing.assert_close(fast(x, torch.tensor(lengths)), program(x, torch.tensor(lengths)))


def test_a_size_that_is_given_is_no_break():
    fast = framelift.compile(lambda x, n: torch.repeat_interleave(x, n, output_size=6) * 2)
    x = torch.randn(3)
    with torch.inference_mode():
        for counts in ([1, 2, 3], [2, 2, 2], [4, 1, 1]):
            n = torch.tensor(counts)
            torch.testing.assert_close(fast(x, n), torch.repeat_interleave(x, n) * 2)
    told = framelift.explain(fast)
    assert (told.segments, told.breaks, told.replayed) == (1, (), 2)


def test_what_guards_promise_is_a_literal():
    """Counts that a guard holds give places that need no operator."""

    def program(x, grid):
        height, width = grid.tolist()[0]
        places = torch.repeat_interleave(torch.arange(2), grid[0], output_size=None)
        return x[places].view(height + width, -1) * 2

    fast = framelift.compile(program)
    x = torch.randn(2, 3)
    with torch.inference_mode():
        for counts in ([2, 3], [2, 3], [3, 2], [1, 1], [2, 3]):
            grid = torch.tensor([counts])
            torch.testing.assert_close(fast(x, grid), program(x, grid))
    told = framelift.explain(fast)
    assert told.breaks == () and told.eager == () and told.engines == told.segments == 3 and told.replayed == 2


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_few_counts_among_the_arguments_are_guarded(mode):
    """No break, and a trace for each grid; long ones, which are data, are looked at when they come."""

    def program(x, grid):
        ends = torch.repeat_interleave(grid[:, 1] * grid[:, 2], grid[:, 0]).cumsum(0)
        return sized(ends) + x

    fast = framelift.compile(program)
    with mode():
        for grid in ([[1, 4, 4], [2, 2, 2]], [[1, 4, 4], [2, 2, 2]], [[2, 4, 4], [1, 2, 2]], [[1, 1, 1], [1, 1, 1]]):
            grid = torch.tensor(grid)
            ends = int(grid[:, 0].sum())
            x = torch.randn(ends)
            torch.testing.assert_close(fast(x, grid), program(x, grid))
    told = framelift.explain(fast)
    assert told.breaks == () and told.eager == () and told.replayed == 1 and told.engines == told.segments == 3

    long = framelift.compile(lambda n: sized(torch.repeat_interleave(n)))
    with mode():
        for last in (1, 1, 2):
            n = torch.ones(100, dtype=torch.long)
            n[-1] = last
            torch.testing.assert_close(long(n), sized(torch.repeat_interleave(n)))
    assert "depends on data" in framelift.explain(long).breaks[0].reason


def test_one_hot_of_a_known_number_of_classes_is_no_break():
    """It is computed in the engine; a class that there is not raises as in eager."""

    def program(x, classes):
        return torch.nn.functional.one_hot(x, classes).float() * 2

    with torch.inference_mode():
        fast = framelift.compile(program)
        for values in ([1, 2], [1, 2], [4, 0], [5, 0], [-1, 0], [3, 3]):
            x = torch.tensor(values)
            if min(values) < 0 or max(values) > 4:
                for f in (program, fast):
                    with pytest.raises(RuntimeError, match="Class values must be"):
                        f(x, 5)
            else:
                torch.testing.assert_close(fast(x, 5), program(x, 5))
        told = framelift.explain(fast)
        assert told.breaks == () and told.eager == () and told.recorded == 1 and told.engines == told.segments == 1

        fast = framelift.compile(program)
        for values in ([1, 2], [1, 2], [4, 0], [1, 2]):
            torch.testing.assert_close(fast(torch.tensor(values), -1), program(torch.tensor(values), -1))
