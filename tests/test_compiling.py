"""Programs that ask whether they are being compiled: no check is left out, whatever contents come later."""

import contextlib
import io
import warnings

import pytest
import torch

import battery
import framelift
from framelift import zoo

LINEAR = torch.nn.Linear(8, 8).eval()
PROGRAMS = []


def program(f):
    PROGRAMS.append(f)
    return f


ASKED = {
    "compiling": torch.compiler.is_compiling,
    "dynamo": torch.compiler.is_dynamo_compiling,
    "exporting": torch.compiler.is_exporting,
    "tracing": torch.jit.is_tracing,
    "scripting": torch.jit.is_scripting,
}


@pytest.mark.parametrize("asks", ASKED.values(), ids=ASKED)
def test_the_answer_is_no(asks):
    def f(x):
        return LINEAR(x) * (2 if asks() else 3), asks()

    fast = framelift.compile(f)
    x = torch.randn(4, 8)
    with torch.inference_mode():
        for _ in range(3):
            y, said = fast(x)
            assert said is False
            torch.testing.assert_close(y, f(x)[0])
    e = framelift.explain(fast)
    assert (e.recorded, e.replayed, e.native, e.segments, len(e.breaks)) == (1, 2, 0, 1, 0)


def test_the_answer_of_a_compiler_above_is_kept():
    """Where the flag is set by somebody else it is set in eager too: another recording."""

    def f(x):
        return LINEAR(x) * (2 if torch.compiler.is_compiling() else 3)

    fast = framelift.compile(f)
    x = torch.randn(4, 8)
    with torch.no_grad():
        for flag in (False, True, False, True, False):
            with torch.compiler._compile_session_context() if flag else contextlib.nullcontext():
                torch.testing.assert_close(fast(x), LINEAR(x) * (2 if flag else 3))
            assert not torch.compiler.is_compiling()
    assert framelift.explain(fast).recorded == 2


@program
def raises_for_some_contents(x):
    if not torch.compiler.is_compiling() and x.isnan().any():
        raise ValueError("not a number")
    return LINEAR(x)


@program
def checks_what_it_computed(x):
    y = LINEAR(x)
    if not torch.compiler.is_compiling() and not torch.isfinite(y).all():
        raise FloatingPointError(f"{int((~torch.isfinite(y)).sum())} are not finite")
    return y.relu()


@program
def takes_a_short_cut(x):
    return x if not torch.compiler.is_compiling() and (x > 0).all() else LINEAR(x)


@program
def answers_otherwise(x):
    if torch.compiler.is_compiling():
        return LINEAR(x) * 3
    return LINEAR(x) if x.sum() < 1e9 else x


@program
def raises_when_compiled(x):
    if torch.compiler.is_compiling():
        raise ValueError("not when compiled")
    return LINEAR(x) if x.sum() < 1e9 else x


@program
def says_something(x):
    y = LINEAR(x)
    if not torch.compiler.is_compiling():
        print("plainly", y.shape)
        if x.isnan().any():
            warnings.warn("not a number", stacklevel=2)
    return y.relu()


@program
def notes_something(x):
    LINEAR.calls = getattr(LINEAR, "calls", 0) + (2 if torch.compiler.is_compiling() else 1)
    return LINEAR(x), LINEAR.calls


@program
def compiles_its_check(x):
    if torch.compiler.is_compiling():
        torch._check_tensor_all(x == x)
    else:
        torch._check_tensor_all_with(IndexError, x == x, lambda: f"{int(x.isnan().sum())} are missing")
    return LINEAR(x)


def contents(rows):
    """Few elements are guarded one by one, many are not."""
    x = torch.randn(rows, 8)
    bad, worse = x.clone(), x.clone()
    bad[1, 2] = float("nan")
    worse[1, :3] = float("nan")
    return {"fine": x, "other": x * 2, "bad": bad, "worse": worse, "positive": x.abs(), "large": x + 1e9}


ORDERS = (
    "fine bad fine other worse bad positive large fine",
    "bad fine bad positive fine worse",
    "large positive fine bad",
)


@pytest.mark.parametrize("f", PROGRAMS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("rows", [4, 64])
@pytest.mark.parametrize("order", ORDERS)
def test_no_check_is_left_out(f, rows, order):
    def run(compile, call):
        if hasattr(LINEAR, "calls"):
            del LINEAR.calls
        fast, of = compile(f), contents(rows)
        for name in order.split():
            said = io.StringIO()
            with contextlib.redirect_stdout(said), warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                call(fast, of[name])
            call.show(said.getvalue(), [str(w.message) for w in warned])

    battery.check(run)


def test_a_call_runs_once():
    calls = []

    def f(x):
        calls.append(torch.compiler.is_compiling())
        return LINEAR(x) if x.sum() < 1e9 else x

    fast = framelift.compile(f)
    with torch.inference_mode():
        for k in range(3):
            fast(torch.randn(64, 8))
            assert calls == [False] * (k + 1)


def masks(ids):
    full = torch.ones_like(ids)
    right, left, none = full.clone(), full.clone(), full.clone()
    right[:, -2:] = 0
    left[:, :2] = 0
    none[0] = 0
    return {"full": full, "right": right, "left": left, "none": none}


@pytest.mark.parametrize("name", ["hf_Bert", "hf_GPT2", "hf_OPT", "hf_Bart", "hf_T5", "minilm"])
@pytest.mark.parametrize("order", ["full right left full none right full", "right full left none full"])
def test_attention_masks_of_any_contents(name, order):
    """A mask of ones alone makes transformers leave it out: a trace each, of one graph, whichever comes first."""
    entry = zoo.load(name, small=True)
    kwargs = dict(entry.kwargs)
    ids = kwargs["input_ids"] if "input_ids" in kwargs else entry.args[0]
    fast = framelift.compile(entry.model)
    with torch.inference_mode():
        for which in order.split():
            kwargs["attention_mask"] = masks(ids)[which]
            want, got = entry.model(*entry.args, **kwargs), fast(*entry.args, **kwargs)
            assert type(got) is type(want)
            torch.testing.assert_close(got[0], want[0], rtol=2e-3, atol=2e-4, equal_nan=True)
    e = framelift.explain(fast)
    assert (e.recorded, e.native, len(e.breaks)) == (2, 0, 0), str(e)
    assert e.segments == e.engines == 2


def test_contents_that_transformers_rejects():
    zoo.load("minilm", small=True)
    from transformers.utils import import_utils

    def f(x, tokens):
        is_image = tokens == 7
        import_utils.torch_compilable_check(
            is_image.sum() == x.shape[0], lambda: f"{int(is_image.sum())} tokens for {x.shape[0]} images", IndexError
        )
        return LINEAR(x)

    def run(compile, call):
        fast, x = compile(f), torch.randn(4, 8)
        for n in (4, 4, 3, 4, 6, 4, 3):
            call(fast, x, torch.arange(400).ge(400 - n) * 7)

    (fast,) = battery.check(run)
    e = framelift.explain(fast)
    assert e.replayed >= 2 and e.recorded == 1 and e.breaks == ()
