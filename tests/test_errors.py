"""Wrong use: the error names the function, the argument, its value and the rule."""

import zlib

import pytest
import torch

import framelift

MODEL = torch.nn.Identity()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"backend": "tensorrt"}, ValueError, "backend is 'tensorrt'; must be one of 'framelift', 'eager', "),
        ({"backend": None}, TypeError, "backend must be a string or a callable, not None"),
        ({"precision": "fp8"}, ValueError, "precision is 'fp8'"),
        ({"precision": torch.float32}, TypeError, "precision must be a string, not torch.float32 of type dtype"),
        ({"fallback": "raise"}, ValueError, "fallback is 'raise'; must be one of 'eager', 'error'"),
        ({"threads": 0}, ValueError, "threads is 0; must be from 1 to 1024"),
        ({"threads": 2.0}, TypeError, "threads must be an int or None, not 2.0 of type float"),
        ({"threads": True}, TypeError, "threads must be an int or None, not True of type bool"),
        ({"verify": 1}, TypeError, "verify must be True or False, not 1 of type int"),
        ({"tactic_ms": -1}, ValueError, "tactic_ms is -1; must be a finite number of milliseconds, 0 or more"),
        ({"tactic_ms": float("nan")}, ValueError, "tactic_ms is nan"),
        ({"tactic_ms": "1"}, TypeError, "tactic_ms must be a number of milliseconds, not '1' of type str"),
    ],
)
def test_options(options, error, text):
    with pytest.raises(error, match="^compile: ") as caught:
        framelift.compile(MODEL, **options)
    assert text in str(caught.value)
    with pytest.raises(error):
        framelift.compile(**options)


def test_unknown_option():
    with pytest.raises(TypeError, match="optimise"):
        framelift.compile(MODEL, optimise=True)


@pytest.mark.parametrize("model", [None, 3, "resnet50", [MODEL]])
def test_model_must_be_callable(model):
    with pytest.raises(TypeError, match="compile: model must be callable, not .* of type"):
        framelift.compile(model)


def test_model_must_not_be_a_class():
    with pytest.raises(TypeError, match="model is the class Identity; pass an instance"):
        framelift.compile(torch.nn.Identity)


def test_model_must_not_be_compiled_already():
    with pytest.raises(ValueError, match="already compiled"):
        framelift.compile(framelift.compile(MODEL))


@pytest.mark.parametrize("function", [framelift.explain, framelift.reset, framelift.refresh])
def test_others_take_compiled_callables_only(function):
    with pytest.raises(TypeError, match=f"{function.__name__}: compiled must come from framelift.compile"):
        function(MODEL)


def test_long_values_are_cut():
    with pytest.raises(TypeError) as caught:
        framelift.compile(list(range(1000)))
    assert len(str(caught.value)) < 150


def test_an_error_of_the_model_arrives_unchanged():
    def model(x):
        if x.shape[0] > 2:
            raise KeyError("too many rows")
        return x + 1

    fast = framelift.compile(model)
    with torch.no_grad():
        for rows in (3, 2, 2, 3, 3):
            x = torch.zeros(rows, 4)
            if rows > 2:
                with pytest.raises(KeyError, match="too many rows") as caught:
                    fast(x)
                assert caught.traceback[-1].name == "model"
            else:
                assert torch.equal(fast(x), x + 1)


def test_an_error_of_torch_arrives_unchanged():
    def model(a, b):
        return a @ b

    fast = framelift.compile(model)
    a, b = torch.zeros(2, 3), torch.zeros(3, 2)
    with torch.no_grad():
        fast(a, b)
        with pytest.raises(RuntimeError) as ours:
            fast(a, a)
        with pytest.raises(RuntimeError) as theirs:
            model(a, a)
    assert str(ours.value) == str(theirs.value)


def test_wrong_arguments_of_the_model():
    def model(x):
        return x

    fast = framelift.compile(model)
    with torch.no_grad():
        fast(torch.zeros(1))
        with pytest.raises(TypeError, match=r"model\(\) missing 1 required positional argument: 'x'"):
            fast()
        with pytest.raises(TypeError, match="unexpected keyword argument 'y'"):
            fast(torch.zeros(1), y=1)


def test_fallback_error_refuses_what_cannot_be_captured():
    def model(x):
        return x * len(list(map(zlib.crc32, [b"framelift"])))

    fast = framelift.compile(model, fallback="error")
    with torch.no_grad():
        for _ in range(2):
            with pytest.raises(RuntimeError, match="framelift: unknown C function: zlib.crc32"):
                fast(torch.eye(3))
    lenient = framelift.compile(model)
    with torch.no_grad():
        assert torch.equal(lenient(torch.eye(3)), model(torch.eye(3)))
    (reason,) = framelift.explain(lenient).give_ups
    assert reason.detail == "zlib.crc32" and reason.file == __file__
