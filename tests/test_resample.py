"""Resizing by weighted sums of a few inputs: bicubic, and what is antialiased."""

import pytest
import torch
import torch.nn.functional as F

import framelift

SIZES = [(5, 7), (14, 14), (3, 16), (1, 1)]
OUT = [(9, 4), (14, 14), (32, 30), (2, 5), (1, 1)]


def answers(program, x):
    """The compiled program's replayed answer, the program's own, and what was captured."""
    fast = framelift.compile(program)
    with torch.no_grad():
        fast(x)
        return fast(x), program(x), framelift.explain(fast)


def check(program, x, tolerance=2e-5):
    got, want, told = answers(program, x)
    assert (told.segments, told.engines, told.eager) == (1, 1, ())
    torch.testing.assert_close(got, want, atol=tolerance, rtol=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("out", OUT)
def test_sizes(size, out):
    x = torch.randn(2, 3, *size)
    for options in (
        {"mode": "bicubic"},
        {"mode": "bicubic", "align_corners": True},
        {"mode": "bicubic", "antialias": True},
        {"mode": "bilinear", "antialias": True},
    ):
        check(lambda t, options=options: F.interpolate(t, out, **options) + 1, x)


@pytest.mark.parametrize("factor", [2.0, 0.5, 1.7, (1.3, 2.1)])
def test_factors(factor):
    x = torch.randn(1, 2, 9, 8)
    for antialias in (False, True):
        check(lambda t, a=antialias: F.interpolate(t, scale_factor=factor, mode="bicubic", antialias=a) + 1, x)


def test_bfloat16_is_computed_in_float32():
    check(lambda t: F.interpolate(t, (9, 4), mode="bicubic") * 2, torch.randn(1, 2, 5, 7).bfloat16(), tolerance=4e-2)


@pytest.mark.parametrize("antialias", [False, True])
def test_infinities_stay_where_they_are(antialias):
    x = torch.randn(1, 1, 8, 8)
    x[0, 0, 0, 7] = float("inf")
    got, want, told = answers(lambda t: F.interpolate(t, (16, 12), mode="bicubic", antialias=antialias) + 1, x)
    assert told.engines == 1 and not told.eager
    assert torch.equal(got.isinf(), want.isinf()) and torch.equal(got.isnan(), want.isnan())


def test_many_inputs_for_each_output_stay_eager():
    got, want, told = answers(
        lambda t: F.interpolate(t, (4, 4), mode="bicubic", antialias=True) + 1, torch.randn(1, 1, 64, 64)
    )
    assert torch.equal(got, want) and "inputs for each output" in told.eager[0].reason


def test_all_true_is_an_operator_of_the_engine():
    x = torch.ones(3, dtype=torch.bool)
    check(lambda t: torch._is_all_true(t).float() + torch._is_any_true(~t).float(), x)
